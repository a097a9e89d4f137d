"""Scores of the ONNX files, measured in the runtime that users run them in."""

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
from pipeline.statistics.bootstrap import percentile_interval, resampled_map
from pipeline.statistics.intervals import widen, wilson
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL

DECIMALS = 6
"""Digits after the decimal point of logits in the file of scores."""

CONFUSIONS = 10
"""Number of the most frequent confusions that are listed."""

UNKNOWN = {"accuracy": None, "accuracy_lo": None, "accuracy_hi": None}
"""Accuracy of a class without images."""

TOP = 5
"""Top-5 accuracy is measured where there are more classes than this."""


def score(
    path: Path,
    images: Iterable[UInt8[np.ndarray, "_ height width 3"]],
    labels: Int[np.ndarray, " images"] | Float[np.ndarray, "images attributes"],
    *,
    threads: int,
) -> tuple[dict[str, Any], Confidence | None]:
    """Score an ONNX file on labelled images that were rendered by its own input contract.

    Args:
        path: path of the file.
        images: batches of the images, in the order of the labels.
        labels: class indices; or, for attributes, targets from 0 to 1, where an image counts as having the
            attribute from 0.5 on.
        threads: number of parts of a batch that run at the same time, each in a thread.

    Returns:
        ``n``, ``metric``, the metric itself with the ends of its 95 % interval (``..._lo``, ``..._hi``) as
        fractions of 1, ``classes``, ``predictions`` in the order of the images, and the ``sha256`` and
        ``size_bytes`` of the file. The second value is the confidence in each image; None for attributes.

        For classes, the metric is ``top1`` with its Wilson interval. There are also the number of ``correct``
        images, ``top5`` where there are more than 5 classes, ``confusion`` (rows are true classes, columns
        predicted ones), the most frequent confusions by name (``confused``), and ``calibration``. Each of
        ``classes`` has a ``label``, ``n``, ``correct``, and ``accuracy`` with its Wilson interval.

        For attributes, the metric is ``map``, the mean average precision, with a bootstrap interval. Each of
        ``classes`` has a ``label``, ``n`` (the number of images that have it) and ``average_precision``.
        The predictions are logits.

    Raises:
        ModelFileError: the file is not an ONNX file of this pipeline.
        ValueError: the images and the labels do not match.
    """
    classifier = open_classifier(path, parts=threads)
    figures, probabilities = score_logits(path, classifier.labels, run(classifier, images), labels)
    scores = {
        **figures,
        "sha256": provenance.sha256(path),
        "size_bytes": path.stat().st_size,
        "runtime": f"onnxruntime {ort.__version__}",
        "provider": classifier.session.get_providers()[0],
    }
    return scores, probabilities


def score_logits(
    path: Path,
    names: Sequence[str],
    batches: Iterable[Float32[np.ndarray, "_ classes"]],
    labels: Int[np.ndarray, " images"] | Float[np.ndarray, "images attributes"],
) -> tuple[dict[str, Any], Confidence | None]:
    """Score the logits of any file in any runtime, in the order of the labels.

    Returns:
        What ``score`` returns, without the facts about the file and the runtime.

    Raises:
        ValueError: the logits and the labels do not match.
    """
    parts: list[Float32[np.ndarray, "_ classes"]] = []
    seen = 0
    for logits in batches:
        parts.append(logits)
        seen += len(logits)
        if seen > len(labels):
            raise ValueError(f"{path}: there are more images than labels ({len(labels)})")
    if seen < len(labels) or not parts:
        raise ValueError(f"{path}: there are {len(labels)} labels, but only {seen} images")
    logits = np.concatenate(parts)
    if labels.ndim == 1:
        figures, probabilities = _score_classes(path, names, logits, labels)
    else:
        figures, probabilities = _score_attributes(path, names, logits, labels), None
    return {"n": len(labels), **figures}, probabilities


def _score_classes(
    path: Path,
    names: Sequence[str],
    logits: Float32[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " images"],
) -> tuple[dict[str, Any], Confidence]:
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"{path} has {len(names)} classes, so labels must lie in 0..{len(names) - 1}; "
            f"got {sorted(set(labels.tolist()))[:20]}"
        )
    probabilities = confidence.from_logits(logits, labels)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (labels, probabilities.predictions), 1)
    correct = int(confusion.trace())
    result = {"metric": SINGLE_LABEL.metric, "correct": correct, **_accuracy("top1", correct, len(labels))}
    if len(names) > TOP:
        result |= _accuracy("top5", int(np.sum(ranks(logits, labels) < TOP)), len(labels))
    result |= {
        "calibration": confidence.measure(probabilities, labels),
        "classes": [
            {
                "label": name,
                "n": int(row.sum()),
                "correct": int(row[index]),
                **(_accuracy("accuracy", int(row[index]), int(row.sum())) if row.any() else UNKNOWN),
            }
            for index, (name, row) in enumerate(zip(names, confusion, strict=True))
        ],
        "confused": list_confusions(confusion, names, CONFUSIONS),
        "confusion": confusion.tolist(),
        "predictions": probabilities.predictions.tolist(),
    }
    return result, probabilities


def _score_attributes(
    path: Path,
    names: Sequence[str],
    logits: Float32[np.ndarray, "images attributes"],
    targets: Float[np.ndarray, "_ _"],
) -> dict[str, Any]:
    if targets.shape != logits.shape or not (targets >= PRESENT).any():
        raise ValueError(
            f"{path} has {len(names)} attributes, so targets must have the shape {logits.shape} and one "
            f"value of at least {PRESENT}; got {targets.shape}"
        )
    # Rounded before scoring, so that the file reproduces its own scores. Probabilities would tie at 0 and 1.
    predictions = logits.astype(np.float64).round(DECIMALS)
    precisions = average_precisions(predictions, targets)
    metric, value = MULTI_LABEL.metric, mean_average_precision(predictions, targets)
    lo, hi = percentile_interval(resampled_map(predictions, targets))
    lo, hi = widen(value, lo, hi, int((targets >= PRESENT).sum()))
    return {
        "metric": metric,
        metric: value,
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


def list_confusions(
    confusion: Int[np.ndarray, "classes classes"], names: Sequence[str], limit: int
) -> list[dict[str, Any]]:
    """The most frequent confusions: ``count`` of the ``of`` images of ``truth`` became ``answer``.

    Args:
        confusion: number of images by true class (rows) and predicted class (columns).
        names: names of the classes.
        limit: greatest number of confusions to list.
    """
    wrong = np.array(confusion)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
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
    """Number of classes ranked above the true one; of equal logits, the first class ranks highest."""
    of_truth = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    return np.sum((logits > of_truth) | ((logits == of_truth) & earlier), axis=1)


def _accuracy(name: str, correct: int, images: int) -> dict[str, float]:
    lo, hi = wilson(correct, images)
    return {name: correct / images, f"{name}_lo": lo, f"{name}_hi": hi}
