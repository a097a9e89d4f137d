"""Post-training quantisation: what may be done to a student, and the choice of what helps it."""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.models.storage import Model, Quantization
from pipeline.onnx import export
from pipeline.onnx.inference import open_classifier, run
from pipeline.quantization import simulator
from pipeline.quantization.calibrators import entropy_clip, percentile_clip
from pipeline.quantization.equalisation import equalise
from pipeline.quantization.rounding import round_adaptively
from pipeline.quantization.simulator import Batches, Clip, Histogram, least_squares_clip
from pipeline.tasks import Task

Step = Literal[
    "entropy_ranges",
    "percentile_ranges",
    "greatest_weights",
    "equalisation",
    "adaptive_rounding",
    "bias_correction",
]
"""What may be done beyond least-squares ranges, least-squares steps of weights and nearest rounding."""
STEPS: tuple[Step, ...] = get_args(Step)

CLIPS: dict[Step, Clip] = {"entropy_ranges": entropy_clip, "percentile_ranges": percentile_clip}
ROUNDS: tuple[tuple[Step, ...], ...] = (
    tuple(CLIPS),
    ("greatest_weights",),
    ("equalisation",),
    ("adaptive_rounding",),
    ("bias_correction",),
)
"""Alternatives that are tried on top of what was kept before, in this order."""

ROUNDING_IMAGES = 128
"""Held in memory, with one activation of each."""
TIE = 2.0
"""Standard errors of the images' differences within which two candidates are equal."""
GUARD = 0.005
"""Fraction of 1 that a step which brings the answers nearer may cost of the score on val."""


@dataclass(frozen=True)
class Judgement:
    """A candidate's answers on val against its parent's."""

    divergences: Float[np.ndarray, " images"]
    """KL divergence from the parent's answer, in nats, of each image."""
    score: float
    """The task's metric, a fraction of 1, by the labels."""


Judge = Callable[[nn.Module, Quantization], Judgement]
"""Looks at a folded module with its weights on the grid."""


