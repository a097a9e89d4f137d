"""int8 students in the shapes of the runtime's kernels compute what they computed."""

import pytest
import torch

from pipeline.onnx import layout
from tests.tiny_students import UNEVEN, uneven_student


@pytest.mark.parametrize("float_layers", [(), ("stem", "blocks.0.depthwise"), ("classifier",)])
def test_channels_of_zeros_change_no_logit(float_layers: tuple[str, ...]) -> None:
    network, quantization = uneven_student(float_layers=float_layers)
    filled, wider = layout.fill(network, quantization)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(filled.module(images), network.module(images), rtol=1e-5, atol=1e-5)
    for name, part in filled.parts.items():
        if filled.layers[name].kind == "depthwise" and name not in float_layers:
            assert len(part.weight) % layout.FILL == 0
        if name not in float_layers:
            assert len(wider.weight_scales[name]) == len(part.weight)
    counts = [[len(part.weight) for part in each.parts.values()] for each in (filled, network)]
    assert counts[0] != counts[1]
    assert counts[0][-2:] == [72, 3]


@pytest.mark.parametrize(("size", "padding"), [(64, "symmetric"), (64, "same"), (36, "symmetric")])
def test_two_columns_at_once_are_the_stems_map(size: int, padding: str) -> None:
    network, quantization = uneven_student(size, padding=padding)
    paired, wider, channels = layout.pair_columns(network, quantization, size)
    assert channels == UNEVEN[0]
    assert wider.weight_scales["stem"].equal(quantization.weight_scales["stem"].repeat(2))
    images = torch.rand(2, size, size, 3)
    quads = images.reshape(2, size, size // 4, 12).permute(0, 3, 1, 2)
    pairs = paired.module.get_submodule("stem")(quads)
    assert pairs.shape == (2, 2 * channels, size // 2, size // 4)
    columns = pairs.permute(0, 2, 3, 1).reshape(2, size // 2, size // 2, channels).permute(0, 3, 1, 2)
    expected = network.module.get_submodule("stem")(images.permute(0, 3, 1, 2))
    assert expected.max() > 0
    torch.testing.assert_close(columns, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "float_layers"), [(50, ()), (64, ("stem",))])
def test_other_stems_stay_as_they_are(size: int, float_layers: tuple[str, ...]) -> None:
    network, quantization = uneven_student(size, float_layers)
    assert layout.pair_columns(network, quantization, size) == (network, quantization, 0)
