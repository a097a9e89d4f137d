import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import ViewportSize, sync_playwright

from pipeline.evaluation import comparison, slices
from pipeline.evaluation.comparison import ClassifierOutput
from pipeline.report import pictures, tables
from pipeline.report.evidence import read as read_evidence
from pipeline.report.figures import figure, span
from pipeline.report.page import charts, page, scores
from pipeline.report.placement import Box, overlap
from pipeline.report.tables import Row
from pipeline.selection import budget
from tests import tiny_onnx
from tests.results import (
    CHAIN,
    DATA,
    TEACHER,
    TEACHER_HISTORY,
    as_attributes,
    benchmark,
    evidence,
    measured,
    results,
)

MEASURED = pytest.mark.parametrize("everything", [True, False], ids=["everything measured", "only scores"])
HEADER = (
    "variant,parent,op,top1,top1_lo,top1_hi,top1_delta,delta_lo,delta_hi,mcnemar_p,verdict,"
    "size_bytes,parameters,macs,latency_ms_p50,latency_ratio_to_fp32,sha256,val_top1"
)


@pytest.fixture
def table() -> list[Row]:
    entries, teacher, labels = results()
    return tables.rows(entries, teacher=teacher, labels=labels, max_drop=0.02)


def rendered(table: list[Row], everything: Path | None = None, **changes: Any) -> str:
    """The page; with all that can be measured where there is a folder for its pictures."""
    entries, answers, _ = results(variants=[row.variant for row in table])
    arguments: dict[str, Any] = {
        "teacher": TEACHER,
        "teacher_history": TEACHER_HISTORY,
        "data": DATA,
        "benchmark": benchmark(entries),
        "size": 8,
        "max_drop": 0.02,
        "choice": budget.choose(table),
    }
    if everything is not None:
        entries = measured(entries)
        arguments["benchmark"] = benchmark(entries, full=True, noisy=True)
        arguments["evidence"] = evidence(entries, answers, everything)
    return page.render(table, entries, **{**arguments, **changes})


