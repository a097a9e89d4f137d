"""What `dvc metrics` and `dvc plots` read: a few figures of each variant, and points to draw."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.models.histories import continued
from pipeline.report.tables import DECIMALS, Entry, Row, column
from pipeline.selection.budget import TEACHER

METRICS = (
    *("score", "score_lo", "score_hi", "score_delta", "delta_lo", "delta_hi"),
    *("size_bytes", "macs", "latency_ms_p50", "latency_ratio_to_fp32", "verdict", "val_score"),
)
"""Columns of ``variants.csv`` that fit side by side on a screen."""

Points = list[dict[str, Any]]


def write_metrics(folder: Path, table: Sequence[Row]) -> None:
    """Write a JSON file for each variant, so that `dvc metrics show` has a line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in table:
        figures = asdict(row)
        named = {column(name, row.metric): _rounded(figures[name]) for name in METRICS}
        (folder / f"{row.variant}.json").write_text(json.dumps(named, indent=2) + "\n")


def write_points(
    folder: Path,
    table: Sequence[Row],
    entries: Sequence[Entry],
    teacher_history: Sequence[Mapping[str, Any]],
) -> None:
    """Write the points that the plots of `dvc.yaml` draw with the templates in `.dvc/plots/`."""
    folder.mkdir(parents=True, exist_ok=True)
    histories = {TEACHER: teacher_history} | {entry.variant: entry.history for entry in entries}
    drawn = {
        "training": training(histories, table[0].metric),
        "latency": tradeoff(table, "milliseconds", {row.variant: row.latency_ms_p50 for row in table}),
        "size": tradeoff(table, "megabytes", {row.variant: row.size_bytes / 1e6 for row in table}),
        "classes": [point for entry in entries for point in classes(entry)],
        "confusion": [point for entry in entries for point in confusion(entry)],
    }
    for name, points in drawn.items():
        lines = ",\n".join(json.dumps(point) for point in points)
        (folder / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def training(histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> Points:
    """Loss and score on val after each epoch; parts of one training follow each other."""
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


def tradeoff(table: Sequence[Row], unit: str, costs: Mapping[str, float]) -> Points:
    """Score against cost; ``front`` where no other variant costs no more and scores as much (Pareto)."""
    front, best = set(), -1.0
    for row in sorted(table, key=lambda row: (costs[row.variant], -row.score)):
        if row.score > best:
            front.add(row.variant)
            best = row.score
    return [
        {
            "variant": row.variant,
            unit: _rounded(costs[row.variant]),
            "score": _rounded(row.score),
            "lo": _rounded(row.score_lo),
            "hi": _rounded(row.score_hi),
            "verdict": row.verdict,
            "front": row.variant in front,
        }
        for row in table
    ]


def classes(entry: Entry) -> Points:
    """Share of each class's test images that are named right, or average precision of each attribute."""
    return [
        {
            "variant": entry.variant,
            "class": counts["label"],
            "score": _rounded(
                counts["average_precision"]
                if "average_precision" in counts
                else counts["correct"] / counts["n"]
            ),
        }
        for counts in entry.scores["classes"]
        if counts["n"]
    ]


def confusion(entry: Entry) -> Points:
    """How many images of each class got each answer, where any did; none among attributes."""
    names = [counts["label"] for counts in entry.scores["classes"]]
    return [
        {
            "variant": entry.variant,
            "truth": truth,
            "answer": answer,
            "images": images,
            "share": _rounded(images / sum(row)),
        }
        for truth, row in zip(names, entry.scores.get("confusion", ()), strict=False)
        for answer, images in zip(names, row, strict=True)
        if images
    ]


def _rounded(value: Any) -> Any:
    return round(value, DECIMALS) if isinstance(value, float) else value
