"""How well scores put the images that have an attribute before those that have not."""

import numpy as np
from jaxtyping import Bool, Float

PRESENT = 0.5
"""Soft targets count as there from here on."""


def average_precision(
    scores: Float[np.ndarray, " images"],
    there: Bool[np.ndarray, " images"],
    weights: Float[np.ndarray, "samples images"],
) -> Float[np.ndarray, " samples"]:
    """Average precision of one attribute, for each row of weights of the images; NaN without a positive.

    The mean of the precision at every positive, images of equal score taken together, without interpolation:
    ``sklearn.metrics.average_precision_score``, for many weightings at the cost of one sort.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    seen = np.cumsum(weights[:, order], axis=1)[:, ends]
    hits = np.cumsum((weights * there)[:, order], axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(seen > 0, hits / seen, 0)
        return (precision * gained).sum(axis=1) / hits[:, -1]


def average_precisions(
    scores: Float[np.ndarray, "images attributes"], targets: Float[np.ndarray, "images attributes"]
) -> Float[np.ndarray, " attributes"]:
    """Average precision of every attribute; soft targets count from 0.5 on; NaN without a positive."""
    once = np.ones((1, len(scores)))
    return np.array(
        [average_precision(s, t >= PRESENT, once)[0] for s, t in zip(scores.T, targets.T, strict=True)]
    )


def mean_average_precision(
    scores: Float[np.ndarray, "images attributes"], targets: Float[np.ndarray, "images attributes"]
) -> float:
    """Mean of the average precisions of all attributes that some image has, a fraction of 1."""
    return float(np.nanmean(average_precisions(scores, targets)))