class Structure(HTMLParser):
    """Collects ids, references, and whatever a browser would fetch; checks that tags are closed."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in {"src", "href", "srcset", "action"} and not str(value).startswith("data:"):
                (self.references.add if str(value).startswith("#") else self.fetched.append)(str(value))
            self.references.update(re.findall(r"url\((#[^)]+)\)", value or ""))
        if tag in {"link", "iframe"}:
            self.fetched.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_each_variant_is_compared_with_its_parent_on_the_same_images(table: list[Row]) -> None:
    deltas = {row.variant: row.score_delta for row in table}
    assert deltas == pytest.approx({"fp32": -0.01, "int8": 0, "pruned": -0.08, "pruned-int8": 0})
    verdicts = {row.variant: row.verdict for row in table}
    assert verdicts == {"fp32": "accept", "int8": "accept", "pruned": "reject", "pruned-int8": "accept"}


def test_the_csv_has_the_promised_columns_and_reads_back(table: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "report" / "variants.csv"
    tables.write_csv(path, table)
    assert path.read_text().splitlines()[0] == HEADER
    with path.open() as file:
        read = list(csv.DictReader(file))
    assert [line["variant"] for line in read] == list(CHAIN)
    for line, row in zip(read, table, strict=True):
        assert float(line["top1"]) == pytest.approx(row.score, abs=1e-6)
        assert float(line["delta_lo"]) == pytest.approx(row.delta_lo, abs=1e-6)
        assert float(line["mcnemar_p"]) == pytest.approx(row.mcnemar_p, rel=1e-5)
        assert int(line["size_bytes"]) == row.size_bytes
        assert line["sha256"] == row.sha256


def test_without_fp32_the_ratio_is_an_empty_cell(table: list[Row], tmp_path: Path) -> None:
    tables.write_csv(tmp_path / "v.csv", [replace(table[0], latency_ratio_to_fp32=None)])
    with (tmp_path / "v.csv").open() as file:
        assert next(csv.DictReader(file))["latency_ratio_to_fp32"] == ""


def test_a_parent_that_was_not_scored_is_named() -> None:
    entries, teacher, labels = results(variants=["pruned-int8"])
    with pytest.raises(ValueError, match="pruned-int8: parent pruned is not among teacher, pruned-int8"):
        tables.rows(entries, teacher=teacher, labels=labels, max_drop=0.02)


def test_scores_on_another_number_of_images_are_refused() -> None:
    entries, _, _ = results(images=300)
    _, teacher, labels = results(images=400)
    with pytest.raises(ValueError, match="fp32 was scored on 300 images, but test has 400"):
        tables.rows(entries, teacher=teacher, labels=labels, max_drop=0.02)


def test_the_same_picture_has_the_same_bytes(table: list[Row], tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures.save(pictures.overview(table, 0.94), tmp_path / f"{name}.svg", tmp_path / f"{name}.png")
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert Image.open(tmp_path / "a.png").size[0] >= 1600


def crowded(table: list[Row]) -> list[Row]:
    """Two variants lie almost on top of each other."""
    return [*table, replace(table[1], variant="int8-twin", latency_ms_p50=2.52, score=table[1].score + 0.001)]


def test_no_label_of_the_overview_covers_another_label_or_a_point(table: list[Row]) -> None:
    picture = pictures.overview(crowded(table), 0.94)
    compared = 0
    with matplotlib.rc_context(pictures.FONTS):
        pictures.FigureCanvasAgg(picture).draw()
        for axes in picture.axes:
            marks = [line for line in axes.lines if line.get_marker() != "None"]
            labels, points = (
                [Box(*one.get_window_extent().extents) for one in of] for of in (axes.texts, marks)
            )
            for number, label in enumerate(labels):
                for other in (*labels[number + 1 :], *points):
                    assert overlap(label, other) == 0
                    compared += 1
    assert compared > 40


def test_ticks_are_round_and_lie_between_the_ends() -> None:
    assert charts.ticks(83.2, 94.6, 7) == [84, 86, 88, 90, 92, 94]
    assert charts.ticks(0, 0.31, 3) == [0, 0.2]
    assert charts.ticks(0, 7.36, 5) == [0, 2, 4, 6]
    assert charts.ticks(-0.04, 0.05, 5) == [-0.04, -0.02, 0, 0.02, 0.04]


def test_only_what_nothing_beats_in_both_borders_the_shaded_area() -> None:
    def mark(x: float, y: float) -> charts.Mark:
        return charts.Mark(f"{x}", x, y, y - 1, y + 1, "accept", "")

    marks = [mark(5.0, 93.0), mark(2.5, 93.0), mark(3.0, 85.0), mark(1.6, 88.0)]
    chart = charts.tradeoff(marks, title="", x_label="", y_label="")
    front = re.search(r'class="front" d="([^"]*)"', chart)
    assert front is not None
    places = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)
    _, (x_fast, y_fast), _, (x_slow, y_slow) = places
    assert re.fullmatch(rf"M{x_slow} [\d.]+V{y_slow}H{x_fast}V{y_fast}H[\d.]+V[\d.]+Z", front[1])


def test_figures_are_scaled_rounded_and_signed_in_one_way() -> None:
    assert figure(0.89204, "%") == "89.20%"
    assert figure(-0.00004, "points") == "+0.00 points"
    assert figure(-0.0231, "points") == "\N{MINUS SIGN}2.31 points"
    assert figure(1_993_000, "MB") == "1.99 MB"
    assert figure(24_000) == "24,000"
    assert figure(0.0065, digits=3) == "0.0065"
    assert span(0.88, 0.91, "%", 1) == "88.0 to 91.0"


@MEASURED
def test_the_page_is_well_formed_fetches_nothing_and_repeats_no_id(
    table: list[Row], tmp_path: Path, everything: bool
) -> None:
    text = rendered(table, tmp_path if everything else None)
    structure = Structure(text)
    assert not structure.open
    assert structure.fetched == []
    assert "@import" not in text
    assert len(structure.ids) == len(set(structure.ids))
    assert {reference[1:] for reference in structure.references} <= set(structure.ids)
    always = {"tradeoff", "variants", "classes", "training", "data", "machine", "ship"}
    optional = {"robustness", "groups", "calibration", "inside", "sensitivity", "costs"}
    sections_of = set(structure.ids) - {"snippet"}
    assert sections_of == (always | optional if everything else always)
    # The list of sections leads to each.
    assert {reference[1:] for reference in structure.references} == sections_of


def test_the_page_names_the_result_and_every_variant(table: list[Row]) -> None:
    text = rendered(table)
    title = re.search(r"<h1>(.*?)</h1>", text)
    assert title is not None
    assert title[1] == "int8 names 93.0% of the test images right with 2.04 MB, 2.0 times as fast as fp32."
    for row in table:
        assert f"<b>{row.variant}</b>" in text
        assert row.sha256 in text
    assert "colours" in text
    assert "A &lt;great&gt; teacher" in text
    assert "<great>" not in text


def test_the_page_says_so_when_no_variant_passes(table: list[Row]) -> None:
    text = rendered([replace(row, verdict="reject") for row in table])
    assert (
        "<h1>Nothing to ship: the gate accepts no variant together with all its ancestors; "
        "closest is fp32, -1.00 points against teacher.</h1>"
    ) in text
    assert 'class="best"' not in text
    assert "★ " not in text


def test_the_star_is_the_budgets_with_its_limits_and_its_reason(table: list[Row]) -> None:
    choice = budget.choose(table, max_drop=0.005, max_size_bytes=8_000_000)
    assert choice.variant == "int8"
    dear = budget.choose(table[:1], max_size_bytes=8_000_000)
    for chosen in (choice, dear):
        text = rendered(table, choice=chosen)
        starred = re.findall(r'<tr data-variant="([^"]*)" class="best">', text)
        assert starred == [chosen.variant]
        assert f"★ {chosen.reason}." in text
        assert f"{chosen.variant}.onnx is all there is to ship" in text


def test_the_page_names_the_limit_that_no_variant_meets_and_what_comes_closest(table: list[Row]) -> None:
    text = rendered(table, choice=budget.choose(table, max_size_bytes=1_000_000))
    assert (
        "<h1>Nothing to ship: no accepted variant is within 1,000,000 bytes; "
        "closest is int8 with 2,040,000 bytes.</h1>"
    ) in text
    assert 'class="best"' not in text


def test_a_page_without_training_and_without_fp32_is_complete(table: list[Row]) -> None:
    text = rendered([replace(table[0], latency_ratio_to_fp32=None)], teacher_history=[])
    assert "fp32 names 93.0%" in text
    assert text.rstrip().endswith("</html>")


def test_the_page_of_attributes_speaks_of_map_and_of_no_classes(table: list[Row]) -> None:
    entries, _, _ = results()
    table, entries = as_attributes(table, entries)
    text = page.render(
        table,
        entries,
        teacher=TEACHER | {"metric": "map", "val": {"map": 0.95, "n": 500}, "test": {"map": 0.94, "n": 4000}},
        teacher_history=[],
        data=DATA | {"task": "multi_label"},
        benchmark=benchmark(entries),
        size=8,
        max_drop=0.02,
        choice=budget.choose(table),
    )
    assert "int8 has a mAP of 93.0%" in text
    assert "Average precision of each attribute, in per cent" in text
    assert "no images" in text
    visible = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"top-1|McNemar|most often takes", visible)


def test_the_pictures_of_sensitivity_name_the_weakest_layers_and_hold_every_score(
    table: list[Row], tmp_path: Path
) -> None:
    text = rendered(table, tmp_path)
    for words in (
        "stem bears least (\N{MINUS SIGN}26.5 points), blocks.0.pointwise most (\N{MINUS SIGN}21.5 points)",
        "stem moves most (2.00%); leaving stem in float would take 3.10% to 2.50%. top-1 is 87.5% in float, "
        "86.0 to 87.5 with one layer in int8, 85.5% with all.",
        "<title>stem: 75% kept 87.00%, 50% kept 81.00%, 25% kept 61.00%</title>",
        "<title>classifier: this layer in float 2.80%, this layer in int8 0.80%</title>",
        "200 val images at 128 pixels, where one image is 0.5 points;",
    ):
        assert words in text, words
    # Whoever sees no picture reads the same figures in a table.
    section = text.split('<section id="sensitivity">')[1].split("</section>")[0]
    cell = r"<td>([\d.]+)<small>([\d.]+)</small></td>"
    rows = re.findall(rf"<tr><td>([\w.]+)</td>{cell}{cell}</tr>", section)
    assert rows[0] == ("stem", "86.0", "2.00", "87.0", "2.50")
    assert len(rows) == 4


def test_dots_lie_where_their_scores_are() -> None:
    chart = charts.dots(
        [("a", [0.5, 0.7]), ("b", [0.9, 0.6])], ["x", "y"], ("whole", 0.9), title="", x_label=""
    )
    (a5, a7), (b9, b6) = (
        [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', group)]
        for group in re.findall(r'<g class="accept">(.*?)</g>', chart)
    )
    assert a7 - a5 == pytest.approx(2 * (b6 - a5), abs=0.2)
    level = re.search(r'<path class="level" d="M([\d.]+)', chart)
    assert level is not None
    assert float(level[1]) == b9


def test_of_many_classes_those_with_the_most_errors_are_shown() -> None:
    entries, _, _ = results(variants=["fp32"])
    counts = [{"label": f"class-{n}", "n": 10, "correct": 10 - n % 7} for n in range(200)]
    entry = replace(entries[0], scores={**entries[0].scores, "classes": counts})
    grid = scores.classes([entry], entry, None)
    assert len(grid.rows) == scores.SHOWN_CLASSES
    assert {cells[0].text for _, cells in grid.rows} == {"40.0", "50.0"}
    assert "200 classes" in grid.note


def test_the_snippet_of_the_page_classifies_a_photograph(table: list[Row], tmp_path: Path) -> None:
    found = re.search(r'<pre id="snippet">(.*?)</pre>', rendered(table), re.DOTALL)
    assert found is not None
    tiny_onnx.write(tmp_path / "int8.onnx")
    pixels = np.full((20, 33, 3), 30, dtype=np.uint8)
    pixels[:, :, 1] = 220
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", html.unescape(found[1])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "green"


def test_the_page_tells_what_was_measured(table: list[Row], tmp_path: Path) -> None:
    text = rendered(table, tmp_path)
    pruned = re.search(r"pruned rejected</b>(.*?)</li>", text, re.DOTALL)
    assert pruned is not None
    assert "320 images that fp32 had right are wrong now, 0 are right that were wrong" in pruned[1]
    assert "Shown to be worse: red, green and blue." in pruned[1]
    for words in (
        "severity 1 to 5: 83.0, 74.0, 61.0, 47.0, 32.0",
        "FGSM on fp32, answered by int8.onnx",
        "gap 2.9 points (1.1 to 4.7)",
        "<b>teacher</b><small>error 2.10% (1.70 to 2.50), mean confidence 91.4%</small>",
        "mean confidence 91.4%; against teacher: error +0.47 points (+0.07 to +0.87), "
        "confidence \N{MINUS SIGN}1.13 points</small>",
        "as fp32: 0.96",
        "int8: right before, wrong now",
        "The machine was noisy</b>, so intervals are wider than they could be: others took 0.8 cores.",
        "19.30 Wh and 8.44 g of CO₂",
    ):
        assert words in text, words
    # Columns that could not be measured make no picture.
    assert "object scale" not in text


def test_odd_data_are_shown_as_the_stages_write_them(tmp_path: Path) -> None:
    """A class that no test image has, a single group, and explanations that were not drawn."""
    entries, teacher, labels = results(600)
    names = ["absent", *DATA["classes"]]
    answers = {"teacher": teacher + 1} | {e.variant: np.array(e.scores["predictions"]) + 1 for e in entries}
    labels = labels + 1
    column = slices.Column("camera", "metadata", {"one": np.ones(600, bool)}, "from the metadata file")
    parents = {entry.variant: entry.parent for entry in entries}
    told = {
        "comparison": {
            "teacher": {},
            "variants": {
                e.variant: {
                    "parent": e.parent,
                    **comparison.compare_with_parent(
                        ClassifierOutput(answers[e.variant]),
                        ClassifierOutput(answers[e.parent]),
                        labels,
                        names,
                        parent_name=e.parent,
                        max_drop=0.02,
                    ),
                }
                for e in entries
            },
            "slices": [slices.measure(column, answers, parents, labels)],
        },
        "explanations": {"note": "not drawn for attributes"},
        "robustness": {"note": "not measured for attributes"},
        "sensitivity": {"note": "not measured"},
    }
    files = {name: tmp_path / f"{name}.json" for name in (*told, "costs")}
    for name, part in told.items():
        files[name].write_text(json.dumps(part))
    found = read_evidence(**files)
    counts = [{"label": "absent", "n": 0, "correct": 0}]
    entries = [
        replace(
            e,
            scores={
                **e.scores,
                "classes": counts + e.scores["classes"],
                "confusion": np.pad(np.array(e.scores["confusion"]), ((1, 0), (1, 0))).tolist(),
            },
        )
        for e in entries
    ]
    data = DATA | {"classes": names}
    grid = scores.classes(entries, entries[2], found.comparison)
    assert next(cells[2].text for _, cells in grid.rows) == "no images"
    assert found.comparison is not None
    for name, cells in grid.rows[1:]:
        moved = found.comparison["variants"]["pruned"]["classes"]
        delta = next(change["delta"] for change in moved if change["label"] == name)
        assert cells[2].small == figure(delta, "points", 1, bare=True)
    table = tables.rows(results(600)[0], teacher=teacher, labels=labels - 1, max_drop=0.02)
    text = page.render(
        table,
        entries,
        teacher=TEACHER,
        teacher_history=[],
        data=data,
        benchmark=benchmark(entries),
        size=8,
        max_drop=0.02,
        choice=budget.choose(table),
        evidence=found,
    )
    assert "too few images in all groups but one to compare" in text
    assert "gap by" not in text


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
def test_a_browser_shows_every_section_without_errors_on_a_phone_and_on_a_desk(
    table: list[Row], tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text(rendered(table, tmp_path))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, dark, paper in ((390, True, "rgb(20, 23, 26)"), (1440, False, "rgb(252, 252, 250)")):
            view = browser.new_page(
                viewport=ViewportSize(width=width, height=900),
                color_scheme="dark" if dark else "light",
                offline=True,
            )
            said: list[str] = []
            view.on("console", lambda message, said=said: said.append(message.text))
            view.on("pageerror", lambda error, said=said: said.append(str(error)))
            view.goto((tmp_path / "report.html").as_uri())
            assert view.evaluate("getComputedStyle(document.body).backgroundColor") == paper
            # Nothing makes the page wider than the screen; wide tables scroll within themselves.
            assert view.evaluate("document.documentElement.scrollWidth") == width
            titles = view.locator("section > h2")
            assert titles.count() == view.locator("section").count() == 13
            for title in titles.all():
                assert title.is_visible()
            assert view.evaluate(OVERLAPS) == []
            pointed = view.locator(".mark[data-variant=int8]").first
            pointed.focus()
            assert view.locator("tr.on").get_attribute("data-variant") == "int8"
            for picture in view.locator("img").all():
                picture.scroll_into_view_if_needed()
            assert view.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            # Paper is white, however dark the screen.
            view.emulate_media(media="print")
            assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
            assert said == []
            view.close()
        browser.close()


OVERLAPS = """
[...document.querySelectorAll("svg.chart")].flatMap(chart => {
  const texts = [...chart.querySelectorAll("text")];
  const boxes = texts.map(text => text.getBoundingClientRect());
  return boxes.flatMap((a, i) => boxes.flatMap((b, j) =>
    j > i && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3
      ? [`${chart.ariaLabel}: ${texts[i].textContent} over ${texts[j].textContent}`] : []));
})
"""
"""Texts of a chart that lie over each other."""
