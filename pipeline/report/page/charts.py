"""Charts as SVG, coloured by ``charts.css``, with a label for screen readers and tooltips on the marks.

Lengths are in units of the chart's own ``viewBox``. ``standalone`` makes a file of its own; elsewhere
the page sets the size of the text.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from markupsafe import Markup

from pipeline.escaping import for_html

BAR_NAME = 56
"""Greatest number of letters of a name above a bar; the tooltip has the whole name."""
VIEW_BOX = re.compile(r'viewBox="0 0 (\S+) (\S+)"')
"""Width and height of a chart."""


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    label: str
    points: Sequence[tuple[int | float, int | float]]
    last: str
    """The last value as text."""
    kind: Literal["accept", "muted"]


@dataclass(frozen=True)
class Bar:
    """One value with its interval."""

    name: str
    value: float
    lo: float
    hi: float
    note: str
    """Text of the tooltip."""


@dataclass(frozen=True)
class Scale:
    """A linear map from values to coordinates."""

    low: int | float
    high: int | float
    start: float
    end: float

    def __call__(self, value: int | float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def curves(panels: Sequence[Series], *, title: str, x_label: str) -> Markup:
    """Panels above each other that share the horizontal axis."""
    width, panel, left, right, bottom = 320.0, 124.0, 36.0, 6.0, 40.0
    height = panel * len(panels) + bottom
    ends = [point[0] for series in panels for point in series.points]
    x = Scale(min(0.0, *ends), max(ends), left, width - right)
    parts = []
    for number, series in enumerate(panels):
        values = [value for _, value in series.points]
        margin = 0.12 * (max(values) - min(values)) or 0.5
        base = panel * (number + 1)
        y = Scale(min(values) - margin, max(values) + margin, base - 8, base - panel + 34)
        parts.append(text(0, base - panel + 13, series.label))
        parts.append(text(width - right, base - panel + 13, series.last, "end", "name"))
        for value in ticks(y.low, y.high, 3):
            parts.append(across(left, width - right, y(value)))
            parts.append(text(left - 6, y(value) + 4, f"{value:g}", "end"))
        places = [(x(at), y(value)) for at, value in series.points]
        parts.append(f'<path class="curve {series.kind}" d="{_path(places)}"/>')
        if len(places) < 15:
            parts += [f'<circle class="{series.kind}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in places]
    for value in ticks(x.low, x.high, 5):
        parts.append(text(x(value), height - bottom + 16, f"{value:g}", "middle"))
    parts.append(text((left + width - right) / 2, height - 5, x_label, "middle"))
    return svg(parts, width, height, title)


def calibration(bins: Sequence[tuple[int | float, int | float, int]], *, title: str) -> Markup:
    """Reliability diagram: accuracy against confidence; a larger dot stands for more answers.

    Args:
        bins: mean confidence, accuracy, and number of answers of each bin that is not empty.
        title: label for screen readers.
    """
    side, left, top, bottom = 200.0, 34.0, 6.0, 42.0
    width, height = left + side + 6, top + side + bottom
    x, y = Scale(0, 1, left, left + side), Scale(0, 1, top + side, top)
    most = max(count for _, _, count in bins)
    parts = []
    for value in (0, 0.5, 1):
        parts.append(across(left, left + side, y(value)))
        parts.append(text(left - 6, y(value) + 4, f"{100 * value:g}", "end"))
        parts.append(text(x(value), top + side + 16, f"{100 * value:g}", "middle"))
    parts.append(f'<path class="level" d="M{x(0):.1f} {y(0):.1f}L{x(1):.1f} {y(1):.1f}"/>')
    for confidence, accuracy, count in bins:
        radius = 1.5 + 6 * math.sqrt(count / most)
        parts.append(
            f'<g class="accept"><title>{count:,} answers: confidence {100 * confidence:.1f} %, '
            f"accuracy {100 * accuracy:.1f} %</title>"
            f'<circle cx="{x(confidence):.1f}" cy="{y(accuracy):.1f}" r="{radius:.1f}"/></g>'
        )
    parts.append(text(left + side / 2, height - 4, "confidence, %", "middle"))
    return svg(parts, width, height, title)


def strip(shades: Sequence[int | float], *, title: str) -> Markup:
    """A row of small squares whose darkness is their shade, from 0 to 1."""
    squares = (
        f'<rect x="{15 * place}" width="13" height="13" rx="2" fill-opacity="{max(0.06, shade):.2f}"/>'
        for place, shade in enumerate(shades)
    )
    return svg(squares, 15 * len(shades) - 2, 13, title, "strip")


def bars(rows: Sequence[Bar], *, title: str, unit: str) -> Markup:
    """Values with their intervals, one per line."""
    width, row, margin = 460.0, 44.0, 12.0
    height = row * len(rows) + 26
    lows, highs = [bar.lo for bar in rows], [bar.hi for bar in rows]
    room = 0.06 * (max(highs) - min(lows)) or 0.5
    x = Scale(min(lows) - room, max(highs) + room, margin, width - margin)
    parts = []
    for value in ticks(x.low, x.high, 5):
        parts.append(f'<path class="grid" d="M{x(value):.1f} 4V{height - 22:g}"/>')
        parts.append(text(x(value), height - 6, f"{value:g}{unit}", "middle"))
    for number, bar in enumerate(rows):
        at = row * number + 16
        parts.append(
            f'<g class="accept"><title>{for_html(f"{bar.name}: {bar.note}")}</title>'
            f"{text(0, at, shortened(bar.name, BAR_NAME), kind='name')}"
            f"{across(x(bar.lo), x(bar.hi), at + 12, 'interval')}"
            f'<circle cx="{x(bar.value):.1f}" cy="{at + 12:g}" r="5"/></g>'
        )
    return svg(parts, width, height, title)


def dots(
    rows: Sequence[tuple[str, Sequence[float]]],
    series: Sequence[str],
    level: tuple[str, float],
    *,
    title: str,
    x_label: str,
) -> Markup:
    """Several values per row on one line, and a level to compare them with.

    Args:
        rows: name of the row, and one value per series, as fractions of 1.
        series: names of the series, from pale to dark.
        level: name and value of the dashed line.
        title: label for screen readers.
        x_label: name of the axis, which is in per cent.
    """
    width, row, left, right, top, bottom = 460.0, 21.0, 158.0, 16.0, 58.0, 42.0
    height = top + row * len(rows) + bottom
    values = [100 * value for value in (*(v for _, of in rows for v in of), level[1])]
    room = 0.04 * (max(values) - min(values)) or 0.5
    x = Scale(min(values) - room, max(values) + room, left, width - right)
    parts = []
    shades = [round((number + 1) / len(series), 2) for number in range(len(series))]
    step = width / len(series)
    for number, (name, shade) in enumerate(zip(series, shades, strict=True)):
        at = step * number + 7
        parts.append(f'<circle class="accept" fill-opacity="{shade}" cx="{at:.1f}" cy="10" r="5"/>')
        parts.append(text(at + 10, 14.5, name))
    for value in ticks(x.low, x.high, 5):
        parts.append(f'<path class="grid" d="M{x(value):.1f} {top:g}V{height - bottom:g}"/>')
        parts.append(text(x(value), height - bottom + 17, f"{value:g}", "middle"))
    parts.append(text((left + width - right) / 2, height - 4, x_label, "middle"))
    name, value = level
    at = x(100 * value)
    parts.append(f'<path class="level" d="M{at:.1f} {top - 10:g}V{height - bottom:g}"/>')
    leftmost = at < (left + width - right) / 2
    parts.append(text(at, top - 14, name, "start" if leftmost else "end"))
    for number, (name, scores) in enumerate(rows):
        at = top + row * (number + 0.5)
        ends = x(100 * min(scores)), x(100 * max(scores))
        note = ", ".join(f"{of} {100 * score:.2f} %" for of, score in zip(series, scores, strict=True))
        marks = "".join(
            f'<circle cx="{x(100 * score):.1f}" cy="{at:.1f}" r="5" fill-opacity="{shade}"/>'
            for score, shade in zip(scores, shades, strict=True)
        )
        parts.append(
            f'<g class="accept"><title>{for_html(f"{name}: {note}")}</title>{text(0, at + 4.5, name)}'
            f"{across(*ends, at, 'interval')}{marks}</g>"
        )
    return svg(parts, width, height, title)


def ticks(low: int | float, high: int | float, count: int) -> list[float]:
    """At most ``count`` + 1 round values between two ends: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(step * number, digits) + 0.0 for number in range(first, last + 1)]


