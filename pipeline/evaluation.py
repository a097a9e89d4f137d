"""Scores of shipped files, measured in the runtime that ships."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from jaxtyping import Float32, Int, Int64, UInt8

from pipeline import provenance
from pipeline.inference import open_classifier, run
from pipeline.statistics import wilson

TOP = 5
"""Top-5 is scored where there are more classes than this."""


def score(
    path: Path,
    images: Iterable[UInt8[np.ndarray, "batch height width 3"]],
    labels: Int[np.ndarray, " images"],
    *,
    threads: int,
) -> dict[str, Any]:
    """Score an ONNX file on labelled images that were rendered by its own input contract.

    Returns:
        ``n``, ``correct``, ``top1`` with its 95 % Wilson interval ``top1_lo`` and ``top1_hi``, the
        same of ``top5`` where there are more than 5 classes, ``classes`` (name, ``n``,
        ``correct``), ``confusion`` (rows: the truth, columns: the answer), ``predictions`` in the
        order of the images, and the file's ``sha256`` and ``size_bytes``. All accuracies are
        quotients of counts over all images, as fractions of 1.

    Raises:
        ModelFileError: the file is not one of this pipeline.
        ValueError: images and labels do not match.
    """
    classifier = open_classifier(path, threads=threads)
    names = classifier.labels
    if not len(labels) or labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"{path} knows {len(names)} classes, so labels lie in 0..{len(names) - 1} and are not none; "
            f"got {len(labels)} labels, {sorted(set(labels.tolist()))[:20]}"
        )
    predictions: list[int] = []
    in_top = 0
    for logits in run(classifier, images):
        truth = labels[len(predictions) : len(predictions) + len(logits)]
        if len(truth) < len(logits):
            raise ValueError(f"{path}: more images than the {len(labels)} labels")
        predictions += logits.argmax(axis=1).tolist()
        in_top += int(np.sum(ranks(logits, truth) < TOP))
    if len(predictions) < len(labels):
        raise ValueError(f"{path}: {len(labels)} labels, but only {len(predictions)} images")
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (labels, np.asarray(predictions)), 1)
    correct = int(confusion.trace())
    result: dict[str, Any] = {"n": len(labels), "correct": correct, **_accuracy("top1", correct, len(labels))}
    if len(names) > TOP:
        result |= _accuracy("top5", in_top, len(labels))
    return {
        **result,
        "classes": [
            {"label": name, "n": int(row.sum()), "correct": int(row[index])}
            for index, (name, row) in enumerate(zip(names, confusion, strict=True))
        ],
        "confusion": confusion.tolist(),
        "predictions": predictions,
        "sha256": provenance.sha256(path),
        "size_bytes": path.stat().st_size,
        "runtime": f"onnxruntime {ort.__version__}",
        "provider": classifier.session.get_providers()[0],
    }


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
