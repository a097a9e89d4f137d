"""Post-training quantisation: the steps of a student to int8, and the choice of those that help it."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, get_args

import numpy as np
from jaxtyping import Float
from pydantic import TypeAdapter

from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import Network
from pipeline.models.storage import Model, Quantization
from pipeline.quantization import grid, ranges
from pipeline.quantization.bias_correction import CORRECTION_IMAGES, correct_biases
from pipeline.quantization.calibrators import entropy_clip, percentile_clip
from pipeline.quantization.equalisation import equalise
from pipeline.quantization.observation import Batches, first_images
from pipeline.quantization.ranges import Clip, Histogram, least_squares_clip
from pipeline.quantization.rounding import round_adaptively
from pipeline.quantization.settings import Step

STEPS: tuple[Step, ...] = get_args(Step)

CLIPS: dict[Step, Clip] = {"entropy_ranges": entropy_clip, "percentile_ranges": percentile_clip}
"""Steps that replace the least-squares ranges of activations."""
ROUNDS: tuple[tuple[Step, ...], ...] = (
    tuple(CLIPS),
    ("greatest_weights",),
    ("equalisation",),
    ("adaptive_rounding",),
    ("bias_correction",),
)
"""Rounds of the choice, in order: each tries its alternatives on top of the steps that were kept before."""

ROUNDING_IMAGES = 128
"""Number of images for adaptive rounding; they are held in memory, with one activation each."""
TIE = 2.0
"""Number of standard errors of the images' differences within which two trials are equal."""
RULES = 2
"""Version of the rules, raised when a change of them makes recorded choices out of date."""
GUARD = 0.005
"""Loss of the score on val, a fraction of 1, that a step may cost if it brings the answers nearer."""


@dataclass(frozen=True)
class Judgement:
    """A quantised student's answers on val against its parent's."""

    divergences: Float[np.ndarray, " images"]
    """KL divergence of each image's answer from the parent's answer, in nats."""
    losses: Float[np.ndarray, " images"]
    """Cross entropy of each image's answer with its label, in nats."""
    score: float
    """The task's metric with the labels, a fraction of 1."""


Judge = Callable[[Network, Quantization], Judgement]
"""Judges a folded network with its weights on the grid."""


