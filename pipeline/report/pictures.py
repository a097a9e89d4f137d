"""Pictures of the report, drawn once for files and for pages with a light and a dark side."""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, BboxBase

from pipeline.report.tables import TEACHER, Row
from pipeline.tasks import METRICS

Cost = Literal["latency", "size"]
COST_LABELS: dict[Cost, str] = {
    "latency": "median latency, ms (left is faster)",
    "size": "file size, MB (left is smaller)",
}


@dataclass(frozen=True)
class Palette:
    """Colours by what they mean."""

    ink: str
    muted: str
    line: str
    accept: str
    reject: str
    paper: str


PAPER = Palette(
    ink="#1b1f24", muted="#656d76", line="#d5dae0", accept="#0072b2", reject="#c8500a", paper="#ffffff"
)
"""For files: blue and vermilion, told apart by the colour-blind (after Okabe and Ito 2008)."""

PLACEHOLDERS = Palette(
    ink="#010101", muted="#020202", line="#030303", accept="#040404", reject="#050505", paper="#060606"
)
"""For pages: stand-ins that ``inline`` turns into CSS variables of the same names."""

FONTS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
    "axes.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "distillery",
}

PLACES = tuple(
    (across * distance, up * distance)
    for distance in (9, 16, 24, 34, 46)
    for across, up in ((0.9, 0.7), (-0.9, 0.7), (0.9, -0.9), (-0.9, -0.9), (0.0, 1.3), (0.0, -1.5))
)
"""Offsets of a label from its point that are tried, in points."""

HARD, SOFT, FAR = 20.0, 1.0, 5.0
"""What a label costs for each pixel of points and labels, or of lines, that it covers; and for distance."""


def overview(table: Sequence[Row], teacher_score: float | None, palette: Palette = PAPER) -> Figure:
    """Accuracy against latency and against size, side by side."""
    with matplotlib.rc_context(FONTS):
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        for axes, cost in zip(figure.subplots(1, 2, sharey=True), COST_LABELS, strict=True):
            _scatter(axes, table, cost, teacher_score, palette)
        _settle_labels(figure)
    return figure


def tradeoff(table: Sequence[Row], cost: Cost, teacher_score: float | None, palette: Palette) -> Figure:
    """Accuracy against one cost; bars are 95 % intervals, thin lines lead from parent to child."""
    with matplotlib.rc_context(FONTS):
        figure = Figure(figsize=(5.0, 4.0), layout="constrained")
        _scatter(figure.subplots(), table, cost, teacher_score, palette)
        _settle_labels(figure)
    return figure


