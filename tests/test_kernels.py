"""The table of what layers cost in ONNX Runtime."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import students
from pipeline.measurement import kernels, layer_costs
from pipeline.models.layers import Network, trace
from pipeline.onnx.graph import ExportError
from teachers.contract import InputContract

SIZE = 64
CHANNELS = (8, 24, 32, 32, 40, 40, 48, 48, 48, 48, 48, 48, 64, 64)
FIRST = ("stem", "blocks.0.depthwise")


def student(channels: tuple[int, ...] = CHANNELS, **arguments: Any) -> nn.Module:
    return students.build("mobilenet_v1", {"classes": 3, "channels": channels, "size": SIZE, **arguments})


def parts_of(module: nn.Module, float_layers: tuple[str, ...] | None) -> list[str]:
    return [str(part) for part in kernels.parts_of(trace(module), SIZE, float_layers)]


def table(folder: Path, network: Network, slow: dict[str, float]) -> layer_costs.Costs:
    """A table in which every part takes 10 us, except those that begin with the given words."""
    names = list(network.layers)
    parts = {
        str(part)
        for first in [None, *range(len(names))]
        for part in kernels.parts_of(network, SIZE, first if first is None else names[:first])
    }
    times = {part: next((t for words, t in slow.items() if part.startswith(words)), 10.0) for part in parts}
    file = folder / "kernels.json"
    file.write_text(json.dumps({layer_costs.name(): times}))
    return Added(file)


class Added(layer_costs.Costs):
    """A table whose layers add up to the whole."""

    def slowdown(self, network: Network, contract: InputContract, layers: Any, others: Any) -> float:
        one, other = (self.total(kernels.parts_of(network, contract.size, each)) for each in (layers, others))
        return one / other


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
    assert [part.side for part in kernels.parts_of(trace(module), SIZE, None)] == seen


def test_parts_of_an_int8_file_have_the_channels_that_are_written() -> None:
    parts = kernels.parts_of(trace(student()), SIZE, [])
    grouped = [part for part in parts if isinstance(part, kernels.Convolution) and part.groups > 1]
    assert [part.outputs for part in grouped[:5]] == [16, 32, 32, 32, 48]
    assert isinstance(parts[-1], kernels.Head)
    assert parts[-1].inputs == 64
    in_float = kernels.parts_of(trace(student()), SIZE, None)
    assert [part.outputs for part in in_float if isinstance(part, kernels.Convolution)][:3] == [8, 8, 24]


def test_a_file_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, file = student(), tmp_path / "kernels.json"
    measured: list[str] = []

    def measure(parts: Sequence[kernels.Convolution | kernels.Head]) -> list[float]:
        measured.extend(map(str, parts))
        return [float(part.inputs) for part in parts]

    monkeypatch.setattr(kernels, "measure", measure)
    for float_layers in (None, (), FIRST, None):
        channels = [part.inputs for part in kernels.parts_of(trace(module), SIZE, float_layers)]
        predicted = layer_costs.open_costs(file).milliseconds(module, SIZE, float_layers)
        assert predicted == pytest.approx(sum(channels) / 1000)
    every = [part for layers in (None, (), FIRST) for part in parts_of(module, layers)]
    assert set(measured) == set(every)
    assert len(measured) == sum(len(set(parts_of(module, layers))) for layers in (None, (), FIRST))


def test_parts_are_measured_in_the_runtime() -> None:
    parts = kernels.parts_of(trace(student()), SIZE, FIRST)
    times = kernels.measure(parts)
    assert len(times) == len(parts)
    assert min(times) > 0


def event(kind: str, start: int, duration: int) -> dict[str, Any]:
    """A node as ONNX Runtime's profiler reports it."""
    return {
        "cat": "Node",
        "name": f"{kind}_kernel_time",
        "ts": start,
        "dur": duration,
        "args": {"op_name": kind},
    }


def test_the_time_of_a_layer_is_that_between_the_feeders_convolution_and_its_own() -> None:
    nodes = [("Transpose", 100), ("Conv", 90), ("QuantizeLinear", 7), ("QLinearConv", 20), ("Gemm", 400)]
    events = [
        event(kind, 1000 * run + start, duration)
        for run in range(kernels.UNTIMED + kernels.TIMED)
        for start, (kind, duration) in enumerate(nodes)
    ]
    layer = kernels.Convolution(1, 1, 1, 8, 8, 16, "float", "int8")
    assert kernels._time_of(layer, events) == 7.5 + 20.5
    head = kernels.Head(8, 10, 16, "float", "float")
    assert kernels._time_of(head, events) == 7.5 + 20.5 + 400.5


