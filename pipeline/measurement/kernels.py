"""What a layer costs in ONNX Runtime on the machine at hand.

Multiply-accumulates do not predict it: a kernel for multiples of 16 channels takes several times as long
for 24, the first layers are faster in float than in int8, and conversions between the two take time as
well.

A layer is measured inside a network of its own, as ``onnx.graph`` writes it: a feeder that hands it an
activation in the layout and precision of the layer before, the layer, and a classifier. ONNX Runtime's
profiler times each node, so the layer's time is that of the kernel that the optimiser chose, together with
the conversions right before it. Other networks run between the runs, since a layer of a complete network
does not find its weights in the caches either.
"""

import functools
import json
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pipeline import resources
from pipeline.models.layers import IMAGES, Layer, Network, trace, unit
from pipeline.models.storage import Quantization
from pipeline.onnx import graph, layout
from pipeline.onnx.graph import CONVOLUTIONS, ExportError
from pipeline.onnx.sessions import open_session
from pipeline.quantization import grid, stem
from teachers.contract import InputContract

PASSES = 3
"""Number of times that all layers are measured, with sessions of their own: the place of their memory changes
a time by some per cent. The median counts."""
UNTIMED, TIMED = 2, 16
"""Number of runs of a layer's network in a pass that are not timed, and of those that are."""
SESSIONS, RUNS = 8, 60
"""Number of sessions, and of runs in each, in which two complete networks are timed in turn."""
QUANTILE = 0.1
"""Quantile of the timed runs that is taken; a neighbour on the same core only ever adds time."""
CLASSES = 10
"""Number of classes in a layer's network; the time of its classifier is not counted."""


Precision = Literal["float", "int8"]
Source = Literal["image", "float", "int8"]
"""What a layer reads; ``image`` is the input, with the normalisation before the first layer."""


@dataclass(frozen=True)
class Convolution:
    """A convolution with its activation and the conversions before it."""

    kernel: int
    stride: int
    groups: int
    inputs: int
    outputs: int
    side: int
    """Side of the map that it reads, in pixels."""
    source: Source
    precision: Precision

    def __str__(self) -> str:
        grouped = f" in {self.groups} groups" if self.groups > 1 else ""
        return (
            f"{self.precision} {self.kernel}x{self.kernel}/{self.stride} convolution{grouped}, "
            f"{self.inputs} to {self.outputs} channels at {self.side} px, from {self.source}"
        )


@dataclass(frozen=True)
class Head:
    """Global average pooling and the classifier."""

    inputs: int
    classes: int
    side: int
    """Side of the last map, in pixels."""
    source: Precision
    precision: Precision

    def __str__(self) -> str:
        return (
            f"{self.precision} pool and classifier, {self.inputs} channels at {self.side} px to "
            f"{self.classes} classes, from {self.source}"
        )


