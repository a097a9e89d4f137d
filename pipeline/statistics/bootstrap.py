"""Bootstrap intervals (Efron 1979).

Images are drawn with replacement from a seeded generator, so that all functions that take arrays of as many
images use the same samples. Differences between the results of two classifiers are therefore paired.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from pipeline.statistics.average_precision import PRESENT, average_precision

RESAMPLES = 1000
"""Number of bootstrap samples."""

RESAMPLES_AT_ONCE = 20
"""Number of bootstrap samples that are held in memory at once, each with one weight per image."""


def percentile_interval(resampled: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """95 % percentile interval of a statistic, from its values on bootstrap samples.

    NaN is left out: it stands for a sample on which the statistic is undefined.
    """
    lo, hi = np.nanquantile(resampled, [0.025, 0.975])
    return float(lo), float(hi)


def basic_interval(estimate: float, resampled: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """95 % basic bootstrap interval: the percentile interval, mirrored at the estimate.

    It suits sums of absolute values: resampling makes them larger, and with them their percentiles.
    """
    lo, hi = percentile_interval(resampled)
    return 2 * estimate - hi, 2 * estimate - lo


def mean_with_interval(values: Float[np.ndarray, " images"]) -> tuple[float, float, float]:
    """A mean over images, and the ends of its 95 % percentile interval."""
    lo, hi = percentile_interval(resampled_sums(values[:, None])[:, 0] / len(values))
    return float(values.mean()), lo, hi


def difference_interval(gained: int, lost: int, images: int) -> tuple[float, float]:
    """95 % percentile interval of the difference of two proportions that were measured on the same images.

    The numbers of gained and lost images in a sample are multinomial, so that nothing else has to be drawn.

    Args:
        gained: number of images that only the first classifier gets right.
        lost: number of images that only the second classifier gets right.
        images: number of all images.

    Returns:
        The ends of the interval of the first proportion minus the second, from 10,000 bootstrap samples.
    """
    shares = [gained / images, lost / images, (images - gained - lost) / images]
    counts = np.random.default_rng(0).multinomial(images, shares, size=10 * RESAMPLES)
    return percentile_interval((counts[:, 0] - counts[:, 1]) / images)


def resampled_map(
    scores: Float[np.ndarray, "images attributes"],
    targets: Float[np.ndarray, "images attributes"],
    resamples: int = RESAMPLES,
) -> Float[np.ndarray, " resamples"]:
    """Mean average precision on each bootstrap sample of the images."""
    precisions = resampled_precisions(scores, targets, resamples)
    with np.errstate(invalid="ignore"):  # a sample without an image that has any attribute has no mean
        return np.nansum(precisions, axis=1) / (~np.isnan(precisions)).sum(axis=1)


def resampled_precisions(
    scores: Float[np.ndarray, "images attributes"],
    targets: Float[np.ndarray, "images attributes"],
    resamples: int = RESAMPLES,
) -> Float[np.ndarray, "resamples attributes"]:
    """Average precision of each attribute on each bootstrap sample; NaN without an image that has it."""
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
    """Sums of the columns over each bootstrap sample of the images."""
    return np.concatenate([weights @ values for weights in _samples(len(values), resamples)])


def _samples(images: int, resamples: int) -> Iterator[Float[np.ndarray, "samples images"]]:
    """How often each image is in each bootstrap sample, some samples at a time."""
    random = np.random.default_rng(0)
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        drawn = random.integers(0, images, (min(RESAMPLES_AT_ONCE, resamples - first), images))
        yield np.array([np.bincount(row, minlength=images) for row in drawn], dtype=np.float64)
