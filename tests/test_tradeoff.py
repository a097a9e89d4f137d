"""Charts of score against cost: every label stands at its own mark, or a line joins the two."""

import math
import random
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import ViewportSize, sync_playwright

from pipeline.report import pictures, placement
from pipeline.report.page import page, tradeoff
from pipeline.report.placement import Box
from tests import results

LAYOUTS = [(seed, count, equal) for seed, count in enumerate((2, 3, 5, 8, 13, 24, 40)) for equal in (0, 1)]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def layout(seed: int, count: int, equal: bool) -> list[tradeoff.Mark]:
    """Random marks; of equal ones, several lie at the same point."""
    draw = random.Random(seed)
    points = [(draw.uniform(0.5, 9.0), draw.uniform(85.0, 92.0)) for _ in range(count)]
    if equal:
        points = [draw.choice(points[: max(1, count // 3)]) for _ in points]
    return [
        tradeoff.Mark(
            name=f"{draw.choice(('int8', 'pruned-50', 'fp32-wide', 'qat'))}-{number}",
            x=x,
            y=y,
            lo=y - 0.6,
            hi=y + 0.6,
            kind="accept" if draw.random() < 0.7 else "reject",
            front=False,
            note="",
            recommended=number == 0,
        )
        for number, (x, y) in enumerate(points)
    ]


@dataclass(frozen=True)
class Drawn:
    """A mark as the chart draws it."""

    name: str
    point: tuple[float, float]
    shape: Box
    label: Box


def drawn(chart: str) -> tuple[list[Drawn], list[tuple[tuple[float, float], tuple[float, float]]]]:
    """The marks of a chart with their labels, and the lines that join them."""
    marks = []
    root = ET.fromstring(chart)
    for group in root.iter("g"):
        circles = [
            (float(c.get("cx", "")), float(c.get("cy", "")), float(c.get("r", "")))
            for c in group.iter("circle")
        ]
        diamond = re.search(r'<path d="M([\d.]+) ([\d.]+)l8 8l-8 8', ET.tostring(group, encoding="unicode"))
        if diamond:
            circles.append((float(diamond[1]), float(diamond[2]) + 8, 8.0))
        x, y, radius = max(circles, key=lambda circle: circle[2])
        [text] = group.iter("text")
        at, base, width = (
            float(text.get("x", "")),
            float(text.get("y", "")),
            tradeoff.text_width(text.text or ""),
        )
        left = at - {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor", "")]
        # The letters of a line with a height of 17 reach from 13 above its base to 3 below it.
        label = Box(left, base - 13, left + width, base + 3)
        shape = Box(x - radius, y - radius, x + radius, y + radius)
        marks.append(Drawn(group.get("data-variant", ""), (x, y), shape, label))
    numbers = re.findall(r'class="leader" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', chart)
    return marks, [((float(a), float(b)), (float(c), float(d))) for a, b, c, d in numbers]


def misplaced(chart: str) -> list[str]:
    """Marks whose label covers something, or belongs to another mark by its looks."""
    marks, leaders = drawn(chart)
    wrong = []
    for mark in marks:
        others = [other for other in marks if other is not mark]
        covers = any(placement.overlap(mark.label, other.label) > 0.5 for other in others) or any(
            placement.overlap(mark.label, other.shape) > 0.5 for other in marks
        )
        nearest = all(mark.label.distance(other.point) > mark.label.distance(mark.point) for other in others)
        joined = any(
            math.dist(start, mark.point) < 0.3 and mark.label.distance(end) < 2.5 for start, end in leaders
        )
        if covers or not (nearest or joined):
            wrong.append(mark.name)
    return wrong


@pytest.mark.parametrize(("seed", "count", "equal"), LAYOUTS)
def test_every_label_stands_at_its_own_mark_and_covers_nothing(seed: int, count: int, equal: int) -> None:
    marks = layout(seed, count, bool(equal))
    chart = tradeoff.tradeoff(marks, title="", x_label="", y_label="", line=("teacher", 91.0))
    assert sorted(mark.name for mark in drawn(chart)[0]) == sorted(mark.name for mark in marks)
    assert misplaced(chart) == []


def test_exchanged_labels_would_be_noticed() -> None:
    chart = tradeoff.tradeoff(layout(1, 3, False), title="", x_label="", y_label="")
    names = [mark.name for mark in drawn(chart)[0]]
    assert misplaced(chart) == []
    spots = re.findall(r'<text class="name" (x="[\d.]+" y="[\d.]+" text-anchor="\w+")', chart)
    exchanged = str(chart).replace(spots[0], "SPOT").replace(spots[1], spots[0]).replace("SPOT", spots[1])
    assert misplaced(exchanged) == names[:2]


def test_lines_to_a_column_of_labels_do_not_cross() -> None:
    draw = random.Random(3)
    points = [(draw.uniform(40, 200), draw.uniform(30, 300)) for _ in range(30)]
    labels = placement.column(points, [(90.0, 16.0)] * 30, left=240.0, top=30.0, bottom=540.0)
    lines = [placement.leader(point, label.box) for point, label in zip(points, labels, strict=True)]
    assert not [(a, b) for a in lines for b in lines if a is not b and placement.meet(a, b)]
    assert all(label.leader for label in labels)


def test_the_recommended_variant_is_ringed_and_no_other() -> None:
    marks = layout(4, 5, False)
    chart = tradeoff.tradeoff(marks, title="", x_label="", y_label="")
    assert re.findall(r'class="mark \w+ recommended" data-variant="([^"]*)"', chart) == [marks[0].name]
    assert chart.count('class="ring"') == 1


def test_of_a_name_that_is_longer_than_the_chart_its_ends_are_shown() -> None:
    first, *rest = layout(2, 5, False)
    named = tradeoff.Mark("a" * 90 + "z", first.x, first.y, first.lo, first.hi, "accept", False, "")
    chart = tradeoff.tradeoff([named, *rest], title="", x_label="", y_label="")
    assert misplaced(chart) == []
    assert "a\N{HORIZONTAL ELLIPSIS}" in chart


MISPLACED = """
[...document.querySelectorAll("svg.chart")].flatMap(chart => {
  const marks = [...chart.querySelectorAll(".mark")].map(group => {
    const shape = group.querySelector("circle, path:not(.interval)").getBoundingClientRect();
    const label = group.querySelector("text").getBoundingClientRect();
    return {name: group.dataset.variant, label, shape,
            x: (shape.left + shape.right) / 2, y: (shape.top + shape.bottom) / 2};
  });
  const gap = (box, at) => Math.hypot(
    Math.max(box.left - at.x, 0, at.x - box.right), Math.max(box.top - at.y, 0, at.y - box.bottom));
  const covers = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  const lines = [...chart.querySelectorAll(".leader")].map(line => [0, line.getTotalLength()].map(
    at => line.getPointAtLength(at).matrixTransform(line.getScreenCTM())));
  return marks.filter(one =>
    marks.some(other => other !== one && covers(one.label, other.label))
    || marks.some(other => covers(one.label, other.shape))
    || (marks.some(other => other !== one && gap(one.label, other) <= gap(one.label, one))
        && !lines.some(([a, b]) => Math.hypot(a.x - one.x, a.y - one.y) < 1 && gap(one.label, b) < 6))
  ).map(one => one.name);
})
"""
"""Names of the marks whose label covers something, or belongs to another mark by its looks."""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser_every_label_stands_at_its_own_mark(tmp_path: Path, width: int) -> None:
    charts = [
        tradeoff.tradeoff(
            layout(seed, count, bool(equal)), title="", x_label="ms", y_label="%", line=("teacher", 91.0)
        )
        for seed, count, equal in LAYOUTS
    ]
    style = "".join(
        files("pipeline.report.page").joinpath(name).read_text() for name in ("charts.css", "page.css")
    )
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
    pages = {
        "layouts": f"<!doctype html><style>{style}</style><main><div class='pair'>{figures}</div></main>",
        "report": page.render(results.run(tmp_path)),
        "overview": f"<!doctype html><body>{pictures.overview(results.run())}</body>",
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport=ViewportSize(width=width, height=900), offline=True)
        for name, text in pages.items():
            (tmp_path / f"{name}.html").write_text(text)
            view.goto((tmp_path / f"{name}.html").as_uri())
            assert view.locator(".mark text").count() >= 8
            assert view.evaluate(MISPLACED) == [], name
        browser.close()
