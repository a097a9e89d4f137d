"""Files for `dvc metrics` and `dvc plots`: a few figures of each variant, and points to draw."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.escaping import for_embedding
from pipeline.models.histories import continued
from pipeline.report import tables
from pipeline.report.evidence import Part
from pipeline.report.findings import class_score
from pipeline.report.results import RunResults, VariantResults
from pipeline.report.tables import Cost
from pipeline.selection.table import DECIMALS, TEACHER, Row, column

METRICS = (
    *("score", "score_delta", "val_score", "verdict"),
    *("size_bytes", "latency_ms_p50", "latency_ratio_to_fp32"),
)
"""Columns of ``variants.csv`` that `dvc metrics` shows side by side; the table has all others."""

UNITS: Mapping[Cost, str] = {"latency": "milliseconds", "size": "megabytes"}
"""Name of the value that a variant costs."""

Points = list[dict[str, Any]]


def write_metrics(folder: Path, table: Sequence[Row]) -> None:
    """Write one JSON file per variant, so that `dvc metrics show` has one line per variant."""
    for row in table:
        values = asdict(row)
        named = {column(name, row.metric): _rounded(values[name]) for name in METRICS}
        files.write(folder / f"{row.variant}.json", json.dumps(named, indent=2) + "\n")


def write_points(folder: Path, results: RunResults) -> None:
    """Write the points that the plots of `dvc.yaml` draw with the templates in `.dvc/plots/`."""
    histories = {TEACHER: results.teacher_history} | {one.variant: one.history for one in results.variants}
    plots = {
        "training": training(histories, results.task.metric),
        "latency": tradeoff(results.table, "latency"),
        "size": tradeoff(results.table, "size"),
        "classes": [point for one in results.variants for point in classes(one)],
        "confusion": [point for one in results.variants for point in confusion(one)],
    }
    for name, points in plots.items():
        lines = ",\n".join(json.dumps(point) for point in points)
        files.write(folder / f"{name}.json", f"[\n{lines}\n]\n")


def training(histories: Mapping[str, Sequence[Part]], metric: str) -> Points:
    """Loss and validation score after each epoch, counted through all parts of a training."""
    return [
        {
            "variant": variant,
            "epoch": _rounded(line["epoch"]),
            "loss": _rounded(line["loss"]),
            "val_score": _rounded(line[f"val_{metric}"]),
            "size": line.get("size"),
        }
        for variant, history in histories.items()
        for line in continued(history)
    ]


def tradeoff(table: Sequence[Row], kind: Cost) -> Points:
    """Score against cost; ``front`` marks the variants of the Pareto front."""
    front = tables.front(table, kind)
    return [
        {
            "variant": row.variant,
            UNITS[kind]: _rounded(tables.cost(row, kind)),
            "score": _rounded(row.score),
            "lo": _rounded(row.score_lo),
            "hi": _rounded(row.score_hi),
            "verdict": row.verdict,
            "front": row.variant in front,
        }
        for row in table
    ]


def classes(result: VariantResults) -> Points:
    """Accuracy on each class, or average precision of each attribute, where test images have it."""
    return [
        {
            "variant": result.variant,
            "class": for_embedding(counts["label"]),
            "score": _rounded(class_score(counts)),
        }
        for counts in result.scores["classes"]
        if counts["n"]
    ]


def confusion(result: VariantResults) -> Points:
    """Number of images of each class that got each answer, where any did; none among attributes."""
    names = [for_embedding(counts["label"]) for counts in result.scores["classes"]]
    return [
        {
            "variant": result.variant,
            "truth": truth,
            "answer": answer,
            "images": images,
            "share": _rounded(images / sum(row)),
        }
        for truth, row in zip(names, result.scores.get("confusion", ()), strict=False)
        for answer, images in zip(names, row, strict=True)
        if images
    ]


def _rounded(value: Any) -> Any:
    return round(value, DECIMALS) if isinstance(value, float) else value
