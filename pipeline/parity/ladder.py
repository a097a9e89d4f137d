"""The parity ladder: one network at every step from floating point to the shipped file, on the same images.

Each rung changes one thing, so that a loss of accuracy shows where it arises. Between rungs that must
compute the same, answers may differ only in ties. In floating point a tie is two logits whose distance is
less than ``FLOAT_TIE`` of their spread. Among integers it is a value within ``layerwise.TIE`` of the middle
between two steps, where the order of floating-point sums decides which way it is rounded; where great sums
cancel, within what single precision loses of them. Everywhere else, in every layer, the simulator must give
the runtime's integers when it reads the runtime's integers, and the runtime's logits in the end. Fake
quantisation does not round its biases to whole steps of the sums; where that moves a value across the middle,
it is a tie, too. In half precision a tie is two logits that its roundings move past each other: how much is
rounded differs between devices, so one rung rounds everything, as GPUs do. How many answers such ties change
depends on how near the answers are to each other, so their number is reported and limits nothing.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from pipeline import resources
from pipeline.errors import DistilleryError
from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import Network
from pipeline.models.storage import Model
from pipeline.onnx import export, layout
from pipeline.onnx.graph import LOGITS
from pipeline.onnx.sessions import FUSED, PLAIN, open_session
from pipeline.parity import floating_point, layerwise, saturation
from pipeline.quantization.half_precision import round_outputs
from pipeline.quantization.simulator import fake_quantize, simulate
from pipeline.tasks import SINGLE_LABEL, TASKS, Task

FLOAT_TIE = 1e-4
"""Greatest distance of two logits that tie, as a share of the logits' spread."""
COMPARED_TOGETHER = 32
"""Number of images whose activations are compared at once."""

RungName = Literal[
    "torch_float",
    "torch_half",
    "onnx_float",
    "fake_quant",
    "simulator",
    "sums_16_bit",
    "onnx_plain",
    "onnx",
    "litert",
]
Images = UInt8[Tensor, "batch height width 3"]
Logits = Float[Tensor, "batch classes"]


class ParityError(DistilleryError):
    """Two rungs differ that must be equal; the message names the first layer that diverges."""


@dataclass(frozen=True)
class Rung:
    """One way to compute the same network."""

    name: RungName
    answer: Callable[[Images], Logits] | None
    """The computation; None if it is proven to give the answers of ``against``."""
    against: RungName | None = None
    """The earlier rung that this one is compared with."""
    diverges: Callable[[Images, float], str | None] | None = None
    """Explains different answers to some images, given the spread of all logits, and returns None if they are
    ties. The function itself is None if the two rungs are different networks, whose answers may differ."""


def climb(
    model: Model,
    path: Path,
    batches: Iterable[Images],
    labels: np.ndarray,
    *,
    threads: int = 1,
    skip: Collection[RungName] = (),
) -> dict[str, Any]:
    """Compute the same images at every rung.

    Args:
        model: the saved model.
        path: its shipped file.
        batches: images in the order of the labels.
        labels: classes, or targets of attributes.
        threads: number of threads of ONNX Runtime.
        skip: rungs to leave out, with all comparisons against them.

    Returns:
        ``n`` and ``rungs``, from floating point to the shipped file. Each rung has its score; the share of
        answers that equal those of the rung named by ``against`` (``agreement``), the number of ``ties``
        among the others, the greatest distance of such an answer from being equal (``margin``, as a share
        of the logits' spread), and the greatest difference of a logit (``logits``); and the share of
        answers that equal the shipped file's (``shipped``). For int8 there is also ``pair_sums``, the least
        and greatest sum of two products that any image can cause: within -32768 and 32767, 16 bits change
        nothing, and that rung is not computed but ``proven``.

    Raises:
        ParityError: answers differ that are not ties.
    """
    with resources.scratch() as folder:
        if model.quantization is None:
            rungs, more = _float_rungs(model, path, threads), {}
        else:
            rungs, more = _int8_rungs(model, path, folder / "twin.onnx", threads)
        rungs = [
            replace(rung, against=None) if rung.against in skip else rung
            for rung in rungs
            if rung.name not in skip
        ]
        results = compare_rungs(model, rungs, batches, labels)
    return {"n": len(labels), "rungs": results, **more}


