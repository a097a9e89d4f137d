"""Confidence intervals and significance tests that have a formula.

The distributions come from ``scipy.special``, which is imported where it is needed, so that not every stage
waits for it; ``scipy.stats`` takes a second to be imported.
"""

import bisect
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95
"""Confidence level of all intervals that do not name another one."""

Z95 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Standard normal quantile of a two-sided 95 % interval."""

ROOT_TOLERANCE = 1e-15
"""Greatest error of the ends of a paired interval, which are found as roots."""

MOST_IMAGES = 10_000_000
"""Number of images beyond which nobody asks whether a loss could be shown."""


def wilson(correct: int, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927).

    Args:
        correct: number of correctly classified images.
        images: number of all images.
        confidence: confidence level of the interval.

    Raises:
        ValueError: there are no images, or more correct ones than images.
    """
    if images < 1 or not 0 <= correct <= images:
        raise ValueError(
            f"`correct` (={correct}) must lie between 0 and `images` (={images}), which must be at least 1"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / images
    scale = 2 * (images + z**2)
    centre = (2 * images * share + z**2) / scale
    half_width = z / scale * math.sqrt(4 * images * share * (1 - share) + z**2)
    return centre - half_width if correct else 0.0, centre + half_width if correct < images else 1.0


def widen(estimate: float, lo: float, hi: float, count: int) -> tuple[float, float]:
    """The ends of a 95 % interval of a share, moved apart to those of Wilson's interval without variance.

    An interval from resampled or measured variance has no width where a few images happen to agree, such as
    four that are all ranked rightly. Of ``count`` images that are all right, Wilson's interval begins at
    ``count / (count + z^2)``. Larger intervals stay as they are.
    """
    share = count / (count + Z95**2)
    return min(lo, estimate * share), max(hi, 1 - (1 - estimate) * share)


def gap_interval(correct: tuple[int, int], images: tuple[int, int], pairs: int = 1) -> tuple[float, float]:
    """95 % interval of the difference of two proportions that were measured on different images.

    Newcombe 1998, method 10, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C873::AID-SIM779%3E3.0.CO;2-I.

    Args:
        correct: number of correctly classified images of either group.
        images: number of images of either group.
        pairs: number of pairs of groups that this one was selected from, as the best and the worst group are;
            the confidence level is corrected for all of them (Bonferroni).

    Returns:
        The ends of the interval of the first proportion minus the second.
    """
    confidence = 1 - (1 - CONFIDENCE) / pairs
    first, second = correct[0] / images[0], correct[1] / images[1]
    (lo1, hi1), (lo2, hi2) = (wilson(c, n, confidence) for c, n in zip(correct, images, strict=True))
    return (
        first - second - math.hypot(first - lo1, hi2 - second),
        first - second + math.hypot(hi1 - first, second - lo2),
    )


def mean_interval(values: Float[np.ndarray, " repeats"]) -> tuple[float, float]:
    """95 % interval of the mean of independent repeats (Student 1908); infinite for a single repeat."""
    from scipy import special

    if len(values) < 2:
        return -math.inf, math.inf
    quantile = -float(special.stdtrit(len(values) - 1, (1 - CONFIDENCE) / 2))
    half_width = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return mean - half_width, mean + half_width


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979), in the order given.

    When only those below a level count as significant, the probability of any false alarm among all of them
    is at most that level.
    """
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = greatest
    return adjusted


def paired_interval(gained: int | float, lost: int | float, images: int) -> tuple[float, float]:
    """95 % score interval of the difference of two proportions that were measured on the same images.

    Tango 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C891::AID-SIM780%3E3.0.CO;2-B. It keeps
    its level for small counts and for differences near 0, where the textbook interval has no width, and it
    excludes 0 exactly when McNemar's score test is significant.

    Args:
        gained: number of images that only the first classifier gets right, or the expected number.
        lost: number of images that only the second classifier gets right, or the expected number.
        images: number of all images.

    Returns:
        The ends of the interval of the first proportion minus the second.
    """
    from scipy import optimize

    estimate = (gained - lost) / images

    def distance(delta: float) -> float:
        """Standard errors from the hypothesis that the difference is `delta` to the estimate."""
        excess = gained - lost - images * delta
        if not excess:
            return 0.0
        # The discordant share is fitted under the hypothesis.
        b = -gained - lost + (2 * images - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        fitted = (math.sqrt(max(0.0, b * b - 8 * images * c)) - b) / (4 * images)
        variance = images * (2 * fitted + delta * (1 - delta))
        return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess)

    def root(offset: float, low: float, high: float) -> float:
        solution = optimize.root_scalar(
            lambda delta: distance(delta) + offset, method="brentq", bracket=(low, high), xtol=ROOT_TOLERANCE
        )
        return float(solution.root)

    return (
        root(-Z95, -1.0, estimate) if lost < images else -1.0,
        root(Z95, estimate, 1.0) if gained < images else 1.0,
    )


def images_needed(gained: int | float, lost: int | float, max_drop: int | float) -> int | None:
    """Fewest images on which the paired interval excludes a loss of more than ``max_drop``.

    Args:
        gained: share of the images that only the first classifier gets right, from 0 to 1.
        lost: share of the images that only the second classifier gets right.
        max_drop: greatest loss that the interval may reach, as a fraction of 1.

    Returns:
        The number, or None if it is greater than ``MOST_IMAGES``, as it always is for a loss of ``max_drop``
        and more.
    """

    def is_enough(images: int) -> bool:
        return paired_interval(gained * images, lost * images, images)[0] >= -max_drop

    if gained - lost <= -max_drop or not is_enough(MOST_IMAGES):
        return None
    # The interval of the same shares becomes narrower with every image.
    return 1 + bisect.bisect_left(range(1, MOST_IMAGES), True, key=is_enough)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p value of two classifiers being equally good (McNemar 1947, binomial form).

    Args:
        gained: number of images that only the first classifier gets right.
        lost: number of images that only the second classifier gets right.
    """
    from scipy import special

    return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))
