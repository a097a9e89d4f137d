"""What a network costs in ONNX Runtime on the machine at hand: a table of measured layers.

Multiply-accumulates do not tell it: a kernel that likes 16 channels takes several times as long for 24, the
first layers are faster in float than in int8, and between the two stand nodes that only convert.

A layer is measured inside a network of its own, as ``onnx_graph`` writes it: a feeder that hands it an
activation in the layout and precision of the layer before, the layer, and a classifier. ONNX Runtime's
profiler times each node, so the layer's time is that of the kernel which the optimiser chose, together with
the conversions right before it. Between the runs the caches are filled with something else, since a layer
of a whole network does not find its weights there either.
"""

import functools
import hashlib
import json
import tempfile
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from pipeline.measurement import machine
from pipeline.models.storage import Affine, Quantization
from pipeline.onnx import graph, layout
from pipeline.onnx.graph import CONVOLUTIONS, ExportError
from pipeline.quantization.simulator import IMAGES, RAW_PIXELS, int8_activations, layers
from teachers.contract import InputContract

UNTIMED, TIMED = 2, 16
"""Runs of a layer's network."""
SESSIONS, RUNS = 8, 60
"""Of two whole networks in turn."""
QUANTILE = 0.1
"""Of the timed runs; a neighbour on the same core only ever adds time."""
ALIKE = 0.02
"""Relative difference of two predicted latencies that means nothing."""
LARGEST_SHARE = 0.02
"""Of the weights that may stay float: they would make an int8 file 6 % larger."""
CLASSES = 10
"""Of a layer's network; nothing of its classifier is counted."""

Precision = Literal["float", "int8"]
Source = Literal["image", "float", "int8"]


@dataclass(frozen=True)
class Convolution:
    """A convolution with its activation, and what has to be done to what it reads."""

    kernel: int
    stride: int
    groups: int
    inputs: int
    outputs: int
    side: int
    """Of the map that it reads, in pixels."""
    source: Source
    """What it reads; ``image`` is the first layer, with the normalisation before it."""
    precision: Precision

    def __str__(self) -> str:
        grouped = f" in {self.groups} groups" if self.groups > 1 else ""
        return (
            f"{self.precision} {self.kernel}x{self.kernel}/{self.stride} convolution{grouped}, "
            f"{self.inputs} to {self.outputs} channels at {self.side} px, from {self.source}"
        )


@dataclass(frozen=True)
class Head:
    """Global average pooling and the classifier, to the end."""

    inputs: int
    classes: int
    side: int
    """Of the last map, in pixels."""
    source: Precision
    precision: Precision

    def __str__(self) -> str:
        return (
            f"{self.precision} pool and classifier, {self.inputs} channels at {self.side} px to "
            f"{self.classes} classes, from {self.source}"
        )


class Costs:
    """Latencies on this machine with one thread and one image; layers that were never met are measured."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._machine = _machine()
        known = json.loads(cache.read_text()) if cache.exists() else {}
        self._measured: dict[str, float] = known.get(self._machine, {})
        """Microseconds of layers, ratios of networks."""

    def milliseconds(self, module: nn.Module, size: int, float_layers: Collection[str] | None) -> float:
        """Predicted latency of a student's ONNX file.

        Args:
            module: a chain of convolutions, pooling and a classifier, in their order of definition; weights
                and batch norms do not matter.
            size: side of the image in pixels.
            float_layers: None for a float file; otherwise the file is int8 but for these layers.

        Raises:
            ExportError: a float convolution follows an int8 one; such a file cannot be written.
        """
        parts = parts_of(module, size, float_layers)
        self.learn(parts)
        return sum(self._measured[str(part)] for part in parts) / 1000

    def speedup(self, parent: nn.Module, module: nn.Module, contract: InputContract) -> float:
        """How many times as fast a float file is as its parent's; measured whole, not added up.

        Args:
            parent: without batch norms; weights do not matter.
            module: of the same kind.
            contract: of both.
        """
        told = [str(part) for one in (parent, module) for part in parts_of(one, contract.size, None)]
        question = f"speedup {hashlib.sha256(' '.join(told).encode()).hexdigest()}"
        if question not in self._measured:
            self._measured[question] = measure_speedup(parent, module, contract)
            self._save()
        return self._measured[question]

    def learn(self, parts: Sequence[Convolution | Head]) -> None:
        """Measure what is not known yet; what is to be compared closely is best learnt at once."""
        if new := [part for part in dict.fromkeys(parts) if str(part) not in self._measured]:
            self._measured |= {str(part): time for part, time in zip(new, measure(new), strict=True)}
            self._save()

    def _save(self) -> None:
        known = json.loads(self._cache.read_text()) if self._cache.exists() else {}
        known[self._machine] = dict(sorted(self._measured.items()))
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._cache.with_suffix(".new")
        fresh.write_text(json.dumps(known, indent=2) + "\n")
        fresh.replace(self._cache)  # in one step, which no kill can halve


COMPANY = [
    Convolution(1, 1, 1, channels, channels, 9216 // channels, "float", "float") for channels in (96, 768)
]
"""Run between the measured ones: a layer of a whole network finds neither its weights nor its memory in a
core's caches, since other layers and other networks ran since."""


