"""The picture of a run, as files for pages elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from pipeline.report.placement import Box, settle
from pipeline.report.tables import Row
from pipeline.selection.budget import TEACHER
from pipeline.tasks import METRICS

Cost = Literal["latency", "size"]
COST_LABELS: Mapping[Cost, str] = {
    "latency": "median latency, ms (left is faster)",
    "size": "file size, MB (left is smaller)",
}

INK, MUTED, LINE, PAPER = "#1b1f24", "#656d76", "#d5dae0", "#ffffff"
VERDICTS = {"accept": "#0072b2", "reject": "#c8500a"}
"""Blue and vermilion, told apart by the colour-blind (after Okabe and Ito 2008)."""

FONTS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
    "axes.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "distillery",
}


def overview(table: Sequence[Row], teacher_score: float | None) -> Figure:
    """Accuracy against latency and against size, side by side.

    Bars are 95 % intervals, thin lines lead from parent to child.
    """
    with matplotlib.rc_context(FONTS):
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        for axes, cost in zip(figure.subplots(1, 2, sharey=True), COST_LABELS, strict=True):
            _scatter(axes, table, cost, teacher_score)
        _settle_labels(figure)
    return figure


def save(figure: Figure, *paths: Path) -> None:
    """Write the figure to each path; the suffix says the format. The same figure gives the same bytes."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with matplotlib.rc_context(FONTS):
            figure.savefig(path, dpi=160, metadata=metadata)


def cost_of(row: Row, cost: Cost) -> float:
    """In the unit of ``COST_LABELS``."""
    return row.latency_ms_p50 if cost == "latency" else row.size_bytes / 1e6


def _scatter(axes: Axes, table: Sequence[Row], cost: Cost, teacher_score: float | None) -> None:
    _bare(axes)
    points = {row.variant: (cost_of(row, cost), 100 * row.score) for row in table}
    for row in table:
        x, y = points[row.variant]
        colour = VERDICTS[row.verdict]
        if row.parent in points:
            axes.plot(*zip(points[row.parent], (x, y), strict=True), color=LINE, linewidth=1, zorder=1)
        axes.vlines(
            x, 100 * row.score_lo, 100 * row.score_hi, color=colour, linewidth=1.6, alpha=0.55, zorder=2
        )
        # Verdicts differ in shape too, for prints without colour.
        axes.plot(
            *(x, y),
            marker="o" if row.verdict == "accept" else "D",
            markersize=7.5,
            color=colour,
            markeredgewidth=0,
            linestyle="none",
            zorder=3,
        )
        axes.annotate(
            row.variant,
            (x, y),
            (0, 0),
            textcoords="offset points",
            color=INK,
            fontsize=10.5,
            zorder=2.5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
        )
    lows, highs = [100 * row.score_lo for row in table], [100 * row.score_hi for row in table]
    if teacher_score is not None:
        lows.append(100 * teacher_score)
        highs.append(100 * teacher_score)
        axes.axhline(100 * teacher_score, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{TEACHER} {100 * teacher_score:.1f}%",
            (1, 100 * teacher_score),
            (0, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=MUTED,
            ha="right",
            fontsize=10,
            gid=TEACHER,
        )
    room = max(0.2, 0.08 * (max(highs) - min(lows)))
    axes.set_ylim(min(lows) - room, min(max(highs) + room, 100.5))
    axes.set_xlim(0, 1.22 * max(x for x, _ in points.values()))
    axes.set_xlabel(COST_LABELS[cost], color=MUTED)
    axes.set_title(
        f"{METRICS[table[0].metric].words} on test, %", loc="left", fontsize=10.5, color=MUTED, pad=3
    )


def _bare(axes: Axes) -> None:
    """No frame; faint lines across."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, length=0, labelsize=10)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)


def _settle_labels(figure: Figure) -> None:
    """Move each label to the place near its point where it covers least."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    renderer = canvas.get_renderer()
    for axes in figure.axes:
        texts = [text for text in axes.texts if isinstance(text, Annotation)]
        labels = [text for text in texts if text.get_gid() != TEACHER]
        points = [tuple(axes.transData.transform(label.xy)) for label in labels]
        sizes = [label.get_window_extent(renderer).size for label in labels]
        marks = [line for line in axes.lines if line.get_marker() != "None"]
        fixed = [text for text in texts if text.get_gid() == TEACHER]
        bars = [path for bar in axes.collections for path in bar.get_paths()]
        places = settle(
            points,
            [(width, height) for width, height in sizes],
            hard=[Box(*item.get_window_extent(renderer).extents).padded(4) for item in (*marks, *fixed)],
            # An interval is one vertical line, whose own extent is not defined.
            soft=[_bounds(axes.transData.transform(path.vertices)) for path in bars],
            frame=Box(*axes.bbox.extents),
        )
        for label, (x, y), place in zip(labels, points, places, strict=True):
            in_points = 72 / figure.dpi
            label.xyann = ((place.x0 - x) * in_points, (place.y0 - y) * in_points)
            label.set_verticalalignment("bottom")


def _bounds(vertices: Any) -> Box:
    return Box(*vertices.min(axis=0), *vertices.max(axis=0)).padded(3)
