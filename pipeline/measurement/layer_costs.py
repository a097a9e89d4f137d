"""This machine's table of what layers cost in ONNX Runtime, and the choices that it decides.

The table lies outside of every checkout, so that all of a user's clones decide by the same numbers. Measured
once more, the numbers differ by some per cent. A choice therefore has a margin that is wider than the noise:
what is within it counts as equal, and of equals the simplest is taken.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from pydantic import TypeAdapter
from torch import nn

from pipeline import cache, provenance
from pipeline.measurement import kernels, machine
from pipeline.measurement.kernels import Convolution, Head, parts_of
from pipeline.models.layers import Network, trace
from pipeline.onnx import graph, layout
from pipeline.quantization import stem
from teachers.contract import InputContract

MARGIN = 0.08
"""Relative difference of the latencies of two int8 files below which they count as equal. On a machine with
ten times as much work as cores, the measured ratio of two files differed by 1 % from one time to the next."""
LARGEST_SHARE = 0.02
"""Largest share of the weights that may stay in float; it makes an int8 file 6 % larger."""

RULES = 2
"""Version of the rules, raised when a change of them makes recorded choices out of date."""

Table = dict[str, dict[str, cache.Measured]]
"""Microseconds of layers, and ratios of networks, by machine."""
TABLE: TypeAdapter[Table] = TypeAdapter(Table)


class Costs:
    """Latencies on this machine with one thread and one image; unknown layers are measured when needed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._machine = name()
        self._measured: dict[str, float] = {}
        self._measured |= self._table().get(self._machine, {})

    def milliseconds(self, module: nn.Module, size: int, float_layers: Collection[str] | None) -> float:
        """Predicted latency of a student's ONNX file.

        Args:
            module: a student; weights and batch norms do not matter.
            size: side of the image in pixels.
            float_layers: layers in float of an int8 file; None for a float file.

        Raises:
            ExportError: a float convolution follows an int8 one; such a file cannot be written.
        """
        return self.total(parts_of(trace(module), size, float_layers))

    def total(self, parts: Sequence[Convolution | Head]) -> float:
        """Milliseconds of all parts of a file together."""
        self.learn(parts)
        return sum(self._measured[str(part)] for part in parts) / 1000

    def speedup(self, parent: nn.Module, module: nn.Module, contract: InputContract) -> float:
        """The latency of the parent's float file over that of a network's, measured as a whole.

        Args:
            parent: the parent without batch norms; weights do not matter.
            module: the network, likewise.
            contract: the input contract of both.
        """
        return self._ratio([(trace(parent), None), (trace(module), None)], contract)

    def slowdown(
        self, network: Network, contract: InputContract, layers: Collection[str], others: Collection[str]
    ) -> float:
        """The latency of an int8 file over that of the file with other float layers, measured as a whole.

        Args:
            network: the student without batch norms; weights do not matter.
            contract: its input contract.
            layers: layers in float of the file.
            others: layers in float of the file with which it is compared.
        """
        return self._ratio([(network, layers), (network, others)], contract)

    def _ratio(
        self, files: Sequence[tuple[Network, Collection[str] | None]], contract: InputContract
    ) -> float:
        described = [str(part) for each, layers in files for part in parts_of(each, contract.size, layers)]
        question = f"ratio {hashlib.sha256(' '.join(described).encode()).hexdigest()}"
        if question not in self._measured:
            with cache.alone(self._file):
                table = self._refresh()
                if question not in self._measured:
                    contents = [kernels.file(each, layers, contract) for each, layers in files]
                    self._measured[question] = kernels.measure_ratio(contents, contract.size)
                    self._save(table)
        return self._measured[question]

    def learn(self, parts: Sequence[Convolution | Head]) -> None:
        """Measure the parts that are not known yet, in turn with those that are.

        A machine is not equally fast at all times. The new times are scaled to the moment at which the others
        were measured, so that all can be compared.
        """
        parts = list(dict.fromkeys(parts))
        if all(str(part) in self._measured for part in parts):
            return
        with cache.alone(self._file):
            table = self._refresh()
            known = [str(part) in self._measured for part in parts]
            if not all(known):
                now = np.array(kernels.measure(parts))
                before = np.array([self._measured.get(str(part), np.nan) for part in parts])
                scale = float(np.nanmedian(before / now)) if any(known) else 1.0
                self._measured |= {
                    str(part): float(time * scale)
                    for part, time, old in zip(parts, now, known, strict=True)
                    if not old
                }
                self._save(table)

    def _table(self) -> Table:
        return cache.read(self._file, TABLE) or {}

    def _refresh(self) -> Table:
        """The table of the file, after taking over what other processes have measured."""
        table = self._table()
        self._measured |= table.get(self._machine, {})
        return table

    def _save(self, table: Table) -> None:
        table[self._machine] = dict(sorted(self._measured.items()))
        cache.write(self._file, TABLE, table)


