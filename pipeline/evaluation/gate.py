"""The gate: whether the loss of a variant against its parent is shown to be within the limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from pipeline.selection.scored import compared, interval
from pipeline.statistics import bootstrap, intervals
from pipeline.statistics.average_precision import PRESENT, mean_average_precision
from pipeline.statistics.chance import Chance
from pipeline.statistics.intervals import Z95, mcnemar, paired_interval

Verdict = Literal["accept", "reject"]


@runtime_checkable
class Limits(Protocol):
    """What a step may lose, such as ``settings.StepLimits``."""

    @property
    def max_drop(self) -> float: ...
    @property
    def max_class_drop(self) -> float: ...


ClassChange = Mapping[str, Any]
"""The difference of one class from the parent, as ``comparison`` computes it: its ``label``, its ``delta`` as
a fraction of 1, and whether a loss is shown (``worse``), corrected for the number of classes."""


@dataclass(frozen=True)
class Difference:
    """The difference between two classifiers on the same images."""

    images: int
    """Number of images that both were scored on."""
    delta: float
    """Score of the variant minus the score of its parent, as a fraction of 1."""
    lo: float
    """Lower end of the 95 % interval of ``delta``."""
    hi: float
    """Upper end of the 95 % interval of ``delta``."""
    mcnemar_p: float | None
    """Exact two-sided p value of no difference; None for attributes."""
    gained: int | None = None
    """Number of images that only the variant gets right; None for attributes."""
    lost: int | None = None
    """Number of images that only its parent gets right; None for attributes."""

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.lo > 0 or self.hi < 0


def compare(variant: Bool[np.ndarray, " images"], parent: Bool[np.ndarray, " images"]) -> Difference:
    """Compare two classifiers by which images each of them gets right.

    Raises:
        ValueError: the arrays are empty or differ in length.
    """
    if len(variant) != len(parent) or not len(variant):
        raise ValueError(
            f"paired statistics need predictions for the same images; got {len(variant)} and {len(parent)}"
        )
    gained, lost = int(np.sum(variant & ~parent)), int(np.sum(parent & ~variant))
    lo, hi = paired_interval(gained, lost, len(variant))
    delta = (gained - lost) / len(variant)
    return Difference(len(variant), delta, lo, hi, mcnemar(gained, lost), gained, lost)


def compare_map(
    variant: Float[np.ndarray, "images attributes"],
    parent: Float[np.ndarray, "images attributes"],
    targets: Float[np.ndarray, "images attributes"],
) -> Difference:
    """Compare two classifiers of attributes by mean average precision, on the same bootstrap samples.

    Few images may be ranked alike by two classifiers that differ. So the interval of two that do not answer
    alike reaches as far as Tango's interval of as many answers without a difference.

    Raises:
        ValueError: the arrays differ in shape.
    """
    if not variant.shape == parent.shape == targets.shape:
        raise ValueError(
            f"paired statistics need scores of the same images and attributes; got {variant.shape}, "
            f"{parent.shape} and targets {targets.shape}"
        )
    delta = mean_average_precision(variant, targets) - mean_average_precision(parent, targets)
    lo, hi = bootstrap.percentile_interval(
        bootstrap.resampled_map(variant, targets) - bootstrap.resampled_map(parent, targets)
    )
    if not np.array_equal(variant, parent):
        least = Z95**2 / (int((targets >= PRESENT).sum()) + Z95**2)
        lo, hi = min(lo, delta - least), max(hi, delta + least)
    return Difference(len(targets), delta, lo, hi, None)


def verdict(
    difference: Difference, limits: Limits, chance: Chance, classes: Sequence[ClassChange] = ()
) -> Verdict:
    """Accept a variant that is shown to be above chance and to lose at most ``limits.max_drop``.

    This is a non-inferiority test with a one-sided error of 2.5 %: the lower end of the 95 % interval of the
    difference must not lie below ``-max_drop``. A point estimate within the limit is not enough, because on a
    small test set it may be there by chance. The burden of proof lies with the variant: a rule that rejected
    only proven losses would accept everything on a test set that is small enough. A variant at chance loses
    nothing against a parent at chance, hence the other condition.

    A single class has too few images for the same proof. It rejects a variant where its loss is shown and
    estimated to be greater than ``limits.max_class_drop``.

    Args:
        difference: the variant's difference from its parent.
        limits: what the step that made it may lose.
        chance: the variant's score beside that of the same predictions for shuffled images.
        classes: differences per class.
    """
    within = difference.lo >= -limits.max_drop and not _beyond(limits, classes)
    return "accept" if within and chance.is_exceeded else "reject"


def images_needed(
    difference: Difference, limits: Limits, chance: Chance, classes: Sequence[ClassChange] = ()
) -> int | None:
    """Number of test images on which a rejected variant would be accepted if as great a share of its answers
    changed.

    Returns:
        The number; None for a variant that more images do not help: one that is accepted, at chance, or whose
        estimated loss is too great, and for attributes, whose interval has no formula.
    """
    if difference.gained is None or difference.lost is None or difference.lo >= -limits.max_drop:
        return None
    if _beyond(limits, classes) or not chance.is_exceeded:
        return None
    gained, lost = difference.gained / difference.images, difference.lost / difference.images
    return intervals.images_needed(gained, lost, limits.max_drop)


def explain(
    difference: Difference,
    limits: Limits,
    parent: str,
    chance: Chance,
    classes: Sequence[ClassChange] = (),
) -> str:
    """One sentence that says what the verdict is, and why; another one about the classes that lose most.

    Args:
        difference: see ``verdict``, as the other arguments.
        limits: what the step may lose.
        parent: name of the parent.
        chance: the variant's score beside chance.
        classes: differences per class.
    """
    if not chance.is_exceeded:
        return (
            f"Rejected: {chance.score:.1%} is not shown to be above chance "
            f"({chance.expected:.1%} on the same images shuffled)."
        )
    max_drop = limits.max_drop
    above = difference.delta > 0
    measured = f"{compared(difference.delta, parent)} ({interval(difference.lo, difference.hi)})"
    are = "is" if max_drop == 0.01 else "are"
    allowed = (
        f"a loss of up to {100 * max_drop:g} is allowed"
        if above
        else f"up to {100 * max_drop:g} {are} allowed"
    )
    word = "Accepted" if verdict(difference, limits, chance, classes) == "accept" else "Rejected"
    tail = ""
    if difference.hi >= -max_drop > difference.lo:
        tail = f", and {difference.images:,} test images do not exclude a greater loss"
        if (needed := images_needed(difference, limits, chance, classes)) is not None:
            tail += f"; about {needed:,} would, at this rate of changed answers"
    return f"{word}: {measured}; {allowed}{tail}.{_worst(limits, classes)}"


def _beyond(limits: Limits, classes: Sequence[ClassChange]) -> bool:
    return any(change["worse"] and change["delta"] < -limits.max_class_drop for change in classes)


def _worst(limits: Limits, classes: Sequence[ClassChange]) -> str:
    """A sentence about the class whose loss is shown and greatest; empty if no loss is shown."""
    worse = sorted((change for change in classes if change["worse"]), key=lambda change: change["delta"])
    if not worse:
        return ""
    loss = f"{-100 * worse[0]['delta']:.1f}"
    others = f", and {len(worse) - 1} more lose" if len(worse) > 1 else ""
    return (
        f" The class {worse[0]['label']!r} loses {loss} points (up to {100 * limits.max_class_drop:g} are "
        f"allowed){others}."
    )