@torch.no_grad()
def compare_rungs(
    model: Model, rungs: Sequence[Rung], batches: Iterable[Images], labels: np.ndarray
) -> list[dict[str, Any]]:
    """The result of each of some rungs, of which one is ``onnx``; see ``climb``.

    Raises:
        ParityError: answers differ that are not ties.
    """
    task = TASKS[model.card.task]
    answers: dict[str, list[Logits]] = {rung.name: [] for rung in rungs}
    unlike: dict[str, list[Images]] = {rung.name: [] for rung in rungs}
    for images in batches:
        for rung in rungs:
            other = answers[rung.against][-1] if rung.against else torch.empty(0)
            answers[rung.name].append(rung.answer(images) if rung.answer else other)
            if rung.against:
                unlike[rung.name].append(images[~_same(answers[rung.name][-1], other, task)])
    logits = {name: torch.cat(parts) for name, parts in answers.items()}
    return [_compare(rung, logits, unlike[rung.name], labels, task, model) for rung in rungs]


def _compare(
    rung: Rung,
    logits: Mapping[str, Logits],
    apart: Sequence[Tensor],
    labels: np.ndarray,
    task: Task,
    model: Model,
) -> dict[str, Any]:
    """A rung's result, after it was compared with the rung before.

    Raises:
        ParityError: see ``climb``.
    """
    own = logits[rung.name]
    result: dict[str, Any] = {
        "rung": rung.name,
        task.metric: task.score(task.predictions(own.numpy()), labels),
    }
    if rung.against is not None:
        other, unlike = logits[rung.against], torch.cat(list(apart))
        spread, reason = _spread(other), None
        if rung.diverges and len(unlike):
            reasons = (rung.diverges(images, spread) for images in unlike.split(COMPARED_TOGETHER))
            reason = next((each for each in reasons if each), None)
        if reason:
            raise ParityError(
                f"{model.card.variant}: {rung.name} answers {len(unlike)} of {len(own)} images differently "
                f"from {rung.against}; {reason}"
            )
        result |= {
            "against": rung.against,
            "agreement": 1 - len(unlike) / len(own),
            "ties": len(unlike) if rung.diverges else 0,
            "margin": margin(own, other, task) / spread,
            "logits": float((own - other).abs().max()),
        }
    if rung.answer is None:
        result["proven"] = True
    return result | {"shipped": float(_same(own, logits["onnx"], task).double().mean())}


def _same(own: Logits, other: Logits, task: Task) -> Bool[Tensor, " batch"]:
    """Whether answers are the same class, or the same attributes."""
    if task is SINGLE_LABEL:
        return own.argmax(1) == other.argmax(1)
    return ((own > 0) == (other > 0)).all(dim=1)


def _float_rungs(model: Model, path: Path, threads: int) -> list[Rung]:
    network = fold_batch_norm(model)
    rounded = round_outputs(network) if model.half else None

    def file(name: RungName, level: ort.GraphOptimizationLevel, against: RungName) -> Rung:
        outputs = partial(layerwise.outputs_of_file, path, level=level)
        diverges = partial(untied_divergence, model, network, outputs, rounded=rounded)
        return Rung(name, file_answers(path, level, threads), against, diverges)

    return [
        Rung("torch_float", module_answers(model, model.module)),
        *([Rung("torch_half", module_answers(model, rounded), "torch_float")] if rounded else []),
        file("onnx_plain", PLAIN, "torch_float"),
        file("onnx", FUSED, "onnx_plain"),
    ]


