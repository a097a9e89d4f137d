import csv
import html
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import latency
from pipeline.report import page, pictures, tables
from pipeline.report.tables import Row
from tests import tiny_onnx
from tests.results import CHAIN, CLASSES, benchmark, evidence, measured, results

HEADER = (
    "variant,parent,op,top1,top1_lo,top1_hi,top1_delta,delta_lo,delta_hi,mcnemar_p,verdict,"
    "size_bytes,parameters,macs,latency_ms_p50,latency_ratio_to_fp32,sha256"
)


@pytest.fixture
def table() -> list[Row]:
    entries, teacher, labels = results()
    return tables.rows(entries, teacher=teacher, labels=labels, max_drop=0.02)


def rendered(table: list[Row], everything: Path | None = None, **changes: Any) -> str:
    """The page; with all that can be measured where there is a folder for its pictures."""
    entries, answers, _ = results(variants=[row.variant for row in table])
    arguments: dict[str, Any] = {
        "teacher": {
            "origin": "A <great> teacher",
            "metric": "top1",
            "input": {"size": 260},
            "val": {"top1": 0.95, "n": 500},
            "test": {"top1": 0.94, "n": 4000},
        },
        "teacher_history": [
            {"epoch": 0.5, "seconds": 3, "loss": 2.0, "val_top1": 0.5},
            {"epoch": 1.0, "seconds": 3, "loss": 1.5, "val_top1": 0.8},
            {"epoch": 1.0, "seconds": 9, "loss": 1.0, "val_top1": 0.95},
        ],
        "data": {
            "source": "folder",
            "path": "photographs/colours",
            "license": "CC0",
            "data_sha256": "d" * 64,
            "task": "single_label",
            "classes": list(CLASSES),
            "counts": {split: dict.fromkeys(CLASSES, 3000) for split in ("train", "val", "test")},
            "images": {"train": 9000, "val": 500, "test": 4000},
            "rejected": [{"source": "a.txt", "reason": "not an image"}],
            "leaked_between_splits": 2,
        },
        "benchmark": {
            "settings": {"threads": 1, "batch_size": 1, "rounds": 200, "warmup": 20},
            "machine": latency.describe_machine(),
            "load_average": {"before": [0.1, 0.2, 0.3], "after": [0.2, 0.2, 0.3]},
        },
        "size": 8,
        "max_drop": 0.02,
    }
    if everything is not None:
        arguments["benchmark"] |= benchmark(entries, noisy=True)
        entries = measured(entries)
        arguments["evidence"] = evidence(entries, answers, everything)
    return page.render(table, entries, **{**arguments, **changes})


class Structure(HTMLParser):
    """Collects ids, references, and whatever a browser would fetch; checks that tags are closed."""

    VOID = frozenset({"meta", "br"})

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
            elif name in {"src", "href", "xlink:href", "srcset", "action"}:
                (self.references.add if str(value).startswith("#") else self.fetched.append)(str(value))
            self.references.update(re.findall(r"url\((#[^)]+)\)", value or ""))
        if tag in {"script", "link", "img", "iframe"}:
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


def test_what_descends_from_a_rejected_variant_is_not_recommended(table: list[Row]) -> None:
    assert min(table, key=lambda row: row.latency_ms_p50).variant == "pruned-int8"
    best = tables.recommended(table)
    assert best is not None
    assert best.variant == "int8"
    assert tables.recommended([row for row in table if row.variant == "fp32"]) == table[0]
    assert tables.recommended([replace(table[0], verdict="reject")]) is None


def test_among_equally_fast_variants_the_most_accurate_is_recommended(table: list[Row]) -> None:
    twin = replace(table[1], variant="twin", latency_ms_p50=2.45, score=table[1].score - 0.001)
    for order in ([*table, twin], [twin, *table]):
        best = tables.recommended(order)
        assert best is not None
        assert best.variant == "int8"


def test_the_same_picture_has_the_same_bytes(table: list[Row], tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures.save(pictures.overview(table, 0.94), tmp_path / f"{name}.svg", tmp_path / f"{name}.png")
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert Image.open(tmp_path / "a.png").size[0] >= 1600


def test_no_label_covers_another_label_or_a_point(table: list[Row]) -> None:
    # Two variants that lie almost on top of each other.
    crowded = [
        *table,
        replace(table[1], variant="int8-twin", latency_ms_p50=2.52, score=table[1].score + 0.001),
    ]
    figure = pictures.overview(crowded, 0.94)
    pictures.FigureCanvasAgg(figure).draw()
    compared = 0
    for axes in figure.axes:
        labels = [text.get_window_extent() for text in axes.texts]
        points = [line.get_window_extent() for line in axes.lines if line.get_marker() != "None"]
        for number, label in enumerate(labels):
            for other in (*labels[number + 1 :], *points):
                assert pictures._overlap(label, other) == 0
                compared += 1
    assert compared > 40


def test_an_inline_picture_follows_the_colours_of_the_page(table: list[Row]) -> None:
    svg = pictures.inline(pictures.tradeoff(table, "size", 0.94, pictures.PLACEHOLDERS), "s", 'A & "B"')
    for meaning in ("ink", "muted", "line", "accept", "reject"):
        assert f"var(--{meaning})" in svg
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", svg)
    assert "pruned-int8" in svg
    assert 'aria-label="A &amp; &quot;B&quot;"' in svg


def test_the_page_is_well_formed_fetches_nothing_and_repeats_no_id(table: list[Row]) -> None:
    text = rendered(table)
    structure = Structure(text)
    assert not structure.open
    assert structure.fetched == []
    assert "@import" not in text
    assert len(structure.ids) == len(set(structure.ids)) > 20
    assert structure.references
    assert {reference[1:] for reference in structure.references} <= set(structure.ids)


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
    assert "No variant passes the gate; the most accurate is fp32 with 93.0%." in text
    assert "★ The" not in text


def test_a_page_without_training_and_without_fp32_is_complete(table: list[Row]) -> None:
    text = rendered([replace(table[0], latency_ratio_to_fp32=None)], teacher_history=[])
    assert "fp32 names 93.0%" in text
    assert text.rstrip().endswith("</html>")


def test_of_many_classes_those_with_the_most_errors_are_shown() -> None:
    entries, _, _ = results(variants=["fp32"])
    counts = [{"label": f"class-{n}", "n": 10, "correct": 10 - n % 7} for n in range(200)]
    entry = replace(entries[0], scores={**entries[0].scores, "classes": counts})
    shown, note = page._classes([entry], entry)
    assert len(shown) == page.SHOWN_CLASSES
    assert {cells[0]["text"] for _, cells in shown} == {"40.0", "50.0"}
    assert "200 classes" in note


def test_parts_of_a_training_count_their_epochs_on() -> None:
    history = [{"epoch": 0.5}, {"epoch": 1.0}, {"epoch": 1.0}, {"epoch": 1.5}]
    assert [line["epoch"] for line in page._continued(history)] == [0.5, 1.0, 2.0, 2.5]


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
