"""Statistics of answers: intervals, paired differences, and the gate's verdict."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from pipeline.statistics.average_precision import PRESENT, average_precision, mean_average_precision

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""

Verdict = Literal["accept", "reject"]

RESAMPLES = 1000
"""Of a bootstrap."""
RESAMPLES_AT_ONCE = 20
"""Held in memory at once, each with a weight an image."""


@dataclass(frozen=True)
class Difference:
    """How two classifiers compare on the same images."""

    images: int
    delta: float
    """Score of the new minus score of the old, a fraction of 1."""
    lo: float
    hi: float
    """95 % interval of ``delta``."""
    mcnemar_p: float | None
    """Exact two-sided p value of no difference; None for attributes."""

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.lo > 0 or self.hi < 0


def wilson(correct: int, images: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927), at 95 % unless ``z`` says otherwise.

    Raises:
        ValueError: there are no images, or more right answers than images.
    """
    if images < 1 or not 0 <= correct <= images:
        raise ValueError(f"{correct} right of {images} images: takes 0 <= right <= images and images >= 1")
    share, z2 = correct / images, z**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = z * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2)) / (1 + z2 / images)
    return max(0.0, centre - half), min(1.0, centre + half)


def gap_interval(correct: tuple[int, int], images: tuple[int, int], pairs: int = 1) -> tuple[float, float]:
    """95 % interval of the first proportion minus the second, of different images.

    Newcombe 1998, method 10, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C873::AID-SIM779%3E3.0.CO;2-I.
    Where the pair was picked among ``pairs``, as the best and the worst are, the level is corrected for
    all of them (Bonferroni).
    """
    z = float(stats.norm.isf(0.025 / pairs))
    first, second = correct[0] / images[0], correct[1] / images[1]
    (lo1, hi1), (lo2, hi2) = (wilson(c, n, z) for c, n in zip(correct, images, strict=True))
    return (
        first - second - math.hypot(first - lo1, hi2 - second),
        first - second + math.hypot(hi1 - first, second - lo2),
    )


def mean_interval(values: Float[np.ndarray, " repeats"]) -> tuple[float, float]:
    """95 % interval of the mean of independent repeats (Student 1908); infinite for a single one."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = float(stats.t.isf(0.025, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number, so that one false alarm among all keeps its level (Holm 1979)."""
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = greatest
    return adjusted


def compare(new: Bool[np.ndarray, " images"], old: Bool[np.ndarray, " images"]) -> Difference:
    """Compare two classifiers by which images each of them got right, image by image.

    Raises:
        ValueError: the arrays are empty or differ in length.
    """
    if len(new) != len(old) or not len(new):
        raise ValueError(
            f"answers to {len(new)} and to {len(old)} images: paired statistics need the same images"
        )
    gained, lost = int(np.sum(new & ~old)), int(np.sum(old & ~new))
    lo, hi = paired_interval(gained, lost, len(new))
    return Difference(len(new), (gained - lost) / len(new), lo, hi, mcnemar(gained, lost))


def compare_map(
    new: Float[np.ndarray, "images attributes"],
    old: Float[np.ndarray, "images attributes"],
    targets: Float[np.ndarray, "images attributes"],
) -> Difference:
    """Compare two classifiers of attributes by mean average precision, on the same bootstrap samples.

    Raises:
        ValueError: the arrays differ in shape.
    """
    if not new.shape == old.shape == targets.shape:
        raise ValueError(
            f"answers {new.shape} and {old.shape} to targets {targets.shape}: the same are needed"
        )
    delta = mean_average_precision(new, targets) - mean_average_precision(old, targets)
    lo, hi = interval(resampled_map(new, targets) - resampled_map(old, targets))
    return Difference(len(targets), delta, lo, hi, None)


def paired_interval(gained: int, lost: int, images: int) -> tuple[float, float]:
    """95 % score interval of the difference of two paired proportions (Tango 1998).

    It holds its level for small counts and for differences near 0, where the textbook interval has
    no width, and it leaves 0 out exactly when McNemar's score test is significant.
    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C891::AID-SIM780%3E3.0.CO;2-B
    """
    estimate = (gained - lost) / images

    def distance(delta: float) -> float:
        # The discordant share is fitted under the hypothesis that the difference is `delta`.
        b = -gained - lost + (2 * images - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        fitted = (math.sqrt(max(0.0, b * b - 8 * images * c)) - b) / (4 * images)
        variance = images * (2 * fitted + delta * (1 - delta))
        excess = gained - lost - images * delta
        return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess)

    return (
        _bisect(lambda delta: distance(delta) - Z95, -1.0, estimate),
        _bisect(lambda delta: distance(delta) + Z95, estimate, 1.0),
    )