def _int8_rungs(model: Model, path: Path, twin: Path, threads: int) -> tuple[list[Rung], dict[str, Any]]:
    quantization = model.quantization
    assert quantization is not None
    network = fold_batch_norm(model)
    rounded, simulated = fake_quantize(network, quantization), simulate(network, quantization)
    zeros = layout.paired_stem(network, quantization, model.card.input.size)
    rows = {network.stem.weights: zeros[0]} if zeros else {}
    extremes = saturation.extremes(simulated, rows)
    safe = extremes[0] >= saturation.LEAST and extremes[1] <= saturation.GREATEST
    zero_points = {network.stem.weights: model.card.input.zero_point or 0}
    saturating = simulated if safe else saturation.saturate(simulated, rows, zero_points)
    # A file with the same weights and activations in float.
    export.export(replace(model, quantization=None), twin, {})
    twins, plain, fused = (
        file_answers(*opened, threads) for opened in ((twin, FUSED), (path, PLAIN), (path, FUSED))
    )
    outputs_of_twin = partial(layerwise.outputs_of_file, twin, level=FUSED)
    in_16_bit = not safe and saturation.sums_may_saturate()
    compare = partial(_int8_divergence, model, network)
    rungs = [
        Rung("torch_float", module_answers(model, network.module)),
        Rung("onnx_float", twins, "torch_float", partial(untied_divergence, model, network, outputs_of_twin)),
        Rung("fake_quant", module_answers(model, rounded), "onnx_float"),
        Rung(
            "simulator",
            module_answers(model, simulated),
            "fake_quant",
            partial(_rounding_divergence, model, network, rounded, simulated),
        ),
        Rung("sums_16_bit", None if safe else module_answers(model, saturating), "simulator"),
        Rung("onnx_plain", plain, "simulator", partial(compare, simulated, path, PLAIN)),
        Rung("onnx", fused, "sums_16_bit", partial(compare, saturating, path, FUSED))
        if in_16_bit
        else Rung("onnx", fused, "simulator", partial(compare, simulated, path, FUSED)),
    ]
    return rungs, {"pair_sums": list(extremes)}


def module_answers(model: Model, module: nn.Module) -> Callable[[Images], Logits]:
    """The rung of a module in the shape of the model's."""
    return lambda images: module(model.card.input.normalise(images))


def file_answers(path: Path, level: ort.GraphOptimizationLevel, threads: int) -> Callable[[Images], Logits]:
    """The rung of an ONNX file."""
    session = open_session(path, level=level, threads=threads)
    return lambda images: torch.from_numpy(layerwise.answers(session, images))


@torch.no_grad()
def untied_divergence(
    model: Model,
    network: Network,
    outputs: Callable[[Sequence[str], Images], Mapping[str, Tensor]],
    images: Images,
    spread: float,
    rounded: nn.Module | None = None,
) -> str | None:
    """The first layer of a float file whose output drifts from the module's, in words; None if none does, or
    if the logits tie.

    Args:
        model: the saved model.
        network: the folded network.
        outputs: function that returns the named activations of the file, and its logits.
        images: the images whose answers differ.
        spread: greatest less least of all logits.
        rounded: the network in half precision, if the file has it.
    """
    normalised = model.card.input.normalise(images)
    actual = outputs(layerwise.activations(network), images)
    if margin(network.module(normalised), actual[LOGITS], TASKS[model.card.task]) <= FLOAT_TIE * spread:
        return None
    return floating_point.float_divergence(network, actual, spread, normalised, rounded)


def _int8_divergence(
    model: Model,
    network: Network,
    simulated: nn.Module,
    path: Path,
    level: ort.GraphOptimizationLevel,
    images: Images,
    _spread_of_logits: float,
) -> str | None:
    """The first layer with integers to which the simulator's values do not round, even in a tie."""
    assert model.quantization is not None
    integers = layerwise.integers_of_file(path, network, images, level)
    normalised = model.card.input.normalise(images)
    return layerwise.compare(
        integers, simulated, network, model.quantization, normalised, whole_sums=level is FUSED
    ).divergence


def _rounding_divergence(
    model: Model,
    network: Network,
    rounded: nn.Module,
    simulated: nn.Module,
    images: Images,
    _spread_of_logits: float,
) -> str | None:
    """The first layer with integers to which fake quantisation does not round, even in a tie."""
    assert model.quantization is not None
    normalised = model.card.input.normalise(images)
    integers = layerwise.integers_of_module(rounded, network, model.quantization, normalised)
    return layerwise.compare(
        integers,
        simulated,
        network,
        model.quantization,
        normalised,
        whole_sums=False,
        whole_biases=False,
    ).divergence


def margin(own: Logits, other: Logits, task: Task) -> float:
    """The greatest distance of an answer that differs from being equal, in logits; 0 if none differs."""
    if task is not SINGLE_LABEL:
        differ = (own > 0) != (other > 0)
        return max(float((logits.abs() * differ).max()) for logits in (own, other))
    answers = own.argmax(1, keepdim=True), other.argmax(1, keepdim=True)
    gaps = [logits.gather(1, answers[0]) - logits.gather(1, answers[1]) for logits in (own, other)]
    return max(float(gap.abs().max()) for gap in gaps)


def _spread(values: Tensor) -> float:
    return max(float(values.max() - values.min()), 1e-12)
