"""The chart of score against cost, with a label at every mark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from pipeline.escaping import for_html
from pipeline.report import placement
from pipeline.report.page.charts import Scale, across, shortened, svg, text, ticks
from pipeline.report.placement import Box, Label

LINE = 17.0
"""Height of a line at the largest text size, by which labels are kept apart."""
EM = 15.0
"""Largest size of the text."""
WIDTHS = (
    dict.fromkeys("0123456789", 0.7)
    | dict.fromkeys("ijl.,:;|'!", 0.36)
    | dict.fromkeys("frt-()/ ", 0.44)
    | dict.fromkeys("mwMW%@", 1.0)
)
"""Widths of letters in ems in a wide font, bold; others have ``WIDTH``, or ``CAPITAL``."""
WIDTH, CAPITAL = 0.7, 0.86
MARK_NAME, COLUMN_NAME = 26, 18
"""Greatest number of letters of a name beside a mark, and of one in a column; the tooltip has all of it."""
RADIUS, RING = 8.0, 11.0
"""Half the width of a mark, and of the recommended one with its ring."""


@dataclass(frozen=True)
class Mark:
    """One variant in a trade-off chart."""

    name: str
    x: float
    y: float
    lo: float
    hi: float
    """Upper end of the interval of ``y``; ``lo`` is its lower end."""
    kind: Literal["accept", "reject"]
    front: bool
    """Whether the variant is on the Pareto front."""
    note: str
    """Text of the tooltip."""
    recommended: bool = False

    @property
    def radius(self) -> float:
        """Half its width."""
        return RING if self.recommended else RADIUS


def tradeoff(
    marks: Sequence[Mark],
    *,
    title: str,
    x_label: str,
    y_label: str,
    line: tuple[str, float] | None = None,
    ceiling: float = math.inf,
) -> Markup:
    """Score (upwards) against cost (to the right); the Pareto front borders the shaded area.

    Args:
        marks: the variants.
        title: label for screen readers.
        x_label: name and unit of the cost.
        y_label: name and unit of the score.
        line: name and value of a level to compare with.
        ceiling: greatest possible value of ``y``.
    """
    width, height, left, right, top, bottom = 460.0, 360.0, 40.0, 12.0, 30.0, 46.0
    lows, highs = [mark.lo for mark in marks], [mark.hi for mark in marks]
    if line is not None:
        lows.append(line[1])
        highs.append(line[1])
    room = max(0.2, 0.08 * (max(highs) - min(lows)))
    low, high = min(lows) - room, min(max(highs) + room, ceiling)
    most = 1.2 * max(mark.x for mark in marks)

    x, y = Scale(0, most, left, width - right), Scale(low, high, height - bottom, top)
    labels = _beside_marks(marks, x, y, None if line is None else line[1])
    if labels is None:
        names = max(text_width(shortened(mark.name, COLUMN_NAME)) for mark in marks)
        height = max(height, top + bottom + LINE * len(marks))
        right += names + 34
        x, y = Scale(0, 1.05 * most / 1.2, left, width - right), Scale(low, high, height - bottom, top)
        labels = placement.column(
            [(x(mark.x), y(mark.y)) for mark in marks],
            [(text_width(shortened(mark.name, COLUMN_NAME)), LINE - 1) for mark in marks],
            left=width - names,
            top=top,
            bottom=height - bottom,
        )
        letters = COLUMN_NAME
    else:
        letters = MARK_NAME
    parts = [text(0, 14, y_label)]
    for value in ticks(y.low, y.high, 7):
        parts.append(across(left, width - right, y(value)))
        parts.append(text(left - 8, y(value) + 4.5, f"{value:g}", "end"))
    for value in ticks(x.low, x.high, 5 if letters == MARK_NAME else 3):
        parts.append(text(x(value), height - bottom + 19, f"{value:g}", "middle"))
    parts.append(text((left + width - right) / 2, height - 5, x_label, "middle"))
    parts.append(f'<path class="front" d="{_front(marks, x, y, width - right, height - bottom)}"/>')
    if line is not None:
        # The name of the level stands above the frame, where no mark can lie.
        name, level = line
        parts.append(across(left, width - right, y(level), "level"))
        parts.append(text(width - 32, 14, name, "end"))
        parts.append(across(width - 24, width, 10.0, "level"))
    drawn = list(zip(marks, labels, strict=True))
    parts += [_leader(x(mark.x), y(mark.y), label.box) for mark, label in drawn if label.leader]
    # The recommended mark is drawn last, above others.
    for mark, label in sorted(drawn, key=lambda item: item[0].recommended):
        parts.append(_mark(mark, x(mark.x), y(mark.y), y(mark.lo), y(mark.hi), label, letters))
    return svg(parts, width, height, title)


def _beside_marks(marks: Sequence[Mark], x: Scale, y: Scale, level: float | None) -> list[Label] | None:
    soft = [Box(x(mark.x) - 3, y(mark.hi), x(mark.x) + 3, y(mark.lo)) for mark in marks]
    if level is not None:
        soft.append(Box(x.start, y(level) - 2, x.end, y(level) + 2))
    return placement.settle(
        [(x(mark.x), y(mark.y)) for mark in marks],
        [(text_width(shortened(mark.name, MARK_NAME)), LINE) for mark in marks],
        radii=[mark.radius for mark in marks],
        soft=soft,
        frame=Box(x.start, y.end, x.end, y.start),
    )


def text_width(text: str) -> float:
    """The width of a text at the largest size, in the widest of the usual fonts."""
    return EM * sum(WIDTHS.get(letter, CAPITAL if not letter.islower() else WIDTH) for letter in text)


def _front(marks: Sequence[Mark], x: Scale, y: Scale, right: float, bottom: float) -> str:
    """Border of the area that the Pareto front dominates."""
    path = ""
    for mark in sorted((mark for mark in marks if mark.front), key=lambda mark: mark.x):
        start = f"H{x(mark.x):.1f}" if path else f"M{x(mark.x):.1f} {bottom:g}"
        path += f"{start}V{y(mark.y):.1f}"
    return f"{path}H{right:g}V{bottom:g}Z"


def _mark(mark: Mark, x: float, y: float, lo: float, hi: float, label: Label, letters: int) -> str:
    shape = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
        if mark.kind == "accept"
        # Verdicts differ in shape as well, for prints without colour.
        else f'<path d="M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8-8z"/>'
    )
    if mark.recommended:
        shape += f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{RING - 1:g}"/>'
    # The label is anchored on the side of its point, so that it stays there in other fonts.
    box = label.box
    middle = (box.x0 + box.x1) / 2
    anchor, at = (
        ("middle", x) if abs(middle - x) < 1 else ("start", box.x0) if middle > x else ("end", box.x1)
    )
    return (
        f'<g class="mark {mark.kind}{" recommended" if mark.recommended else ""}" '
        f'data-variant="{for_html(mark.name)}" data-front="{str(mark.front).lower()}" tabindex="0">'
        f"<title>{for_html(mark.note)}</title>"
        f'<path class="interval" d="M{x:.1f} {lo:.1f}V{hi:.1f}"/>{shape}'
        f"{text(at, box.y1 - 4, shortened(mark.name, letters), anchor, 'name')}</g>"
    )


def _leader(x: float, y: float, box: Box) -> str:
    """A thin line from a mark to its label, below all marks."""
    start, end = placement.leader((x, y), box)
    return f'<path class="leader" d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"/>'