def open_costs(cache: Path) -> Costs:
    """This machine's table, kept in a JSON file, so that the same question always has the same answer."""
    return Costs(cache)


def fastest_float_layers(costs: Costs, module: nn.Module, contract: InputContract) -> tuple[str, ...]:
    """The first layers that an int8 file had better leave in float on this machine.

    Later ones are int8 at any rate: ONNX Runtime makes a float layer between int8 ones int8 by itself. Of
    choices that are as fast within ``ALIKE``, that with the fewest float layers is taken. Together they have
    at most ``LARGEST_SHARE`` of the weights, since they are stored in four times the bytes. Images with a
    mean or a standard deviation of their own need a float stem.
    """
    weights = {name: layer.weight.numel() for name, layer in layers(module).items()}
    names = list(weights)
    choices = [
        names[:count]
        for count in range(0 if contract.is_plain else 1, len(names))
        if count <= 1 or sum(weights[name] for name in names[:count]) <= LARGEST_SHARE * sum(weights.values())
    ]
    costs.learn([part for choice in choices for part in parts_of(module, contract.size, choice)])
    latencies = [costs.milliseconds(module, contract.size, choice) for choice in choices]
    good = next(i for i, latency in enumerate(latencies) if latency <= (1 + ALIKE) * min(latencies))
    return tuple(choices[good])


def parts_of(module: nn.Module, size: int, float_layers: Collection[str] | None) -> list[Convolution | Head]:
    """What the file of a student is made of, in order; arguments as in ``Costs.milliseconds``."""
    parts: list[Convolution | Head] = []
    side, padding = size, 0
    source: Source = "image"
    for name, part in module.named_modules():
        if isinstance(part, nn.ZeroPad2d):
            padding = part.padding[0] + part.padding[1]
        if not isinstance(part, nn.Conv2d | nn.Linear):
            continue
        is_float = float_layers is None or name.removesuffix(".conv") in float_layers
        precision: Precision = "float" if is_float else "int8"
        if isinstance(part, nn.Linear):
            assert source != "image"
            parts.append(Head(part.in_features, part.out_features, side, source, precision))
            continue
        if (source, precision) == ("int8", "float"):
            raise ExportError(
                f"float layer {name.removesuffix('.conv')} follows an int8 one; "
                "float layers must lead without a gap from the input on"
            )
        kernel, stride = part.kernel_size[0], part.stride[0]
        parts.append(
            Convolution(
                kernel, stride, part.groups, part.in_channels, part.out_channels, side, source, precision
            )
        )
        around = 0 if isinstance(part.padding, str) else 2 * part.padding[0]
        side, padding = (side + padding + around - kernel) // stride + 1, 0
        source = precision
    return _filled(parts)


