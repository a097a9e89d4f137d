"""The rows of the table of variants, from what the earlier stages measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pipeline.report.evidence import Part
from pipeline.report.results import VariantResults
from pipeline.selection.table import Row

Cost = Literal["latency", "size"]


def rows(variants: Iterable[VariantResults], comparison: Part) -> list[Row]:
    """One row per variant, in the order given.

    Args:
        variants: the measurements of each variant.
        comparison: differences to the parents and verdicts, as the stage `compare` writes them.
    """
    return [_row(one, comparison["variants"][one.variant]) for one in variants]


def cost(row: Row, kind: Cost) -> float:
    """Median latency in milliseconds, or file size in megabytes."""
    return row.latency_ms_p50 if kind == "latency" else row.size_bytes / 1e6


def front(table: Sequence[Row], kind: Cost) -> set[str]:
    """The Pareto front: variants for which no other variant costs at most as much and scores as high."""
    names, best = set(), -1.0
    for row in sorted(table, key=lambda row: (cost(row, kind), -row.score)):
        if row.score > best:
            names.add(row.variant)
            best = row.score
    return names


def _row(one: VariantResults, change: Mapping) -> Row:
    scores, metric = one.scores, one.scores["metric"]
    return Row(
        variant=one.variant,
        parent=one.parent,
        op=one.op,
        score=scores[metric],
        score_lo=scores[f"{metric}_lo"],
        score_hi=scores[f"{metric}_hi"],
        score_delta=change["delta"],
        delta_lo=change["lo"],
        delta_hi=change["hi"],
        mcnemar_p=change["mcnemar_p"],
        verdict=change["verdict"],
        max_drop=change["limits"]["max_drop"],
        test_images=change["n"],
        images_needed=change["images_needed"],
        size_bytes=scores["size_bytes"],
        parameters=one.parameters,
        macs=one.macs,
        latency_ms_p50=one.latency["latency_ms_p50"],
        latency_ratio_to_fp32=one.latency["ratio"],
        latency_ratio_lo=one.latency["ratio_lo"],
        latency_ratio_hi=one.latency["ratio_hi"],
        sha256=scores["sha256"],
        val_score=one.val,
        reference_delta=change["reference"]["delta"],
        reference_lo=change["reference"]["lo"],
        reference_hi=change["reference"]["hi"],
        metric=metric,
    )