@dataclass(frozen=True)
class Candidate:
    """One set of steps, and how near its answers are to the parent's."""

    steps: tuple[Step, ...]
    divergence: float
    """Mean KL divergence from the parent's answers on val, in nats."""
    score: float
    """The task's metric on the same images, a fraction of 1."""
    images: int
    kept: bool
    """Whether it was the best so far, beyond a tie."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        return {**asdict(self), "steps": list(self.steps)}


class Workbench:
    """A student on its way to int8; what several sets of steps share is made once."""

    def __init__(
        self, model: Model, batches: Batches, *, weight_limit: int, float_layers: Collection[str]
    ) -> None:
        folded, _ = simulator.fold_batch_norm(model.module, model.card.architecture, model.card.arguments)
        self._folded = folded.requires_grad_(False)
        self._batches = batches
        self._weight_limit = weight_limit
        self._float_layers = tuple(float_layers)
        self._network = cache(self._make_network)
        self._ranges = cache(self._make_ranges)
        self._grid = cache(self._make_grid)
        self._images = cache(lambda: first_images(batches, ROUNDING_IMAGES))

    def make(self, steps: Collection[Step]) -> tuple[nn.Module, Quantization]:
        """The folded module with its weights on the grid, and the scales; for these steps, in any order."""
        baked, found = self._grid(frozenset(steps) - {"bias_correction"})
        if "bias_correction" in steps:
            module, _ = self._network("equalisation" in steps)
            images = self._images()[: simulator.CORRECTION_IMAGES]
            baked = simulator.correct_biases(baked, module, found, images)
        return baked, found

    def _make_grid(self, steps: frozenset[Step]) -> tuple[nn.Module, Quantization]:
        """All but the correction of biases."""
        equal = "equalisation" in steps
        module, _ = self._network(equal)
        scales = simulator.weight_scales(
            module, self._weight_limit, self._float_layers, search="greatest_weights" not in steps
        )
        clip = next((step for step in CLIPS if step in steps), None)
        found = Quantization(scales, self._weight_limit, self._ranges(equal, clip), self._float_layers)
        if "adaptive_rounding" in steps:
            return round_adaptively(module, found, self._images()), found
        return simulator.bake(module, scales, self._weight_limit), found

    def _make_network(self, equal: bool) -> tuple[nn.Module, dict[str, Histogram]]:
        module = equalise(self._folded, self._batches) if equal else self._folded
        return module, simulator.activation_histograms(module, self._batches, self._float_layers)

    def _make_ranges(self, equal: bool, step: Step | None) -> dict[str, Any]:
        module, histograms = self._network(equal)
        clip = CLIPS[step] if step else least_squares_clip
        return simulator.ranges(module, histograms, self._float_layers, clip)


def quantize(
    model: Model,
    batches: Batches,
    *,
    weight_limit: int = 127,
    float_layers: Collection[str] = (),
    steps: Collection[Step] = ("bias_correction",),
) -> tuple[nn.Module, Quantization]:
    """Post-training quantisation by given steps, on the CPU: the folded module on its grid, and the scales.

    The module is built without batch norms, so a card must say ``norm=False`` among its arguments.

    Raises:
        ValueError: the weight limit or a float layer is not allowed, or calibration is not possible.
    """
    return Workbench(model, batches, weight_limit=weight_limit, float_layers=float_layers).make(steps)


def choose(bench: Workbench, judge: Judge) -> tuple[nn.Module, Quantization, list[Candidate]]:
    """The steps that bring a student's answers on val nearest to its parent's; the last one kept is returned.

    Each round's best alternative is kept where the mean divergence falls by more than a tie, over the
    same images, and the score by no more than ``GUARD`` of the plain candidate's. Ties go to what is simpler.

    Top-1 itself would be a choice by noise: on 1,000 images it moves by some flips either way, while the
    divergence sees every image.
    """
    steps: tuple[Step, ...] = ()
    best = bench.make(steps)
    plain = judged = judge(*best)
    candidates = [_candidate(steps, judged, kept=True)]
    for alternatives in ROUNDS:
        options: list[tuple[Step, ...]] = [
            tuple(step for step in STEPS if step in {*steps, new}) for new in alternatives
        ]
        made = [bench.make(option) for option in options]
        answers = [judge(*each) for each in made]
        first = min(range(len(options)), key=lambda i: answers[i].divergences.mean())
        better = _beyond_a_tie(judged.divergences - answers[first].divergences)
        kept = better and answers[first].score >= plain.score - GUARD
        candidates += [
            _candidate(option, answer, kept=kept and i == first)
            for i, (option, answer) in enumerate(zip(options, answers, strict=True))
        ]
        if kept:
            steps, best, judged = options[first], made[first], answers[first]
    return *best, candidates


def judge_files(
    parent: Model,
    images: Sequence[UInt8[Tensor, "batch height width 3"]],
    labels: np.ndarray,
    task: Task,
    *,
    threads: int,
) -> Judge:
    """Judge candidates by what would ship: a file of each in ONNX Runtime, against the parent's file.

    Args:
        parent: in float.
        images: of val, rendered by the parent's contract.
        labels: in the same order.
        task: what the student is asked.
        threads: of ONNX Runtime.

    Raises:
        ExportError: a candidate cannot be written; ``onnx_export.export`` says when.
    """
    card = replace(parent.card, arguments={**parent.card.arguments, "norm": False})

    def answers(model: Model) -> Float[Tensor, "images classes"]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "candidate.onnx"
            export.export(model, file, export.metadata_for(model.card, model.quantization))
            classifier = open_classifier(file, threads=threads)
            logits = np.concatenate(list(run(classifier, (batch.numpy() for batch in images))))
        return torch.from_numpy(logits)

    wanted = answers(parent).double()

    def judge(module: nn.Module, found: Quantization) -> Judgement:
        logits = answers(Model(module, card, found))
        pairs = zip(logits.double().split(1), wanted.split(1), strict=True)
        divergences = np.array([float(task.kl(own, parents, 1.0)) for own, parents in pairs])
        return Judgement(divergences, task.score(task.predictions(logits), labels))

    return judge


def applied(candidates: Sequence[Candidate]) -> tuple[Step, ...]:
    """The steps of the last candidate that was kept."""
    return [candidate for candidate in candidates if candidate.kept][-1].steps


def table(candidates: Iterable[Candidate]) -> str:
    """The candidates, a line each."""
    lines = [f"{'KL to parent':>12}  {'val, %':>6}  kept  steps"]
    lines += [
        f"{c.divergence:12.2e}  {c.score:6.2%}  {'yes' if c.kept else '':4}  {', '.join(c.steps) or 'none'}"
        for c in candidates
    ]
    return "\n".join(lines)


def first_images(batches: Batches, count: int) -> Float[Tensor, "batch 3 height width"]:
    """The first calibration images, on the CPU."""

    def parts() -> Iterator[Tensor]:
        missing = count
        for batch in batches():
            yield batch[:missing].cpu()
            missing -= len(batch)
            if missing <= 0:
                return

    return torch.cat(list(parts()))


def _candidate(steps: tuple[Step, ...], judged: Judgement, *, kept: bool) -> Candidate:
    mean = float(judged.divergences.mean())
    return Candidate(steps, mean, judged.score, len(judged.divergences), kept)


def _beyond_a_tie(gains: Float[np.ndarray, " images"]) -> bool:
    """Whether the mean of paired differences is above zero by more than its noise."""
    return bool(gains.mean() > TIE * gains.std() / len(gains) ** 0.5)


Score = TypeVar("Score")


@dataclass(frozen=True)
class LayerScores(Generic[Score]):
    """What quantising one layer costs, seen from both sides."""

    alone: Score
    """Score with this layer in int8 and all others in float."""
    spared: Score
    """Score with this layer in float and all others in int8."""


def sensitivity(
    model: Model, batches: Batches, *, weight_limit: int, score: Callable[[nn.Module], Score]
) -> dict[str, LayerScores[Score]]:
    """Score a student with one layer quantised at a time, and with all but one.

    Weights and ranges are by least squares, nothing else is done; a layer brings the activations that it
    reads and writes. The stem is quantised only where it reads plain bytes (mean 0, standard deviation 1).

    Args:
        model: in float, with batch norms or without.
        batches: normalised calibration images.
        weight_limit: 127 or 63.
        score: from a network for normalised images, on the CPU, that computes as the runtime does.

    Raises:
        ValueError: the weight limit is not allowed, or calibration is not possible.
    """
    folded, _ = simulator.fold_batch_norm(model.module, model.card.architecture, model.card.arguments)
    inputs = simulator.layer_inputs(folded)
    fixed = [
        name for name, read in inputs.items() if read == simulator.IMAGES and not model.card.input.is_plain
    ]
    whole = Quantization(
        simulator.weight_scales(folded, weight_limit, fixed),
        weight_limit,
        simulator.activation_ranges(folded, batches, fixed),
        tuple(fixed),
    )

    def without(float_layers: list[str]) -> Score:
        part = simulator.leave_float(folded, whole, float_layers)
        return score(simulator.simulate(folded, part))

    return {
        name: LayerScores(
            alone=without([other for other in inputs if other != name]), spared=without([*fixed, name])
        )
        for name in inputs
        if name not in fixed
    }
