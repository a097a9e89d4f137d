"""Every variant against its parent on the same images: what was lost, where, and whether it is tolerated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pipeline.evaluation import confidence
from pipeline.evaluation.confidence import Confidence
from pipeline.statistics.average_precision import average_precisions
from pipeline.statistics.intervals import (
    RESAMPLES,
    Difference,
    bootstrap_interval,
    compare,
    compare_map,
    holm,
    interval,
    reason,
    resampled_precisions,
    verdict,
)
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL

SIGNIFICANT = 0.05
"""Level of p values after correction for their number."""


@dataclass(frozen=True)
class Answers:
    """What one classifier said to every test image."""

    predictions: np.ndarray
    """Classes, or logits of attributes, as ``Task.predictions`` gives them."""
    confidence: Confidence | None = None
    """Unknown for attributes."""


def against_parent(
    own: Answers, parent: Answers, labels: np.ndarray, names: Sequence[str], max_drop: float
) -> dict[str, Any]:
    """Compare a variant with its parent.

    Args:
        own: the variant's answers.
        parent: its parent's, to the same images in the same order.
        labels: the true classes, or attributes.
        names: of the classes or attributes.
        max_drop: greatest loss that is tolerated, a fraction of 1.

    Returns:
        The ``delta`` with its interval (Tango's; for attributes a paired bootstrap), the paired ``bootstrap``
        and McNemar's exact p, whether it is ``distinguishable`` from none, the ``verdict`` and its
        ``reason``, ``flips`` in both directions, every class with its own paired interval and a p value
        corrected for their number (Holm), and the ``calibration`` drift.

    Raises:
        ValueError: the answers are to different images.
    """
    if not len(own.predictions) == len(parent.predictions) == len(labels):
        raise ValueError(
            f"answers to {len(own.predictions)} and to {len(parent.predictions)} images, and {len(labels)} "
            "labels: paired statistics need the same images"
        )
    if labels.ndim == 1:
        right, before = own.predictions == labels, parent.predictions == labels
        difference, words = compare(right, before), SINGLE_LABEL.words
        gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
        lo, hi = bootstrap_interval(gained, lost, len(labels))
        changed = int((own.predictions != parent.predictions).sum())
        flips = {
            "gained": gained,
            "lost": lost,
            "changed": changed,
            "agreement": 1 - changed / len(labels),
        }
        classes = _classes(own.predictions, parent.predictions, labels, names)
    else:
        difference, words = compare_map(own.predictions, parent.predictions, labels), MULTI_LABEL.words
        lo, hi, flips = difference.lo, difference.hi, None
        classes = _attributes(own.predictions, parent.predictions, labels, names)
    return {
        "n": difference.images,
        "delta": difference.delta,
        "lo": difference.lo,
        "hi": difference.hi,
        "bootstrap": {"lo": lo, "hi": hi, "resamples": RESAMPLES if flips is None else 10 * RESAMPLES},
        "mcnemar_p": difference.mcnemar_p,
        "distinguishable": difference.distinguishable,
        "verdict": verdict(difference.lo, max_drop),
        "reason": reason(difference, max_drop, words),
        "flips": flips,
        "classes": classes,
        "classes_worse": [c["label"] for c in classes if c["worse"]],
        "classes_better": [c["label"] for c in classes if c["better"]],
        "calibration": confidence.drift(own.confidence, parent.confidence, labels)
        if own.confidence and parent.confidence
        else None,
    }


def paired(
    own: Int[np.ndarray, " images"],
    parent: Int[np.ndarray, " images"],
    labels: Int[np.ndarray, " images"],
    groups: Mapping[str, np.ndarray],
) -> dict[str, dict[str, Any]]:
    """Paired differences within groups of images; p values are corrected for the number of groups.

    Args:
        own: classes that the variant answered.
        parent: those of its parent.
        labels: the true ones.
        groups: name to the images that belong to it, as a mask.

    Returns:
        For each group that has images ``n``, ``gained``, ``lost``, ``delta`` with its interval, McNemar's
        exact ``p``, ``p_holm``, and whether it is shown to be ``worse`` or ``better``.
    """
    right, before = own == labels, parent == labels
    found: dict[str, Difference] = {
        name: compare(right[inside], before[inside]) for name, inside in groups.items() if inside.any()
    }
    adjusted = dict(zip(found, holm([d.mcnemar_p or 0.0 for d in found.values()]), strict=True))
    return {
        name: {
            "n": difference.images,
            "gained": int((right & ~before & groups[name]).sum()),
            "lost": int((before & ~right & groups[name]).sum()),
            "delta": difference.delta,
            "lo": difference.lo,
            "hi": difference.hi,
            "p": difference.mcnemar_p,
            "p_holm": adjusted[name],
            "worse": adjusted[name] < SIGNIFICANT and difference.delta < 0,
            "better": adjusted[name] < SIGNIFICANT and difference.delta > 0,
        }
        for name, difference in found.items()
    }


def _classes(
    own: Int[np.ndarray, " images"],
    parent: Int[np.ndarray, " images"],
    labels: Int[np.ndarray, " images"],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    found = paired(own, parent, labels, {str(index): labels == index for index in range(len(names))})
    return [{"label": names[int(index)], **figures} for index, figures in found.items()]


def _attributes(
    own: Float[np.ndarray, "images attributes"],
    parent: Float[np.ndarray, "images attributes"],
    labels: Float[np.ndarray, "images attributes"],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Differences of average precision; worse or better where the interval, widened for all, leaves 0 out."""
    deltas = average_precisions(own, labels) - average_precisions(parent, labels)
    resampled = resampled_precisions(own, labels) - resampled_precisions(parent, labels)
    tail = SIGNIFICANT / 2 / len(names)
    found = []
    for index, name in enumerate(names):
        samples = resampled[:, index][~np.isnan(resampled[:, index])]
        if np.isnan(deltas[index]) or not len(samples):
            continue
        lo, hi = interval(samples)
        least, greatest = np.quantile(samples, [tail, 1 - tail])
        found.append(
            {
                "label": name,
                "n": int((labels[:, index] >= 0.5).sum()),
                "delta": float(deltas[index]),
                "lo": lo,
                "hi": hi,
                "worse": bool(greatest < 0),
                "better": bool(least > 0),
            }
        )
    return found