def test_a_speedup_is_measured_in_the_runtime_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SESSIONS", 1)
    wide, narrow = (student((width,) * 14, norm=False) for width in (16, 8))
    first = layer_costs.open_costs(tmp_path / "kernels.json").speedup(wide, narrow, InputContract(SIZE))
    assert first > 0
    monkeypatch.setattr(kernels, "measure_ratio", None)
    assert (
        layer_costs.open_costs(tmp_path / "kernels.json").speedup(wide, narrow, InputContract(SIZE)) == first
    )


def test_int8_files_with_other_float_layers_are_measured_whole_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SESSIONS", 1)
    network, file, contract = trace(student(norm=False)), tmp_path / "kernels.json", InputContract(SIZE)
    first = layer_costs.open_costs(file).slowdown(network, contract, (), FIRST)
    assert 0.1 < first < 10
    monkeypatch.setattr(kernels, "measure_ratio", None)
    assert layer_costs.open_costs(file).slowdown(network, contract, (), FIRST) == first


@pytest.mark.parametrize("weight", [0.0, 1e-13])
def test_a_channel_that_has_died_beside_its_bias_can_be_timed(weight: float) -> None:
    """As in published weights, whose batch norms fold some channels into a constant."""
    network = trace(student(norm=False))
    with torch.no_grad():
        for part in network.parts.values():
            assert part.bias is not None
            part.weight[0], part.bias[0] = weight, -1.23
    assert kernels.file(network, (), InputContract(SIZE))


def test_another_machines_times_stay_in_the_file_and_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kernels.json"
    other = dict.fromkeys(parts_of(student(), None), 1e9)
    file.write_text(json.dumps({"a slow machine": other}))
    monkeypatch.setattr(kernels, "measure", lambda parts: [1.0] * len(parts))
    predicted = layer_costs.open_costs(file).milliseconds(student(), SIZE, None)
    assert predicted == pytest.approx(len(parts_of(student(), None)) / 1000)
    assert json.loads(file.read_text())["a slow machine"] == other


def test_a_comment_in_the_writer_of_graphs_keeps_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, file = layer_costs.name(), tmp_path / "layout.py"
    source = Path(str(layer_costs.layout.__file__)).read_text()
    monkeypatch.setattr(layer_costs.layout, "__file__", str(file))
    file.write_text(f'"""Another docstring."""\n# A comment.\n{source.split(chr(34) * 3, 2)[2]}')
    assert layer_costs.name() == before
    file.write_text(source.replace("FILL = 16", "FILL = 32"))
    assert layer_costs.name() != before


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
        ({"float": 90.0}, InputContract(SIZE, mean=(0.5, 0.5, 0.5)), ()),
        ({"float": 90.0}, InputContract(SIZE, mean=(0.0, 0.5, 1.0), std=(0.1, 0.1, 0.1)), ("stem",)),
        ({"int8": 11.0}, InputContract(SIZE), None),
    ],
)
def test_the_first_layers_stay_float_where_that_is_faster(
    tmp_path: Path, slow: dict[str, float], contract: InputContract, expected: tuple[str, ...] | None
) -> None:
    network = trace(student())
    fastest = layer_costs.fastest_float_layers(table(tmp_path, network, slow), network, contract).layers
    if expected is not None:
        assert fastest == expected
    sizes = {name: part.weight.numel() for name, part in network.parts.items()}
    assert list(fastest) == list(sizes)[: len(fastest)]
    assert sum(sizes[name] for name in fastest) <= layer_costs.LARGEST_SHARE * sum(sizes.values())


def test_a_float_layer_among_int8_ones_has_no_price(tmp_path: Path) -> None:
    costs = layer_costs.open_costs(tmp_path / "kernels.json")
    with pytest.raises(ExportError, match=r"blocks\.3\.depthwise follows an int8 one"):
        costs.milliseconds(student(), SIZE, ["blocks.3.depthwise"])