def _filled(parts: list[Convolution | Head]) -> list[Convolution | Head]:
    """With the channels that ``onnx_layout.fill`` adds."""
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
    """Microseconds of each part within a network.

    All networks run in turn, as in a latency measurement, so that a machine that slows down slows all alike.
    """
    everyone = [*COMPANY, *parts]
    images = [np.full((1, part.side, part.side, 3), 127, np.uint8) for part in everyone]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for number, part in enumerate(everyone):
            options.profile_file_prefix = str(Path(folder) / str(number))
            sessions.append(ort.InferenceSession(_network(part), options, providers=["CPUExecutionProvider"]))
        for _ in range(UNTIMED + TIMED):
            for session, image in zip(sessions, images, strict=True):
                session.run(None, {IMAGES: image})
        profiles = [json.loads(Path(session.end_profiling()).read_text()) for session in sessions]
    times = [_time_of(part, events) for part, events in zip(everyone, profiles, strict=True)]
    return times[len(COMPANY) :]


def measure_speedup(parent: nn.Module, module: nn.Module, contract: InputContract) -> float:
    """The ratio of the latencies of two networks without batch norms, one thread and one image, interleaved.

    Sessions are opened several times, since where their memory lies moves a latency by some per cent.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    files = [
        graph.write(network, None, contract, CLASSES, "network").SerializeToString()
        for network in (parent, module)
    ]
    image = {IMAGES: np.full((1, contract.size, contract.size, 3), 127, np.uint8)}
    ratios = []
    for _ in range(SESSIONS):
        sessions = [ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
        times = np.zeros((UNTIMED + RUNS, len(sessions)))
        for row in times:
            for index, session in enumerate(sessions):
                began = time.perf_counter()
                session.run(None, image)
                row[index] = time.perf_counter() - began
        middle = np.median(times[UNTIMED:], axis=0)
        ratios.append(middle[0] / middle[1])
    return float(np.exp(np.mean(np.log(ratios))))


def _time_of(part: Convolution | Head, events: Sequence[Mapping[str, Any]]) -> float:
    """Microseconds of the nodes after the feeder's convolution, to the part's own or to the end."""
    nodes = sorted(
        (event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")),
        key=lambda event: event["ts"],
    )
    count = len(nodes) // (UNTIMED + TIMED)
    # The profiler cuts off fractions: half a microsecond on average.
    times = np.array([node["dur"] for node in nodes]).reshape(-1, count)[UNTIMED:] + 0.5
    own = [i for i, node in enumerate(nodes[:count]) if node["args"]["op_name"] in CONVOLUTIONS]
    first = 0 if part.source == "image" else own[0] + 1
    last = count - 1 if isinstance(part, Head) else own[-1]
    return float(np.quantile(times[:, first : last + 1], QUANTILE, axis=0).sum())


@functools.cache
@torch.no_grad()
def _network(part: Convolution | Head) -> bytes:
    """The file of a feeder, the part, and a classifier; the first layer has no feeder, a head no layer."""
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
    network = nn.Sequential(OrderedDict(units)).eval()
    whole_float = {part.source, part.precision} <= {"image", "float"}
    quantization = None if whole_float else _any_quantization(network, float_layers)
    contract = InputContract(part.side)
    return graph.write(network, quantization, contract, classes, "part").SerializeToString()


def _unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups)
    return nn.Sequential(OrderedDict(conv=conv, act=nn.ReLU()))


def _any_quantization(network: nn.Module, float_layers: list[str]) -> Quantization:
    """Some scales; kernels take the same time with all."""
    return Quantization(
        weight_scales={
            name: layer.weight.flatten(1).abs().amax(dim=1) / 63
            for name, layer in layers(network).items()
            if name not in float_layers
        },
        weight_limit=63,
        activations={
            name: RAW_PIXELS if name == IMAGES else Affine(1 / 255, 0)
            for name in int8_activations(network, float_layers)
        },
        float_layers=tuple(float_layers),
    )


def _machine() -> str:
    """What the times depend on: the processor, the runtime, and how the graph is written."""
    told = machine.describe()
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (graph, layout))
    writer = hashlib.sha256(code).hexdigest()[:12]
    return f"{told['cpu']} {' '.join(told['flags'])}, onnxruntime {ort.__version__}, graphs {writer}"