def standalone(charts: Sequence[Markup], title: str) -> str:
    """An SVG file with charts side by side, which needs no page and no style sheet.

    Args:
        charts: the charts.
        title: label for screen readers.
    """
    gap, margin, inside = 36.0, 14.0, ""
    at, tallest = margin, 0.0
    for chart in charts:
        width, height = (float(side) for side in VIEW_BOX.findall(chart)[0])
        place = f'<svg x="{at:g}" y="{margin:g}" width="{width:g}" height="{height:g}" '
        inside += str(chart).replace("<svg ", place, 1)
        at, tallest = at + width + gap, max(tallest, height)
    total = at - gap + margin, tallest + 2 * margin
    style = files("pipeline.report.page").joinpath("charts.css").read_text()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{for_html(title)}" '
        f'viewBox="0 0 {total[0]:g} {total[1]:g}" width="{total[0]:g}" height="{total[1]:g}">'
        f"<style>{style}</style>"
        f'<rect width="100%" height="100%" fill="var(--paper)"/>{inside}</svg>\n'
    )


def text(x: int | float, y: int | float, content: str, anchor: str = "start", kind: str = "muted") -> str:
    """An element of text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{for_html(content)}</text>'


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and its end."""
    half = most // 2
    return text if len(text) <= most else f"{text[: most - half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"


def across(start: float, end: float, y: float, kind: str = "grid") -> str:
    """A line from left to right."""
    return f'<path class="{kind}" d="M{start:.1f} {y:.1f}H{end:.1f}"/>'


def _path(places: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def svg(
    parts: Iterable[str], width: int | float, height: int | float, title: str, kind: str = "chart"
) -> Markup:
    """A chart from its elements.

    Args:
        parts: the elements, in the order in which they are drawn.
        width: width of the ``viewBox``.
        height: height of the ``viewBox``.
        title: label for screen readers.
        kind: class of the chart.
    """
    inside = "".join(parts)
    return Markup(
        f'<svg class="{kind}" role="img" aria-label="{for_html(title)}" viewBox="0 0 {width:g} {height:g}">'
        f"{inside}</svg>"
    )