def curves(history: Sequence[Mapping[str, Any]], palette: Palette) -> Figure:
    """The score on val and the loss over the epochs of one training run."""
    scores = {f"val_{metric}": f"val {task.words}, %" for metric, task in METRICS.items()}
    panels = [(key, label) for key, label in [*scores.items(), ("loss", "loss")] if key in history[0]]
    with matplotlib.rc_context(FONTS):
        figure = Figure(figsize=(3.6, 1.45 * len(panels) + 0.35), layout="constrained")
        for axes, (key, label) in zip(
            figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels, strict=True
        ):
            points = [(line["epoch"], line[key]) for line in history if line.get(key) is not None]
            scale = 100 if key in scores else 1
            epochs, values = [x for x, _ in points], [y * scale for _, y in points]
            _bare(axes, palette)
            axes.plot(
                *(epochs, values),
                color=palette.accept if key in scores else palette.muted,
                linewidth=1.6,
                marker="o" if len(points) < 15 else None,
                markersize=3,
            )
            axes.set_title(label, loc="left", fontsize=10, color=palette.muted, pad=4)
            axes.margins(x=0.04, y=0.18)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            if values:
                last = f"{values[-1]:.{1 if scale == 100 else 3}f}"
                axes.set_title(last, loc="right", fontsize=10, color=palette.ink, pad=4)
        lowest = figure.axes[-1]
        lowest.set_xlabel("epoch", color=palette.muted, fontsize=10)
        lowest.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def save(figure: Figure, *paths: Path) -> None:
    """Write the figure to each path; the suffix says the format. The same figure gives the same bytes."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with matplotlib.rc_context(FONTS):
            figure.savefig(path, dpi=160, metadata=metadata)


def inline(figure: Figure, name: str, title: str) -> str:
    """An ``<svg>`` element for a page: coloured by CSS variables, as wide as its place, ids its own.

    Args:
        figure: drawn with ``PLACEHOLDERS``.
        name: prefix of the ids, different for each picture of a page.
        title: what the picture shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(FONTS):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for meaning, colour in asdict(PLACEHOLDERS).items():
        svg = svg.replace(colour, f"var(--{meaning})")
    svg = re.sub(r"font: [^;\"]*?(\d[\d.]*)px[^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'id="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _scatter(
    axes: Axes, table: Sequence[Row], cost: Cost, teacher_score: float | None, palette: Palette
) -> None:
    _bare(axes, palette)
    points = {row.variant: (_cost(row, cost), 100 * row.score) for row in table}
    for row in table:
        x, y = points[row.variant]
        colour = palette.accept if row.verdict == "accept" else palette.reject
        if row.parent in points:
            axes.plot(
                *zip(points[row.parent], (x, y), strict=True), color=palette.line, linewidth=1, zorder=1
            )
        axes.vlines(
            x, 100 * row.score_lo, 100 * row.score_hi, color=colour, linewidth=1.6, alpha=0.55, zorder=2
        )
        # Verdicts differ in shape too, for prints without colour.
        axes.plot(
            *(x, y),
            marker="o" if row.verdict == "accept" else "X",
            markersize=7.5,
            color=colour,
            markeredgewidth=0,
            linestyle="none",
            zorder=3,
        )
        axes.annotate(
            row.variant,
            (x, y),
            (8, 6),
            textcoords="offset points",
            color=palette.ink,
            fontsize=10.5,
            zorder=2.5,
            bbox={"facecolor": palette.paper, "edgecolor": "none", "pad": 0.6},
        )
    lows, highs = [100 * row.score_lo for row in table], [100 * row.score_hi for row in table]
    if teacher_score is not None:
        lows.append(100 * teacher_score)
        highs.append(100 * teacher_score)
        axes.axhline(100 * teacher_score, color=palette.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{TEACHER} {100 * teacher_score:.1f}%",
            (1, 100 * teacher_score),
            (0, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=palette.muted,
            ha="right",
            fontsize=10,
            gid=TEACHER,
        )
    room = max(0.2, 0.08 * (max(highs) - min(lows)))
    axes.set_ylim(min(lows) - room, min(max(highs) + room, 100.5))
    axes.set_xlim(0, 1.22 * max(x for x, _ in points.values()))
    axes.set_xlabel(COST_LABELS[cost], color=palette.muted)
    axes.set_title(
        f"{METRICS[table[0].metric].words} on test, %", loc="left", fontsize=10.5, color=palette.muted, pad=3
    )


def _cost(row: Row, cost: Cost) -> float:
    return row.latency_ms_p50 if cost == "latency" else row.size_bytes / 1e6


def _bare(axes: Axes, palette: Palette) -> None:
    """No frame; faint lines across."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.line)
    axes.tick_params(colors=palette.muted, length=0, labelsize=10)
    axes.grid(axis="y", color=palette.line, linewidth=0.8)
    axes.set_axisbelow(True)


def _settle_labels(figure: Figure) -> None:
    """Move each label to the place near its point where it covers least."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    renderer = canvas.get_renderer()
    for axes in figure.axes:
        labels = [text for text in axes.texts if isinstance(text, Annotation)]
        fixed = [label for label in labels if label.get_gid() == TEACHER]
        # Boxes to keep free, and how much it costs to cover a pixel of each.
        taken = [(label.get_window_extent(renderer).padded(2), HARD) for label in fixed]
        for line in axes.lines:
            if line.get_marker() != "None":
                taken.append((line.get_window_extent(renderer).padded(6), HARD))
            elif line.get_linestyle() == "--":
                taken.append((line.get_window_extent(renderer).padded(2), SOFT))
        for bars in axes.collections:
            # An interval is one vertical line, whose own extent is not defined.
            taken += [
                (Bbox(axes.transData.transform(path.vertices)).padded(3), SOFT) for path in bars.get_paths()
            ]
        for label in (label for label in labels if label not in fixed):
            costs = []
            for place in PLACES:
                _place(label, place)
                box = label.get_window_extent(renderer)
                covered = sum(weight * _overlap(box, other) for other, weight in taken)
                costs.append(covered + HARD * _outside(box, axes.bbox) + FAR * math.hypot(*place))
            _place(label, PLACES[costs.index(min(costs))])
            taken.append((label.get_window_extent(renderer).padded(1), HARD))


def _place(label: Annotation, offset: tuple[float, float]) -> None:
    label.xyann = offset
    label.set_horizontalalignment("center" if offset[0] == 0 else "left" if offset[0] > 0 else "right")
    label.set_verticalalignment("bottom" if offset[1] > 0 else "top")


def _overlap(a: BboxBase, b: BboxBase) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: BboxBase, frame: BboxBase) -> float:
    return box.width * box.height - _overlap(box, frame)
