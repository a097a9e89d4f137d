"""Comparison of a variant with its parent on the same images: what was lost, where, and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pipeline.evaluation import confidence, gate
from pipeline.evaluation.confidence import Confidence
from pipeline.evaluation.gate import Limits
from pipeline.statistics import bootstrap, chance
from pipeline.statistics.average_precision import PRESENT, average_precisions
from pipeline.statistics.intervals import holm

SIGNIFICANCE = 0.05
"""Level below which a p value counts as significant, after correction for the number of p values."""


@dataclass(frozen=True)
class ClassifierOutput:
    """The output of one classifier for every test image."""

    predictions: np.ndarray
    """Class of each image, or logits of its attributes, as ``Task.predictions`` returns them."""
    confidence: Confidence | None = None
    """Probabilities of each image in short; None for attributes."""


def compare_with_parent(
    variant: ClassifierOutput,
    parent: ClassifierOutput,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    parent_name: str,
    limits: Limits,
) -> dict[str, Any]:
    """Compare a variant with its parent.

    Args:
        variant: output of the variant.
        parent: output of its parent for the same images in the same order.
        labels: true class of each image, or its attributes.
        names: names of the classes or attributes.
        parent_name: name of the parent in sentences.
        limits: greatest losses that the gate allows.

    Returns:
        ``delta`` with the ends ``lo`` and ``hi`` of its interval (Tango's for classes, the paired bootstrap's
        for attributes), the paired ``bootstrap`` interval, McNemar's exact ``mcnemar_p``, whether the
        difference is ``distinguishable`` from none, the ``verdict`` with its ``reason`` and ``limits``, the
        number of ``images_needed`` (see ``gate.images_needed``), the score by ``chance``, ``flips`` in both
        directions, every one of ``classes`` with its own paired interval and a p value that is corrected for
        their number (Holm), and the drift of ``calibration``.

    Raises:
        ValueError: the outputs are for different numbers of images.
    """
    if not len(variant.predictions) == len(parent.predictions) == len(labels):
        raise ValueError(
            f"paired statistics need predictions for the same images; got {len(variant.predictions)}, "
            f"{len(parent.predictions)} of the parent, and {len(labels)} labels"
        )
    if labels.ndim == 1:
        correct, parent_correct = variant.predictions == labels, parent.predictions == labels
        difference = gate.compare(correct, parent_correct)
        gained, lost = int((correct & ~parent_correct).sum()), int((parent_correct & ~correct).sum())
        lo, hi = bootstrap.difference_interval(gained, lost, len(labels))
        shuffled = chance.of_classes(variant.predictions, labels)
        changed = int((variant.predictions != parent.predictions).sum())
        flips = {
            "gained": gained,
            "lost": lost,
            "changed": changed,
            "agreement": 1 - changed / len(labels),
        }
        classes = _compare_classes(variant.predictions, parent.predictions, labels, names)
    else:
        difference = gate.compare_map(variant.predictions, parent.predictions, labels)
        lo, hi, flips = difference.lo, difference.hi, None
        shuffled = chance.of_attributes(variant.predictions, labels)
        classes = _compare_attributes(variant.predictions, parent.predictions, labels, names)
    return {
        "n": difference.images,
        "delta": difference.delta,
        "lo": difference.lo,
        "hi": difference.hi,
        "bootstrap": {
            "lo": lo,
            "hi": hi,
            "resamples": bootstrap.RESAMPLES if flips is None else 10 * bootstrap.RESAMPLES,
        },
        "mcnemar_p": difference.mcnemar_p,
        "distinguishable": difference.distinguishable,
        "verdict": gate.verdict(difference, limits, shuffled, classes),
        "reason": gate.explain(difference, limits, parent_name, shuffled, classes),
        "images_needed": gate.images_needed(difference, limits, shuffled, classes),
        "limits": {"max_drop": limits.max_drop, "max_class_drop": limits.max_class_drop},
        "chance": shuffled.expected,
        "flips": flips,
        "classes": classes,
        "classes_worse": [c["label"] for c in classes if c["worse"]],
        "classes_better": [c["label"] for c in classes if c["better"]],
        "calibration": confidence.drift(variant.confidence, parent.confidence, labels)
        if variant.confidence and parent.confidence
        else None,
    }


def compare_with_reference(
    variant: ClassifierOutput, reference: ClassifierOutput, labels: np.ndarray
) -> dict[str, Any]:
    """The difference of a variant from the reference of all variants, on the same images.

    Returns:
        ``delta`` with the ends ``lo`` and ``hi`` of its paired interval, and whether it is
        ``distinguishable`` from none.
    """
    if variant is reference:
        return {"delta": 0.0, "lo": 0.0, "hi": 0.0, "distinguishable": False}
    difference = (
        gate.compare(variant.predictions == labels, reference.predictions == labels)
        if labels.ndim == 1
        else gate.compare_map(variant.predictions, reference.predictions, labels)
    )
    return {
        "delta": difference.delta,
        "lo": difference.lo,
        "hi": difference.hi,
        "distinguishable": difference.distinguishable,
    }


def compare_groups(
    variant: Int[np.ndarray, " images"],
    parent: Int[np.ndarray, " images"],
    labels: Int[np.ndarray, " images"],
    groups: Mapping[str, np.ndarray],
) -> dict[str, dict[str, Any]]:
    """Compare a variant with its parent within groups of images.

    Args:
        variant: class of each image according to the variant.
        parent: class of each image according to its parent.
        labels: true class of each image.
        groups: mask of the images of each group.

    Returns:
        For each group that has images: ``n``, ``gained``, ``lost``, ``delta`` with its interval, McNemar's
        exact ``p``, ``p_holm``, which is corrected for the number of groups, and whether the group is shown
        to be ``worse`` or ``better``.
    """
    correct, parent_correct = variant == labels, parent == labels
    differences = {
        name: gate.compare(correct[mask], parent_correct[mask]) for name, mask in groups.items() if mask.any()
    }
    corrected = holm([difference.mcnemar_p or 0.0 for difference in differences.values()])
    return {
        name: {
            "n": difference.images,
            "gained": int((correct & ~parent_correct & groups[name]).sum()),
            "lost": int((parent_correct & ~correct & groups[name]).sum()),
            "delta": difference.delta,
            "lo": difference.lo,
            "hi": difference.hi,
            "p": difference.mcnemar_p,
            "p_holm": p_holm,
            "worse": p_holm < SIGNIFICANCE and difference.delta < 0,
            "better": p_holm < SIGNIFICANCE and difference.delta > 0,
        }
        for (name, difference), p_holm in zip(differences.items(), corrected, strict=True)
    }


def _compare_classes(
    variant: Int[np.ndarray, " images"],
    parent: Int[np.ndarray, " images"],
    labels: Int[np.ndarray, " images"],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    masks = {str(index): labels == index for index in range(len(names))}
    return [
        {"label": names[int(index)], **figures}
        for index, figures in compare_groups(variant, parent, labels, masks).items()
    ]


def _compare_attributes(
    variant: Float[np.ndarray, "images attributes"],
    parent: Float[np.ndarray, "images attributes"],
    labels: Float[np.ndarray, "images attributes"],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Differences of average precision per attribute.

    An attribute is worse or better where its interval, widened for the number of attributes (Bonferroni),
    excludes 0.
    """
    deltas = average_precisions(variant, labels) - average_precisions(parent, labels)
    resampled = bootstrap.resampled_precisions(variant, labels) - bootstrap.resampled_precisions(
        parent, labels
    )
    tail = SIGNIFICANCE / 2 / len(names)
    attributes = []
    for index, name in enumerate(names):
        samples = resampled[:, index][~np.isnan(resampled[:, index])]
        if np.isnan(deltas[index]) or not len(samples):
            continue
        lo, hi = bootstrap.percentile_interval(samples)
        least, greatest = np.quantile(samples, [tail, 1 - tail])
        attributes.append(
            {
                "label": name,
                "n": int((labels[:, index] >= PRESENT).sum()),
                "delta": float(deltas[index]),
                "lo": lo,
                "hi": hi,
                "worse": bool(greatest < 0),
                "better": bool(least > 0),
            }
        )
    return attributes
