"""The table of variants, and what it is made of."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.models import storage
from pipeline.selection.budget import TEACHER
from pipeline.statistics.intervals import Verdict, compare, compare_map, verdict
from pipeline.tasks import SINGLE_LABEL, Metric

DECIMALS = 6


@dataclass(frozen=True)
class Entry:
    """What is known of one variant."""

    variant: str
    parent: str
    op: str
    scores: Mapping[str, Any]
    """As ``evaluation.score`` returns them."""
    parameters: int
    macs: int
    val: float
    """Score of the module on val, int8 ones as the runtime computes."""
    latency: Mapping[str, Any]
    """The variant's part of ``latency.measure``'s result."""
    history: Sequence[Mapping[str, Any]] = ()
    """One line per epoch: ``epoch``, ``step``, ``seconds``, ``loss``, the val score and named terms."""


@dataclass(frozen=True)
class Row:
    """One line of ``variants.csv``; the fields are its columns, in order, but for ``metric``.

    In the file ``score`` is called by the metric: ``top1``, ``top1_lo``, ``top1_delta``; or ``map``.
    """

    variant: str
    parent: str
    op: str
    score: float
    score_lo: float
    score_hi: float
    score_delta: float
    """Against the parent, on the same images, as a fraction of 1."""
    delta_lo: float
    delta_hi: float
    mcnemar_p: float | None
    """None for attributes."""
    verdict: Verdict
    size_bytes: int
    parameters: int
    macs: int
    latency_ms_p50: float
    latency_ratio_to_fp32: float | None
    """fp32's time over this variant's in the same run; None where there is no fp32."""
    sha256: str
    val_score: float
    """On val: what a choice among many experiments is made by."""
    metric: Metric


FIELDS = tuple(column.name for column in fields(Row) if column.name != "metric")


def column(name: str, metric: Metric) -> str:
    """What a field of ``Row`` is called outside."""
    return name.replace("score", metric)


def gather(
    declared: Mapping[str, tuple[str, str]],
    *,
    metrics: Callable[[str], Path],
    folder: Callable[[str], Path],
    benchmark: Mapping[str, Any],
) -> list[Entry]:
    """Read what the earlier stages wrote of each variant.

    Args:
        declared: variant to its parent and operation.
        metrics: where a variant's scores are.
        folder: where a variant's model and history are.
        benchmark: as ``latency.measure`` returns it.
    """
    entries = []
    for variant, (parent, op) in declared.items():
        scores = json.loads(metrics(variant).read_text())
        card = json.loads((folder(variant) / storage.CARD).read_text())
        entries.append(
            Entry(
                variant=variant,
                parent=parent,
                op=op,
                scores=scores,
                parameters=scores["parameters"],
                macs=scores["macs"],
                val=card["val"][scores["metric"]],
                latency=benchmark["variants"][variant],
                history=storage.read_history(folder(variant)),
            )
        )
    return entries


def rows(
    entries: Sequence[Entry],
    *,
    teacher: np.ndarray,
    labels: np.ndarray,
    max_drop: float,
) -> list[Row]:
    """Compare every variant with its parent on the same test images, in the order given.

    Args:
        entries: the variants; the parent of each is among them, or ``teacher``.
        teacher: the teacher's own predictions, as ``Task.predictions`` gives them.
        labels: the true classes, or attributes.
        max_drop: greatest loss against the parent that is tolerated, as a fraction of 1.

    Raises:
        ValueError: a parent is missing, or a variant was scored on another number of images.
    """
    answers = {TEACHER: teacher} | {
        entry.variant: np.asarray(entry.scores["predictions"]) for entry in entries
    }
    for name, predictions in answers.items():
        if len(predictions) != len(labels):
            raise ValueError(f"{name} was scored on {len(predictions)} images, but test has {len(labels)}")
    return [_row(entry, answers, labels, max_drop) for entry in entries]


def write_csv(path: Path, table: Sequence[Row]) -> None:
    """Write ``variants.csv``; fractions are rounded to 6 decimals, p values keep their magnitude."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column(name, table[0].metric) for name in FIELDS)
        writer.writerows([_cell(name, getattr(row, name)) for name in FIELDS] for row in table)


def lineage(table: Sequence[Row], variant: str) -> list[Row]:
    """The variant's row and those of its ancestors, the variant first."""
    by_name = {row.variant: row for row in table}
    chain = [by_name[variant]]
    while chain[-1].parent != TEACHER:
        chain.append(by_name[chain[-1].parent])
    return chain


def _row(entry: Entry, answers: Mapping[str, np.ndarray], labels: np.ndarray, max_drop: float) -> Row:
    if entry.parent not in answers:
        raise ValueError(f"{entry.variant}: parent {entry.parent} is not among {', '.join(answers)}")
    own, parents = answers[entry.variant], answers[entry.parent]
    scores, metric = entry.scores, entry.scores["metric"]
    difference = (
        compare(own == labels, parents == labels)
        if metric == SINGLE_LABEL.metric
        else compare_map(own, parents, labels)
    )
    return Row(
        variant=entry.variant,
        parent=entry.parent,
        op=entry.op,
        score=scores[metric],
        score_lo=scores[f"{metric}_lo"],
        score_hi=scores[f"{metric}_hi"],
        score_delta=difference.delta,
        delta_lo=difference.lo,
        delta_hi=difference.hi,
        mcnemar_p=difference.mcnemar_p,
        verdict=verdict(difference.lo, max_drop),
        size_bytes=scores["size_bytes"],
        parameters=entry.parameters,
        macs=entry.macs,
        latency_ms_p50=entry.latency["latency_ms_p50"],
        latency_ratio_to_fp32=entry.latency["ratio"],
        sha256=scores["sha256"],
        val_score=entry.val,
        metric=metric,
    )


def _cell(name: str, value: Any) -> Any:
    if name == "mcnemar_p":
        return "" if value is None else f"{value:.6g}"
    return round(value, DECIMALS) if isinstance(value, float) else value
