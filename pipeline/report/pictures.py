"""The trade-off of a run as a picture, within the page and as a file for pages elsewhere."""

from collections.abc import Mapping
from typing import get_args

from markupsafe import Markup

from pipeline.report import tables
from pipeline.report.figures import figure, span
from pipeline.report.page import charts
from pipeline.report.page import tradeoff as chart
from pipeline.report.results import RunResults
from pipeline.report.tables import Cost

LABELS: Mapping[Cost, str] = {
    "latency": "median latency, ms (left is faster)",
    "size": "file size, MB (left is smaller)",
}
UNITS: Mapping[Cost, str] = {"latency": "ms", "size": "MB"}


def tradeoff(results: RunResults, kind: Cost) -> Markup:
    """Score of every variant against its latency or its size; the dashed line is the teacher."""
    metric = results.task.words
    front = tables.front(results.table, kind)
    marks = [
        chart.Mark(
            name=row.variant,
            x=tables.cost(row, kind),
            y=100 * row.score,
            lo=100 * row.score_lo,
            hi=100 * row.score_hi,
            kind=row.verdict,
            front=row.variant in front,
            note=f"{row.variant}: {metric} {figure(row.score, '%')} "
            f"({span(row.score_lo, row.score_hi, '%')}), "
            f"{tables.cost(row, kind):.2f} {UNITS[kind]}, {row.verdict}ed"
            f"{', recommended' if row is results.best else ''}",
            recommended=row is results.best,
        )
        for row in results.table
    ]
    return chart.tradeoff(
        marks,
        title=f"{metric} against {kind}",
        x_label=LABELS[kind],
        y_label=f"{metric} on the test set, %",
        line=(f"{results.teacher_name} {figure(results.teacher_score, '%', 1)}", 100 * results.teacher_score),
        ceiling=100.5,
    )


def tradeoffs(results: RunResults) -> list[Markup]:
    """The trade-off against latency, and the one against size."""
    return [tradeoff(results, kind) for kind in get_args(Cost)]


def overview(results: RunResults) -> str:
    """Both trade-offs as one SVG file."""
    return charts.standalone(tradeoffs(results), f"{results.task.words} against latency and size")
