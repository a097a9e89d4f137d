"""Scores of shipped files, measured in the runtime that ships."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from jaxtyping import Float, Float32, Int, Int64, UInt8

from pipeline import provenance
from pipeline.evaluation import confidence
from pipeline.evaluation.confidence import Confidence
from pipeline.onnx.inference import open_classifier, run
from pipeline.statistics.average_precision import PRESENT, average_precisions, mean_average_precision
from pipeline.statistics.intervals import interval, resampled_map, wilson
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL

DECIMALS = 6
"""Of the logits that are kept."""

CONFUSED = 10
"""Most frequent confusions that are named."""

NOTHING = {"accuracy": None, "accuracy_lo": None, "accuracy_hi": None}
"""Of a class without images."""

TOP = 5
"""Top-5 is scored where there are more classes than this."""


def score(
    path: Path,
    images: Iterable[UInt8[np.ndarray, "batch height width 3"]],
    labels: Int[np.ndarray, " images"] | Float[np.ndarray, "images attributes"],
    *,
    threads: int,
) -> tuple[dict[str, Any], Confidence | None]:
    """Score an ONNX file on labelled images that were rendered by its own input contract.

    Args:
        path: the file.
        images: in the order of the labels.
        labels: class indices; or, for attributes, targets from 0 to 1, which count as there from 0.5 on.
        threads: of ONNX Runtime.

    Returns:
        ``n``, ``metric``, the metric itself with its 95 % interval (``..._lo``, ``..._hi``) as fractions of
        1, ``classes``, ``predictions`` in the order of the images, and the file's ``sha256`` and
        ``size_bytes``. Beside it, for classes, what is kept of the probabilities.

        For classes the metric is ``top1`` with its Wilson interval; there are also ``correct``, the same of
        ``top5`` where there are more than 5 classes, ``confusion`` (rows: the truth, columns: the answer),
        the most frequent confusions by name (``confused``), and ``calibration``; each of ``classes`` has
        name, ``n``, ``correct``, and their share with its Wilson interval.

        For attributes it is ``map``, the mean average precision, with a bootstrap interval; each of
        ``classes`` has name, ``n`` (images that have it) and ``average_precision``; predictions are
        logits.

    Raises:
        ModelFileError: the file is not one of this pipeline.
        ValueError: images and labels do not match.
    """
    # Whoever renders the images needs the cores as well.
    classifier = open_classifier(path, threads=threads, spinning=False)
    names = classifier.labels
    parts: list[Float32[np.ndarray, "batch classes"]] = []
    seen = 0
    for logits in run(classifier, images):
        parts.append(logits)
        seen += len(logits)
        if seen > len(labels):
            raise ValueError(f"{path}: more images than the {len(labels)} labels")
    if seen < len(labels) or not parts:
        raise ValueError(f"{path}: {len(labels)} labels, but only {seen} images")
    logits = np.concatenate(parts)
    if labels.ndim == 1:
        measured, kept = _score_classes(path, names, logits, labels)
    else:
        measured, kept = _score_attributes(path, names, logits, labels), None
    scores = {
        "n": len(labels),
        **measured,
        "sha256": provenance.sha256(path),
        "size_bytes": path.stat().st_size,
        "runtime": f"onnxruntime {ort.__version__}",
        "provider": classifier.session.get_providers()[0],
    }
    return scores, kept


def _score_classes(
    path: Path,
    names: Sequence[str],
    logits: Float32[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
) -> tuple[dict[str, Any], Confidence]:
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"{path} knows {len(names)} classes, so labels lie in 0..{len(names) - 1}; "
            f"got {sorted(set(labels.tolist()))[:20]}"
        )
    kept = confidence.of(logits, labels)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (labels, kept.predictions), 1)
    correct = int(confusion.trace())
    result = {"metric": SINGLE_LABEL.metric, "correct": correct, **_accuracy("top1", correct, len(labels))}
    if len(names) > TOP:
        result |= _accuracy("top5", int(np.sum(ranks(logits, labels) < TOP)), len(labels))
    result |= {
        "calibration": confidence.measure(kept, labels),
        "classes": [
            {
                "label": name,
                "n": int(row.sum()),
                "correct": int(row[index]),
                **(_accuracy("accuracy", int(row[index]), int(row.sum())) if row.any() else NOTHING),
            }
            for index, (name, row) in enumerate(zip(names, confusion, strict=True))
        ],
        "confused": confused(confusion, names, CONFUSED),
        "confusion": confusion.tolist(),
        "predictions": kept.predictions.tolist(),
    }
    return result, kept


def _score_attributes(
    path: Path,
    names: Sequence[str],
    logits: Float32[np.ndarray, "images attributes"],
    targets: Float[np.ndarray, "_ _"],
) -> dict[str, Any]:
    if targets.shape != logits.shape or not (targets >= PRESENT).any():
        raise ValueError(
            f"{path} knows {len(names)} attributes, so targets are {logits.shape} with one that is there; "
            f"got {targets.shape}"
        )
    # Scored as they are written, so that a reader finds the same. Probabilities would tie at 0 and 1.
    predictions = logits.astype(np.float64).round(DECIMALS)
    lo, hi = interval(resampled_map(predictions, targets))
    precisions = average_precisions(predictions, targets)
    metric = MULTI_LABEL.metric
    return {
        "metric": metric,
        metric: mean_average_precision(predictions, targets),
        f"{metric}_lo": lo,
        f"{metric}_hi": hi,
        "classes": [
            {
                "label": name,
                "n": int((targets[:, index] >= PRESENT).sum()),
                "average_precision": None if np.isnan(precisions[index]) else float(precisions[index]),
            }
            for index, name in enumerate(names)
        ],
        "predictions": predictions.tolist(),
    }


def confused(
    confusion: Int[np.ndarray, "classes classes"], names: Sequence[str], most: int
) -> list[dict[str, Any]]:
    """The most frequent confusions: how many images of ``truth`` got ``answer``, of how many."""
    wrong = np.array(confusion)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    return [
        {
            "truth": names[truth],
            "answer": names[answer],
            "count": int(wrong[truth, answer]),
            "of": int(confusion[truth].sum()),
        }
        for truth, answer in pairs
    ]


def ranks(
    logits: Float32[np.ndarray, "batch classes"], labels: Int[np.ndarray, " batch"]
) -> Int64[np.ndarray, " batch"]:
    """How many classes stand before the true one; of equal logits the first class stands first."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1])[None] < labels[:, None]
    return np.sum((logits > own) | ((logits == own) & before), axis=1)


def _accuracy(name: str, correct: int, images: int) -> dict[str, float]:
    lo, hi = wilson(correct, images)
    return {name: correct / images, f"{name}_lo": lo, f"{name}_hi": hi}