def bootstrap_interval(gained: int, lost: int, images: int) -> tuple[float, float]:
    """95 % percentile interval of the same difference from 10,000 bootstrap samples of the images.

    How many images of a sample were gained and lost is multinomial, so nothing else need be drawn.
    """
    shares = [gained / images, lost / images, (images - gained - lost) / images]
    counts = np.random.default_rng(0).multinomial(images, shares, size=10 * RESAMPLES)
    return interval((counts[:, 0] - counts[:, 1]) / images)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p value that two classifiers are equally good (McNemar 1947, binomial form)."""
    discordant = gained + lost
    term, tail = 1, 0
    for k in range(min(gained, lost) + 1):
        tail += term
        term = term * (discordant - k) // (k + 1)
    # Whole numbers of any length: nothing underflows, and Python rounds their quotient correctly.
    return min(1.0, (2 * tail) / (1 << discordant))


def resampled_map(
    scores: Float[np.ndarray, "images attributes"],
    targets: Float[np.ndarray, "images attributes"],
    resamples: int = RESAMPLES,
) -> Float[np.ndarray, " resamples"]:
    """Mean average precision on bootstrap samples of the images, the same samples whatever the scores.

    Efron 1979. Differences of two classifiers' results are therefore paired.
    """
    precisions = resampled_precisions(scores, targets, resamples)
    with np.errstate(invalid="ignore"):  # a sample without an image that has any attribute has no mean
        return np.nansum(precisions, axis=1) / (~np.isnan(precisions)).sum(axis=1)


def resampled_precisions(
    scores: Float[np.ndarray, "images attributes"],
    targets: Float[np.ndarray, "images attributes"],
    resamples: int = RESAMPLES,
) -> Float[np.ndarray, "resamples attributes"]:
    """Average precision of each attribute on the same bootstrap samples."""
    return np.concatenate(
        [
            np.stack(
                [
                    average_precision(s, t >= PRESENT, weights)
                    for s, t in zip(scores.T, targets.T, strict=True)
                ],
                axis=1,
            )
            for weights in _samples(len(scores), resamples)
        ]
    )


def resampled_sums(
    values: Float[np.ndarray, "images columns"], resamples: int = RESAMPLES
) -> Float[np.ndarray, "resamples columns"]:
    """Column sums over bootstrap samples of the images, the same samples whatever the values."""
    return np.concatenate([weights @ values for weights in _samples(len(values), resamples)])


def mean_by_bootstrap(values: Float[np.ndarray, " images"]) -> tuple[float, float, float]:
    """A mean over images with its 95 % bootstrap interval."""
    lo, hi = interval(resampled_sums(values[:, None])[:, 0] / len(values))
    return float(values.mean()), lo, hi


def interval(resampled: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """95 % percentile interval; NaN, as of an attribute that no image of a sample has, does not count."""
    lo, hi = np.nanquantile(resampled, [0.025, 0.975])
    return float(lo), float(hi)


def verdict(difference_lo: float, max_drop: float) -> Verdict:
    """Accept a variant when its loss is shown to be within ``max_drop`` (both fractions of 1).

    This is a non-inferiority test at 2.5 % one-sided error: the lower end of the difference's 95 %
    interval must not lie below ``-max_drop``. A point estimate inside the limit is not enough, for
    on a small test set it is inside by luck; and the burden of proof is on the variant, since a
    rule that rejects only what is proven bad accepts everything when the test set is small enough.
    """
    return "accept" if difference_lo >= -max_drop else "reject"


def reason(difference: Difference, max_drop: float, words: str) -> str:
    """The verdict's reason in one sentence, in points."""
    seen = (
        f"{words} {100 * difference.delta:+.2f} points against the parent "
        f"(95 % interval {100 * difference.lo:+.2f} to {100 * difference.hi:+.2f}, n = {difference.images})"
    )
    limit = f"the limit of {-100 * max_drop:+.2f}"
    if verdict(difference.lo, max_drop) == "accept":
        return f"{seen}: all of the interval lies above {limit}"
    if difference.hi < -max_drop:
        return f"{seen}: all of the interval lies below {limit}"
    return f"{seen}: the interval reaches below {limit}, so the loss may be greater than is tolerated"


def _samples(images: int, resamples: int) -> Iterator[Float[np.ndarray, "samples images"]]:
    """How often each image is in each bootstrap sample (Efron 1979), some samples at a time."""
    random = np.random.default_rng(0)
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        drawn = random.integers(0, images, (min(RESAMPLES_AT_ONCE, resamples - first), images))
        yield np.array([np.bincount(row, minlength=images) for row in drawn], dtype=np.float64)


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of a falling function."""
    for _ in range(100):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
