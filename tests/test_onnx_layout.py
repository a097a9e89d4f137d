"""int8 students in the shapes of the runtime's kernels compute what they computed."""

from typing import Any

import pytest
import torch
from torch import nn

import students
from pipeline.models.storage import Affine, Quantization
from pipeline.onnx import layout
from pipeline.quantization.simulator import IMAGES, RAW_PIXELS, int8_activations, is_depthwise, layers

CHANNELS = (8, 24, 32, 40, 40, 48, 48, 48, 56, 48, 48, 48, 64, 72)


def int8_student(
    size: int = 64, float_layers: tuple[str, ...] = (), **arguments: Any
) -> tuple[nn.Module, Quantization]:
    torch.manual_seed(0)
    settings = {"classes": 3, "channels": CHANNELS, "size": size, "norm": False, **arguments}
    module = students.build("mobilenet_v1", settings).eval()
    for name, bias in module.named_parameters():
        if name.endswith("conv.bias"):
            nn.init.normal_(bias)
    scales = {
        name: layer.weight.detach().flatten(1).abs().amax(dim=1) / 127
        for name, layer in layers(module).items()
        if name not in float_layers
    }
    written = int8_activations(module, float_layers)
    activations = {name: RAW_PIXELS if name == IMAGES else Affine(0.02, 0) for name in written}
    return module, Quantization(scales, 127, activations, float_layers)


@pytest.mark.parametrize("float_layers", [(), ("stem", "blocks.0.depthwise"), ("classifier",)])
def test_channels_of_zeros_change_no_logit(float_layers: tuple[str, ...]) -> None:
    module, quantization = int8_student(float_layers=float_layers)
    filled, scales = layout.fill(module, quantization)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(filled(images), module(images), rtol=1e-5, atol=1e-5)
    for name, part in layers(filled).items():
        if is_depthwise(part) and name not in float_layers:
            assert len(part.weight) % layout.FILL == 0
        if name not in float_layers:
            assert len(scales.weight_scales[name]) == len(part.weight)
    assert [len(layer.weight) for layer in layers(filled).values()] != [
        len(layer.weight) for layer in layers(module).values()
    ]
    assert [len(part.weight) for part in layers(filled).values()][-2:] == [72, 3]


@pytest.mark.parametrize(("size", "padding"), [(64, "symmetric"), (64, "same"), (36, "symmetric")])
def test_two_columns_at_once_are_the_stems_map(size: int, padding: str) -> None:
    module, quantization = int8_student(size, padding=padding)
    paired, scales, channels = layout.pair_columns(module, quantization, size)
    assert channels == CHANNELS[0]
    assert scales.weight_scales["stem"].equal(quantization.weight_scales["stem"].repeat(2))
    images = torch.rand(2, size, size, 3)
    quads = images.reshape(2, size, size // 4, 12).permute(0, 3, 1, 2)
    pairs = paired.get_submodule("stem")(quads).permute(0, 2, 3, 1)
    found = pairs.reshape(2, size // 2, size // 2, channels).permute(0, 3, 1, 2)
    wanted = module.get_submodule("stem")(images.permute(0, 3, 1, 2))
    assert wanted.max() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "float_layers"), [(50, ()), (64, ("stem",))])
def test_other_stems_stay_as_they_are(size: int, float_layers: tuple[str, ...]) -> None:
    module, quantization = int8_student(size, float_layers)
    assert layout.pair_columns(module, quantization, size) == (module, quantization, 0)