@dataclass(frozen=True)
class QuantizationTrial:
    """One set of steps, and how near the answers of the resulting network are to the parent's."""

    steps: tuple[Step, ...]
    divergence: float
    """Mean KL divergence from the parent's answers on val, in nats."""
    score: float
    """The task's metric on the same images, a fraction of 1."""
    images: int
    """Number of these images."""
    kept: bool
    """Whether it was the best so far, beyond a tie."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        return {**asdict(self), "steps": list(self.steps)}


TRIALS: TypeAdapter[list[QuantizationTrial]] = TypeAdapter(list[QuantizationTrial])
"""All trials of a choice, as they are recorded."""


class Workbench:
    """A student on its way to int8; what several sets of steps share is computed once."""

    def __init__(
        self, model: Model, batches: Batches, *, weight_limit: int, float_layers: Collection[str]
    ) -> None:
        folded = fold_batch_norm(model)
        folded.module.requires_grad_(False)
        self._folded = folded
        self._batches = batches
        self._weight_limit = weight_limit
        self._float_layers = tuple(float_layers)
        self._network = cache(self._make_network)
        self._scales = cache(self._make_scales)
        self._grid = cache(self._make_grid)
        self._images = cache(lambda: first_images(batches, ROUNDING_IMAGES))

    def make(self, steps: Collection[Step]) -> tuple[Network, Quantization]:
        """The folded network with its weights on the grid, and its quantisation; the order of steps is free.

        Raises:
            ValueError: the weight limit or a float layer is not allowed, or calibration is not possible.
        """
        baked, quantization = self._grid(frozenset(steps) - {"bias_correction"})
        if "bias_correction" in steps:
            reference, _ = self._network("equalisation" in steps)
            images = self._images()[:CORRECTION_IMAGES]
            baked = correct_biases(baked, reference, quantization, images)
        return baked, quantization

    def _make_grid(self, steps: frozenset[Step]) -> tuple[Network, Quantization]:
        """Every step except the correction of biases."""
        equal = "equalisation" in steps
        network, _ = self._network(equal)
        search = "greatest_weights" not in steps
        clip = next((step for step in CLIPS if step in steps), None)
        read = self._scales(equal, clip)
        scales = grid.weight_scales(network, self._weight_limit, self._float_layers, search=search)
        scales = grid.fit_biases(network, scales, read)
        quantization = Quantization(scales, self._weight_limit, read, self._float_layers)
        if "adaptive_rounding" in steps:
            return round_adaptively(network, quantization, self._images()), quantization
        return grid.bake(network, scales, self._weight_limit), quantization

    def _make_network(self, equal: bool) -> tuple[Network, dict[str, Histogram]]:
        network = equalise(self._folded, self._batches) if equal else self._folded
        return network, ranges.activation_histograms(network, self._batches, self._float_layers)

    def _make_scales(self, equal: bool, step: Step | None) -> dict[str, float]:
        network, histograms = self._network(equal)
        clip = CLIPS[step] if step else least_squares_clip
        return ranges.clipped_scales(network, histograms, self._float_layers, clip)


def choose(bench: Workbench, judge: Judge) -> list[QuantizationTrial]:
    """Choose the steps that bring a student's answers on val nearest to its parent's.

    Each round's best alternative is kept where the mean divergence over the same images falls by more than
    a tie, and the score by at most ``GUARD`` against that of no steps at all. Ties go to the simpler set.

    Top-1 itself would be a choice by noise: on 1,000 images it moves by a few flips either way, while the
    divergence uses every image.

    Returns:
        All trials; the last one that was kept has the chosen steps.
    """
    steps: tuple[Step, ...] = ()
    plain = judgement = judge(*bench.make(steps))
    trials = [_trial(steps, judgement, kept=True)]
    for alternatives in ROUNDS:
        options: list[tuple[Step, ...]] = [
            tuple(step for step in STEPS if step in {*steps, new}) for new in alternatives
        ]
        judgements = [judge(*bench.make(option)) for option in options]
        first = min(range(len(options)), key=lambda i: judgements[i].divergences.mean())
        better = _beyond_a_tie(judgement.divergences - judgements[first].divergences)
        kept = better and judgements[first].score >= plain.score - GUARD
        trials += [
            _trial(option, each, kept=kept and i == first)
            for i, (option, each) in enumerate(zip(options, judgements, strict=True))
        ]
        if kept:
            steps, judgement = options[first], judgements[first]
    return trials


def is_better(trained: Judgement, before: Judgement) -> bool:
    """Whether training has lowered the cross entropy on val by more than a tie, at no loss of the score.

    A training has the teacher's answers as its target, so that its distance from the parent says nothing.
    """
    return trained.score >= before.score and _beyond_a_tie(before.losses - trained.losses)


def applied(trials: Sequence[QuantizationTrial]) -> tuple[Step, ...]:
    """The steps of the last trial that was kept."""
    return [trial for trial in trials if trial.kept][-1].steps


def table(trials: Iterable[QuantizationTrial]) -> str:
    """The trials as text, one line per trial."""
    lines = [f"{'KL to parent':>12}  {'val, %':>6}  kept  steps"]
    lines += [
        f"{t.divergence:12.2e}  {t.score:6.2%}  {'yes' if t.kept else '':4}  {', '.join(t.steps) or 'none'}"
        for t in trials
    ]
    return "\n".join(lines)


def _trial(steps: tuple[Step, ...], judgement: Judgement, *, kept: bool) -> QuantizationTrial:
    mean = float(judgement.divergences.mean())
    return QuantizationTrial(steps, mean, judgement.score, len(judgement.divergences), kept)


def _beyond_a_tie(gains: Float[np.ndarray, " images"]) -> bool:
    """Whether the mean of paired differences is above zero by more than its noise."""
    return bool(gains.mean() > TIE * gains.std() / len(gains) ** 0.5)
