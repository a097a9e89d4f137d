"""Statistics of right and wrong answers: intervals, paired differences, and the gate's verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""

Verdict = Literal["accept", "reject"]


@dataclass(frozen=True)
class Difference:
    """How two classifiers compare on the same images."""

    images: int
    gained: int
    """Images that the new classifier alone gets right."""
    lost: int
    """Images that the old classifier alone gets right."""
    delta: float
    """Top-1 of the new minus top-1 of the old, a fraction of 1."""
    lo: float
    hi: float
    """95 % interval of ``delta``."""
    mcnemar_p: float
    """Exact two-sided p value of no difference."""


def wilson(correct: int, images: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927).

    Raises:
        ValueError: there are no images, or more right answers than images.
    """
    if images < 1 or not 0 <= correct <= images:
        raise ValueError(f"{correct} right of {images} images: takes 0 <= right <= images and images >= 1")
    share, z2 = correct / images, Z95**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = Z95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2)) / (1 + z2 / images)
    return max(0.0, centre - half), min(1.0, centre + half)


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
    return Difference(len(new), gained, lost, (gained - lost) / len(new), lo, hi, mcnemar(gained, lost))


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


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p value that two classifiers are equally good (McNemar 1947, binomial form)."""
    discordant = gained + lost
    term, tail = 1, 0
    for k in range(min(gained, lost) + 1):
        tail += term
        term = term * (discordant - k) // (k + 1)
    # Whole numbers of any length: nothing underflows, and Python rounds their quotient correctly.
    return min(1.0, (2 * tail) / (1 << discordant))


def verdict(difference_lo: float, max_drop: float) -> Verdict:
    """Accept a variant when its loss of top-1 is shown to be within ``max_drop`` (both fractions of 1).

    This is a non-inferiority test at 2.5 % one-sided error: the lower end of the difference's 95 %
    interval must not lie below ``-max_drop``. A point estimate inside the limit is not enough, for
    on a small test set it is inside by luck; and the burden of proof is on the variant, since a
    rule that rejects only what is proven bad accepts everything when the test set is small enough.
    """
    return "accept" if difference_lo >= -max_drop else "reject"


def median_interval(count: int) -> tuple[int, int]:
    """Ranks (from 0) of sorted values that enclose their median with at least 95 % confidence.

    Needs no assumption on the distribution; fewer than 6 values give the least and the greatest.
    """
    term, tail, low = 1, 0, 0
    for k in range(count // 2):
        tail += term
        if 40 * tail > 1 << count:  # more than 2.5 % of 2**count
            break
        low = k
        term = term * (count - k) // (k + 1)
    return low, count - 1 - low


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of a falling function."""
    for _ in range(100):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
