"""The table of what layers cost in ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import students
from pipeline.measurement import kernels
from pipeline.onnx.graph import ExportError
from teachers.contract import InputContract

SIZE = 64
CHANNELS = (8, 24, 32, 32, 40, 40, 48, 48, 48, 48, 48, 48, 64, 64)
FIRST = ("stem", "blocks.0.depthwise")


def student(channels: tuple[int, ...] = CHANNELS, **arguments: Any) -> nn.Module:
    return students.build("mobilenet_v1", {"classes": 3, "channels": channels, "size": SIZE, **arguments})


def table(folder: Path, module: nn.Module, slow: dict[str, float]) -> kernels.Costs:
    """A table in which every part takes 10 us, but for those that begin with the given words."""
    names = list(kernels.layers(module))
    parts = {
        str(part)
        for first in [None, *range(len(names))]
        for part in kernels.parts_of(module, SIZE, first if first is None else names[:first])
    }
    times = {part: next((t for words, t in slow.items() if part.startswith(words)), 10.0) for part in parts}
    file = folder / "kernels.json"
    file.write_text(json.dumps({kernels._machine(): times}))
    return kernels.open_costs(file)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_parts_read_the_maps_that_the_layers_read(padding: str) -> None:
    module = student(padding=padding).eval()
    seen = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            ends = (0 if part.padding[0] else 1) if part.kernel_size[0] > 1 else 0  # a padding layer's line
            part.register_forward_hook(lambda _m, x, _y, ends=ends: seen.append(x[0].shape[2] - ends))
        if isinstance(part, nn.AdaptiveAvgPool2d):
            part.register_forward_hook(lambda _m, x, _y: seen.append(x[0].shape[2]))
    module(torch.rand(1, 3, SIZE, SIZE))
    assert [part.side for part in kernels.parts_of(module, SIZE, None)] == seen


def test_parts_of_an_int8_file_have_the_channels_that_are_written() -> None:
    parts = kernels.parts_of(student(), SIZE, [])
    grouped = [part for part in parts if isinstance(part, kernels.Convolution) and part.groups > 1]
    assert [part.outputs for part in grouped[:5]] == [16, 32, 32, 32, 48]
    assert isinstance(parts[-1], kernels.Head)
    assert parts[-1].inputs == 64
    in_float = kernels.parts_of(student(), SIZE, None)
    assert [part.outputs for part in in_float if isinstance(part, kernels.Convolution)][:3] == [8, 8, 24]


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, file = student(), tmp_path / "kernels.json"
    asked = {
        layers: kernels.open_costs(file).milliseconds(module, SIZE, layers) for layers in (None, (), FIRST)
    }
    assert min(asked.values()) > 0
    monkeypatch.setattr(kernels, "measure", None)
    again = {layers: kernels.open_costs(file).milliseconds(module, SIZE, layers) for layers in asked}
    assert again == asked


def test_a_wide_network_is_predicted_slower_than_a_narrow_one(tmp_path: Path) -> None:
    costs = kernels.open_costs(tmp_path / "kernels.json")
    wide = student(tuple(6 * count for count in CHANNELS))
    assert costs.milliseconds(wide, SIZE, None) > 2 * costs.milliseconds(student(), SIZE, None)


def test_a_narrow_network_is_faster_measured_whole_and_the_answer_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide, narrow = (student((width,) * 14, norm=False) for width in (128, 8))
    first = kernels.open_costs(tmp_path / "kernels.json").speedup(wide, narrow, InputContract(SIZE))
    assert first > 1.2
    monkeypatch.setattr(kernels, "measure_speedup", None)
    assert kernels.open_costs(tmp_path / "kernels.json").speedup(wide, narrow, InputContract(SIZE)) == first


def test_another_machines_times_stay_in_the_file_and_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    parts = kernels.parts_of(student(), SIZE, None)
    other = {str(part): 1e9 for part in parts}
    file.write_text(json.dumps({"a slow machine": other}))
    assert kernels.open_costs(file).milliseconds(student(), SIZE, None) < 1e6
    assert json.loads(file.read_text())["a slow machine"] == other


@pytest.mark.parametrize(
    ("slow", "contract", "expected"),
    [
        ({}, InputContract(SIZE), ()),
        ({"int8 3x3/2 convolution, 3 to": 90.0}, InputContract(SIZE), ("stem",)),
        (
            {"int8 3x3/2 convolution, 3 to": 90.0, "int8 3x3/1 convolution in 8 groups": 90.0},
            InputContract(SIZE),
            FIRST,
        ),
        ({"float": 90.0}, InputContract(SIZE, mean=(0.5, 0.5, 0.5)), ("stem",)),
        ({"int8": 11.0}, InputContract(SIZE), None),
    ],
)
def test_the_first_layers_stay_float_where_that_is_faster(
    tmp_path: Path, slow: dict[str, float], contract: InputContract, expected: tuple[str, ...] | None
) -> None:
    module = student()
    found = kernels.fastest_float_layers(table(tmp_path, module, slow), module, contract)
    if expected is not None:
        assert found == expected
    sizes = {name: layer.weight.numel() for name, layer in kernels.layers(module).items()}
    assert list(found) == list(sizes)[: len(found)]
    assert sum(sizes[name] for name in found) <= kernels.LARGEST_SHARE * sum(sizes.values())


def test_a_float_layer_among_int8_ones_has_no_price(tmp_path: Path) -> None:
    costs = kernels.open_costs(tmp_path / "kernels.json")
    with pytest.raises(ExportError, match=r"blocks\.3\.depthwise follows an int8 one"):
        costs.milliseconds(student(), SIZE, ["blocks.3.depthwise"])