@dataclass(frozen=True)
class FloatLayers:
    """The choice of the layers that stay in float in an int8 file."""

    layers: tuple[str, ...]
    """The first layers of the network."""
    milliseconds: tuple[float, ...]
    """Predicted latency with the first ``least``, ``least`` + 1, ... layers in float."""
    slowdowns: dict[int, float]
    """Number of float layers to the measured latency of the file, as a multiple of that of the file that is
    predicted to be the fastest; only where it decides."""
    least: int
    """Smallest number of float layers that the input allows."""
    reason: str


FLOAT_LAYERS: TypeAdapter[FloatLayers] = TypeAdapter(FloatLayers)


def open_costs(file: Path) -> Costs:
    """This machine's table, stored in a JSON file, so that the same question always has the same answer."""
    return Costs(file)


def fastest_float_layers(costs: Costs, network: Network, contract: InputContract) -> FloatLayers:
    """The first layers that make an int8 file fastest on this machine if they stay in float.

    Later layers are int8 in any case, since ONNX Runtime turns a float layer between int8 ones into int8.
    The one with the fewest float layers is taken that is within ``MARGIN`` of the fastest. Measured layers
    say which are worth a look, and files that are measured whole and in turn decide. The float layers have at
    most ``LARGEST_SHARE`` of the weights, since they are stored in four times the bytes. Few contracts need
    a float stem; see ``quantization.stem``.

    Args:
        costs: this machine's table.
        network: the student without batch norms.
        contract: its input contract.
    """
    weights = {name: part.weight.numel() for name, part in network.parts.items()}
    names = list(weights)
    float_stem = stem.reason_for_float(network, contract)
    least = 0 if float_stem is None else 1
    choices = [
        names[:count]
        for count in range(least, len(names))
        if count <= 1 or sum(weights[name] for name in names[:count]) <= LARGEST_SHARE * sum(weights.values())
    ]
    files = [parts_of(network, contract.size, choice) for choice in choices]
    costs.learn([part for parts in files for part in parts])
    latencies = [costs.total(parts) for parts in files]
    best = latencies.index(min(latencies))
    slowdowns: dict[int, float] = {}
    for index, latency in enumerate(latencies[:best]):
        if latency > (1 + 2 * MARGIN) * latencies[best]:
            continue
        slowdowns[least + index] = costs.slowdown(network, contract, choices[index], choices[best])
        if slowdowns[least + index] <= 1 + MARGIN:
            best = index
            break
    return FloatLayers(
        tuple(choices[best]),
        tuple(round(latency, 4) for latency in latencies),
        slowdowns,
        least,
        f"the fewest float layers whose file is within {MARGIN:.0%} of the fastest"
        + (f"; {float_stem}" if float_stem else ""),
    )


def table(choice: FloatLayers) -> str:
    """The choice as text: the predicted milliseconds by number of float layers, and the reason."""
    counts = range(choice.least, choice.least + len(choice.milliseconds))
    times = ", ".join(f"{ms:.2f} with {n}" for n, ms in zip(counts, choice.milliseconds, strict=True))
    count = len(choice.layers)
    kept = f"{count or 'no'} {'layer stays' if count == 1 else 'layers stay'} in float"
    return f"predicted ms by number of layers in float: {times}; {kept}: {choice.reason}"


def name() -> str:
    """The conditions of the times: the processor, the runtime, and the code that writes the graph.

    Comments and docstrings of that code do not count.
    """
    code = "".join(
        provenance.plain_code(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for module in (graph, layout)
    )
    writer = hashlib.sha256(code.encode()).hexdigest()[:12]
    return f"{runtime()}, graphs {writer}"


def runtime() -> str:
    """The processor and the runtime."""
    description = machine.describe()
    return f"{description['cpu']} {' '.join(description['flags'])}, onnxruntime {ort.__version__}"