COMPANY = [
    Convolution(1, 1, 1, channels, channels, 9216 // channels, "float", "float") for channels in (96, 768)
]
"""Layers that run between the measured ones: a layer of a complete network finds neither its weights nor
its memory in a core's caches, since other layers have run in between."""


def parts_of(network: Network, size: int, float_layers: Collection[str] | None) -> list[Convolution | Head]:
    """The parts of a student's file in order.

    Args:
        network: the student.
        size: side of the image in pixels.
        float_layers: layers in float of an int8 file; None for a float file.

    Raises:
        ExportError: a float convolution follows an int8 one.
    """
    parts: list[Convolution | Head] = []
    side = size
    source: Source = "image"
    for layer in network.layers.values():
        part = network.part(layer.name)
        precision: Precision = "float" if float_layers is None or layer.name in float_layers else "int8"
        if isinstance(part, nn.Linear):
            assert source != "image"
            parts.append(Head(part.in_features, part.out_features, side, source, precision))
            continue
        if (source, precision) == ("int8", "float"):
            raise ExportError(
                f"float layer {layer.name} follows an int8 one; "
                "float layers must lead without a gap from the input on"
            )
        kernel, stride = part.kernel_size[0], part.stride[0]
        parts.append(
            Convolution(
                kernel, stride, part.groups, part.in_channels, part.out_channels, side, source, precision
            )
        )
        side = (side + _zeros(network, layer, part) - kernel) // stride + 1
        source = precision
    return _filled(parts)


def _zeros(network: Network, layer: Layer, part: nn.Conv2d) -> int:
    """Number of zeros on both sides of a row that a convolution reads."""
    own = 0 if isinstance(part.padding, str) else 2 * part.padding[1]
    if layer.padding is None:
        return own
    around = network.module.get_submodule(layer.padding)
    assert isinstance(around, nn.ZeroPad2d)
    return own + around.padding[0] + around.padding[1]


def _filled(parts: list[Convolution | Head]) -> list[Convolution | Head]:
    """The parts with the channels that ``layout.fill`` adds."""
    for index, (before, part, after) in enumerate(zip(parts, parts[1:], parts[2:], strict=False)):
        if isinstance(before, Head) or isinstance(part, Head) or isinstance(after, Head):
            continue
        if part.groups > 1 and before.precision == part.precision == "int8":
            count = layout.filled(part.outputs)
            parts[index] = replace(parts[index], outputs=count)
            parts[index + 1] = replace(part, inputs=count, outputs=count, groups=count)
            parts[index + 2] = replace(after, inputs=count)
    return parts


def measure(parts: Sequence[Convolution | Head]) -> list[float]:
    """Microseconds of each part within a network: the median of ``PASSES``."""
    return np.median([_measure_once(parts) for _ in range(PASSES)], axis=0).tolist()


def _measure_once(parts: Sequence[Convolution | Head]) -> list[float]:
    """Microseconds of each part.

    All networks run in turn, as in a latency measurement, so that a machine that slows down affects all of
    them.
    """
    everyone = [*COMPANY, *parts]
    images = [np.full((1, part.side, part.side, 3), 127, np.uint8) for part in everyone]
    with resources.scratch() as folder:
        sessions = [
            open_session(_network(part), profile=folder / str(number)) for number, part in enumerate(everyone)
        ]
        for _ in range(UNTIMED + TIMED):
            for session, image in zip(sessions, images, strict=True):
                session.run(None, {IMAGES: image})
        profiles = [json.loads(Path(session.end_profiling()).read_text()) for session in sessions]
    times = [_time_of(part, events) for part, events in zip(everyone, profiles, strict=True)]
    return times[len(COMPANY) :]


@torch.no_grad()
def file(network: Network, float_layers: Collection[str] | None, contract: InputContract) -> bytes:
    """The ONNX file of a network without batch norms; its int8 layers have arbitrary scales.

    Args:
        network: the student; weights do not matter.
        float_layers: layers in float of an int8 file; None for a float file.
        contract: its input contract; of an int8 stem, it becomes the contract in bytes.
    """
    quantization = None if float_layers is None else _any_quantization(network, float_layers)
    if float_layers is not None and network.stem.name not in float_layers:
        contract = stem.byte_contract(contract)
    return graph.write(network, quantization, contract, CLASSES, "network").SerializeToString()


def measure_ratio(files: Sequence[bytes], size: int) -> float:
    """The latency of the first of two files over that of the second, with one thread and one image, in turn.

    A machine that slows down slows down both. Sessions are opened several times, since the place of their
    memory changes a latency by some per cent.
    """
    image = {IMAGES: np.full((1, size, size, 3), 127, np.uint8)}
    ratios = []
    for _ in range(SESSIONS):
        sessions = [open_session(content) for content in files]
        times = np.zeros((UNTIMED + RUNS, len(sessions)))
        for row in times:
            for index, session in enumerate(sessions):
                began = time.perf_counter()
                session.run(None, image)
                row[index] = time.perf_counter() - began
        fast = np.quantile(times[UNTIMED:], QUANTILE, axis=0)
        ratios.append(fast[0] / fast[1])
    return float(np.median(ratios))


def _time_of(part: Convolution | Head, events: Sequence[Mapping[str, Any]]) -> float:
    """Microseconds of the nodes after the feeder's convolution, up to the part's own convolution or the
    end."""
    nodes = sorted(
        (event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")),
        key=lambda event: event["ts"],
    )
    count = len(nodes) // (UNTIMED + TIMED)
    # The profiler cuts off fractions: half a microsecond on average.
    times = np.array([node["dur"] for node in nodes]).reshape(-1, count)[UNTIMED:] + 0.5
    convolutions = [i for i, node in enumerate(nodes[:count]) if node["args"]["op_name"] in CONVOLUTIONS]
    first = 0 if part.source == "image" else convolutions[0] + 1
    last = count - 1 if isinstance(part, Head) else convolutions[-1]
    return float(np.quantile(times[:, first : last + 1], QUANTILE, axis=0).sum())


@functools.cache
@torch.no_grad()
def _network(part: Convolution | Head) -> bytes:
    """The file of a feeder, the part, and a classifier; an image part has no feeder, a head no layer."""
    units: dict[str, nn.Module] = {}
    float_layers = ["classifier"] if part.precision == "float" else []
    if part.source != "image":
        units["feeder"] = _unit(3, part.inputs)
        float_layers += ["feeder"] if part.source == "float" else []
    channels, classes = part.inputs, CLASSES
    if isinstance(part, Head):
        classes = part.classes
    else:
        units["layer"] = _unit(part.inputs, part.outputs, part.kernel, part.stride, part.groups)
        float_layers += ["layer"] if part.precision == "float" else []
        channels = part.outputs
    units["pool"] = nn.AdaptiveAvgPool2d(1)
    units["flatten"] = nn.Flatten()
    units["classifier"] = nn.Linear(channels, classes)
    network = trace(nn.Sequential(OrderedDict(units)).eval())
    in_float = {part.source, part.precision} <= {"image", "float"}
    quantization = None if in_float else _any_quantization(network, float_layers)
    contract = InputContract(part.side)
    return graph.write(network, quantization, contract, classes, "part").SerializeToString()


def _unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups)
    return unit(conv, nn.ReLU())


def _any_quantization(network: Network, float_layers: Collection[str]) -> Quantization:
    """Arbitrary scales; kernels take the same time with all of them."""
    scales = dict.fromkeys(grid.int8_activations(network, float_layers), grid.PIXEL_SCALE)
    steps = grid.weight_scales(network, 63, float_layers, search=False)
    return Quantization(grid.fit_biases(network, steps, scales), 63, scales, tuple(float_layers))
