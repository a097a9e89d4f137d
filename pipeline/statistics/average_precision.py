"""Average precision: how well scores rank the images that have an attribute above the others."""

import numpy as np
from jaxtyping import Bool, Float

PRESENT = 0.5
"""Least value of a soft target at which an image counts as having the attribute."""


def average_precision(
    scores: Float[np.ndarray, " images"],
    present: Bool[np.ndarray, " images"],
    weights: Float[np.ndarray, "samples images"],
) -> Float[np.ndarray, " samples"]:
    """Average precision of one attribute, once for each row of weights; NaN where no image has it.

    It is the mean of the precision at every image that has the attribute, where images of equal scores are
    taken together, without interpolation. ``sklearn.metrics.average_precision_score`` computes the same for
    one row of weights; here all rows share one sort.

    Args:
        scores: the higher, the more certain the classifier is that the image has the attribute.
        present: whether the image has the attribute.
        weights: how often each image counts, such as in bootstrap samples.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    seen = np.cumsum(weights[:, order], axis=1)[:, ends]
    hits = np.cumsum((weights * present)[:, order], axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(seen > 0, hits / seen, 0)
        return (precision * gained).sum(axis=1) / hits[:, -1]


def average_precisions(
    scores: Float[np.ndarray, "images attributes"], targets: Float[np.ndarray, "images attributes"]
) -> Float[np.ndarray, " attributes"]:
    """Average precision of every attribute; NaN where no image has it. Targets count from 0.5 on."""
    once = np.ones((1, len(scores)))
    return np.array(
        [average_precision(s, t >= PRESENT, once)[0] for s, t in zip(scores.T, targets.T, strict=True)]
    )


def mean_average_precision(
    scores: Float[np.ndarray, "images attributes"], targets: Float[np.ndarray, "images attributes"]
) -> float:
    """Mean of the average precisions of all attributes that some image has, as a fraction of 1."""
    return float(np.nanmean(average_precisions(scores, targets)))
