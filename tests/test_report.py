import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import ViewportSize, sync_playwright

from pipeline.evaluation import comparison, slices
from pipeline.evaluation.comparison import ClassifierOutput
from pipeline.evaluation.settings import StepLimits
from pipeline.report import evidence, findings, pictures, tables, words
from pipeline.report.figures import figure, span
from pipeline.report.page import charts, page, robustness, scores, tradeoff
from pipeline.report.results import RunResults
from pipeline.selection import budget
from tests import document, results, tiny_onnx
from tests.document import Element

MEASURED = pytest.mark.parametrize("everything", [True, False], ids=["everything measured", "only scores"])
ALWAYS = {"tradeoff", "variants", "classes", "training", "data", "latency", "ship"}
OPTIONAL = {
    "robustness",
    "groups",
    "calibration",
    "explanations",
    "sensitivity",
    "labels",
    "energy",
    "litert",
}


def rendered(run: RunResults) -> Element:
    return document.parse(page.render(run))


def with_table(run: RunResults, **changes: object) -> RunResults:
    """The same run with other rows, and what the default budget chooses from them."""
    table = [replace(row, **changes) for row in run.table]
    return replace(run, table=table, choice=budget.choose(table))


def test_the_loss_at_the_top_is_that_against_the_reference_of_all_variants() -> None:
    run = results.run()
    reference = {"variant": "fp32", "delta": -0.011, "lo": -0.017, "hi": -0.005}
    run.comparison["variants"]["int8"]["reference"] = reference
    loss = rendered(run).one(data_figure="loss")
    assert "fp32" in loss.one("dt").text
    assert loss.numbers[-5:] == [-1.1, 95, -1.7, -0.5, -1.0]
    size = rendered(run).one(data_figure="size")
    assert size.numbers[0] == 2.04
    assert round(7.36 / 2.04, 1) in size.numbers


def test_the_column_of_the_recommended_variant_is_first_in_every_table(tmp_path: Path) -> None:
    run = results.run(tmp_path)
    root = rendered(run)
    variants = {row.variant for row in run.table}
    headers = [[cell.text for cell in table.all("th")[1:]] for table in root.all("table")]
    compared = [names for names in headers if variants <= set(names)]
    assert len(compared) > 4
    assert {names[0] for names in compared} == {"int8"}
    rows = [row for row in root.all("tr") if "data-verdict" in row.attributes]
    assert rows[0].attributes["data-variant"] == "int8"


def test_the_confusion_matrix_counts_every_test_image_also_of_many_classes() -> None:
    run = results.run(variants=["fp32"])
    cells = rendered(run).one(id="confusion-fp32-table").cells()
    assert sum(sum(cell.numbers) for row in cells.values() for cell in row) == run.variants[0].scores["n"]
    many = np.eye(60, dtype=int) * 7
    many[:, 59] += 1
    counts = [
        {"label": f"class-{n:02}", "n": int(many[n].sum()), "correct": int(many[n, n])} for n in range(60)
    ]
    entry = replace(
        run.variants[0], scores={**run.variants[0].scores, "classes": counts, "confusion": many.tolist()}
    )
    [(_, grid)] = scores.confusions(replace(run, variants=[entry]))
    assert len(grid.rows) == scores.MATRIX == len(grid.columns) - 1
    for name, row in grid.rows:
        assert sum(int(cell.text or 0) for cell in row) == many[int(name[-2:])].sum()


def test_a_training_with_too_few_points_for_a_curve_is_a_sentence() -> None:
    run = results.run(variants=["fp32"])
    line = {"epoch": 1.0, "seconds": 60, "loss": 0.5, "val_top1": 0.876}
    short = replace(run, variants=[replace(run.variants[0], history=[line])])
    section = rendered(short).one("section", id="training")
    [sentence] = section.one(id="short-trainings").all("li")
    assert {1.0, 87.6} <= set(sentence.numbers)
    assert [f.one("b").text for f in section.all("figcaption")] == ["teacher"]


def test_the_choice_of_pruning_is_shown_with_its_candidates_and_its_reason() -> None:
    run = results.run()
    plans = [
        {
            "criterion": "taylor",
            "shape": "uniform",
            "score": 0.8621,
            "cross_entropy": 0.41,
            "images": 384,
            "macs": 119_000_000,
        },
        {
            "criterion": "l1",
            "shape": "sensitivity",
            "score": 0.7864,
            "cross_entropy": 0.56,
            "images": 384,
            "macs": 118_000_000,
        },
    ]
    cards = [
        {**card, "settings": {"reason": "the best score on val", "candidates": plans}}
        if card["op"] == "prune"
        else card
        for card in run.model_cards
    ]
    section = rendered(replace(run, model_cards=cards)).one("section", id="training")
    rows = section.one(id="pruning-pruned-table").cells()
    assert [cells[0].numbers for cells in rows.values()] == [[86.2], [78.6]]
    assert "the best score on val" in section.text


def test_means_with_the_start_are_shown_with_the_one_that_was_chosen() -> None:
    run = results.run()
    trials = [
        {
            "start_share": 0.0,
            "statistics": "new",
            "kept": False,
            "n": 384,
            "top1": 0.8621,
            "cross_entropy": 0.41,
        },
        {
            "start_share": 0.5,
            "statistics": "mean",
            "kept": True,
            "n": 384,
            "top1": 0.8824,
            "cross_entropy": 0.36,
        },
        {
            "start_share": 0.5,
            "statistics": "new",
            "kept": False,
            "n": 384,
            "top1": 0.8715,
            "cross_entropy": 0.38,
        },
    ]
    cards = [
        {**card, "settings": {"start_share": 0.5, "candidates": trials}} if card["op"] == "distill" else card
        for card in run.model_cards
    ]
    section = rendered(replace(run, model_cards=cards)).one("section", id="training")
    rows = section.one(id="mean-fp32-table").cells()
    assert [cells[0].numbers for cells in rows.values()] == [[86.2], [88.2], [87.2]]
    assert [bool(cells[1].all("b")) for cells in rows.values()] == [False, True, False]


def test_weaknesses_come_with_advice_and_strengths_without(tmp_path: Path) -> None:
    run = results.run(tmp_path)
    advice = rendered(run).one("section", id="robustness").one("ul", class_="advice").all("li")
    assert len(advice) == 3
    assert {92.8, 59.4} <= set(advice[0].numbers)
    assert {81.0} <= set(advice[1].numbers)
    assert {5.8} <= set(advice[2].numbers)
    part = run.evidence.robustness
    assert part is not None
    fine = {
        "corruptions": {
            **part["corruptions"],
            "variants": {"int8": {"clean": 0.93, "kinds": {"fog": {"accuracy": 0.92}}}},
        }
    }
    assert robustness.advice(evidence.Evidence(robustness=fine), "int8") == []


def with_suspects(run: RunResults, **values: Any) -> RunResults:
    part = {**results.SUSPECTS, **values}
    return replace(run, evidence=replace(run.evidence, suspects=part))


def test_suspicious_labels_are_counted_and_shown_with_their_file_and_both_answers(tmp_path: Path) -> None:
    run = results.run(tmp_path)
    section = rendered(run).one("section", id="labels")
    summary = section.one("p", class_="intro")
    assert summary.numbers == [37, 5120, pytest.approx(100 * 37 / 5120, abs=0.005), 6]
    shown = section.all("figure")
    for figure_, image in zip(shown, results.SUSPECTS["images"], strict=True):
        assert figure_.one("img").attributes["src"].startswith("data:image/webp")
        assert all(image[key] in figure_.text for key in ("file_name", "label", "suggestion"))
        for key in ("label_probability", "suggestion_probability"):
            assert round(100 * image[key]) in figure_.numbers
    assert "suspicious_labels.csv" in section.text


def test_only_a_folder_takes_the_list_back_as_a_table(tmp_path: Path) -> None:
    run = results.run(tmp_path)
    for source, is_table in (("folder", True), ("fashion_mnist", False)):
        text = rendered(replace(run, data={**run.data, "source": source})).one("section", id="labels").text
        assert ("data.labels" in text) == is_table


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ({"suspects": 0, "not_judged": 0}, [5120]),
        ({"suspects": 0, "labels": 0, "not_judged": 400}, []),
    ],
    ids=["none is suspicious", "none was judged"],
)
def test_without_suspicious_labels_one_line_says_so(
    tmp_path: Path, values: dict[str, Any], numbers: list[int]
) -> None:
    run = with_suspects(results.run(tmp_path), **values, images=[], trained_on_them=False)
    section = rendered(run).one("section", id="labels")
    assert [child.tag for child in section.children] == ["h2", "p"]
    assert section.numbers == numbers


def test_suspicious_labels_that_are_not_shown_are_still_in_the_list(tmp_path: Path) -> None:
    section = rendered(with_suspects(results.run(tmp_path), images=[])).one("section", id="labels")
    assert section.all("figure") == []
    assert "suspicious_labels.csv" in section.text


def test_suspicious_labels_of_attributes_name_the_attribute(tmp_path: Path) -> None:
    image = {**results.SUSPECTS["images"][0], "attribute": "red", "label": "1", "suggestion": "0"}
    run = with_suspects(results.run(tmp_path, attributes=True), images=[image])
    caption = rendered(run).one("section", id="labels").one("figcaption")
    assert "labelled red" in caption.text
    assert "not red, 97" in caption.text


def test_what_prepare_noticed_about_the_data_is_shown() -> None:
    run = results.run()
    noted = replace(run, data={**run.data, "notes": ["the class names 'red' and 'Red' are nearly the same"]})
    assert noted.data["notes"][0] in rendered(noted).one("section", id="data").text


def test_differences_and_verdicts_are_those_that_compare_wrote() -> None:
    entries, teacher, _ = results.results()
    changes = results.comparison(entries, teacher)
    changes["variants"]["int8"] |= {"delta": -0.5, "lo": -0.6, "hi": -0.4, "mcnemar_p": 0.25}
    changes["variants"]["int8"]["verdict"] = "reject"
    rows = {row.variant: row for row in tables.rows(entries, changes)}
    int8 = rows["int8"]
    assert (int8.score_delta, int8.delta_lo, int8.delta_hi, int8.mcnemar_p) == (-0.5, -0.6, -0.4, 0.25)
    assert {name: row.verdict for name, row in rows.items()} == {
        "fp32": "accept",
        "int8": "reject",
        "pruned": "reject",
        "pruned-int8": "accept",
    }


def test_the_overview_is_one_file_with_both_charts_and_the_same_bytes_each_time() -> None:
    run = results.run()
    text = pictures.overview(run)
    assert text == pictures.overview(results.run())
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}svg")) == 2
    assert "href" not in text
    for chart in root.findall(f"{space}svg"):
        marks = [mark.get("data-variant", "") for mark in chart.iter(f"{space}g") if mark.get("tabindex")]
        assert sorted(marks) == sorted(row.variant for row in run.table)
        recommended = [
            mark.get("data-variant")
            for mark in chart.iter(f"{space}g")
            if "recommended" in mark.get("class", "").split()
        ]
        assert recommended == ["int8"]


def test_ticks_are_round_and_lie_between_the_ends() -> None:
    assert charts.ticks(83.2, 94.6, 7) == [84, 86, 88, 90, 92, 94]
    assert charts.ticks(0, 0.31, 3) == [0, 0.2]
    assert charts.ticks(0, 7.36, 5) == [0, 2, 4, 6]
    assert charts.ticks(-0.04, 0.05, 5) == [-0.04, -0.02, 0, 0.02, 0.04]


def test_only_the_front_borders_the_shaded_area() -> None:
    def mark(x: float, y: float, front: bool) -> tradeoff.Mark:
        return tradeoff.Mark(f"{x}", x, y, y - 1, y + 1, "accept", front, "")

    marks = [mark(5.0, 93.0, False), mark(2.5, 93.0, True), mark(3.0, 85.0, False), mark(1.6, 88.0, True)]
    chart = tradeoff.tradeoff(marks, title="", x_label="", y_label="")
    front = re.search(r'class="front" d="([^"]*)"', chart)
    assert front is not None
    places = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)
    _, (x_fast, y_fast), _, (x_slow, y_slow) = places
    assert re.fullmatch(rf"M{x_slow} [\d.]+V{y_slow}H{x_fast}V{y_fast}H[\d.]+V[\d.]+Z", front[1])


def test_figures_are_scaled_rounded_and_signed_in_one_way() -> None:
    assert figure(0.89204, "%") == "89.20 %"
    assert figure(-0.00004, "points") == "+0.00 points"
    assert figure(-0.0231, "points") == "\N{MINUS SIGN}2.31 points"
    assert figure(1_993_000, "MB") == "1.99 MB"
    assert figure(24_000) == "24,000"
    assert figure(0.0065, digits=3) == "0.0065"
    assert span(0.88, 0.91, "%", 1) == "88.0 to 91.0"


@MEASURED
def test_the_page_is_well_formed_fetches_nothing_and_repeats_no_id(tmp_path: Path, everything: bool) -> None:
    run = results.run(tmp_path if everything else None)
    text = page.render(run)
    assert "@import" not in text
    root = document.parse(text)
    elements = root.all()
    addresses = [
        value
        for element in elements
        for name, value in element.attributes.items()
        if name in {"src", "href", "srcset", "action"} or "url(" in value
    ]
    assert {address[:1] if address.startswith("#") else address[:5] for address in addresses} <= {
        "#",
        "data:",
    }
    assert not {"link", "iframe"} & {element.tag for element in elements}
    ids = [element.attributes["id"] for element in elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    sections = {element.attributes["id"] for element in root.all("section")}
    assert sections == (ALWAYS | OPTIONAL if everything else ALWAYS)
    # The navigation leads to each section.
    assert [a.attributes["href"][1:] for a in root.one("nav").all("a")] == [
        element.attributes["id"] for element in root.all("section")
    ]


@MEASURED
def test_every_section_says_what_it_shows(tmp_path: Path, everything: bool) -> None:
    for section in rendered(results.run(tmp_path if everything else None)).all("section"):
        first, second = section.children[:2]
        assert (first.tag, second.tag, second.attributes.get("class")) == ("h2", "p", "intro")
        assert len(second.text) > 40


def test_the_page_names_the_result_and_every_variant() -> None:
    run = results.run()
    root = rendered(run)
    title = root.one("h1", id="result")
    assert title.attributes["data-variant"] == "int8"
    assert {93.0, 2.04} <= set(title.numbers)
    assert "int8" in title.text
    assert "2.0\N{MULTIPLICATION SIGN}" in title.text
    rows = root.all("tr", data_verdict="accept") + root.all("tr", data_verdict="reject")
    assert {row.attributes["data-variant"] for row in rows} == {row.variant for row in run.table}
    for row in run.table:
        line = root.one("tr", data_variant=row.variant)
        assert line.attributes["data-verdict"] == row.verdict
        assert line.one(data_column="score").numbers[0] == round(100 * row.score, 2)
        assert line.one(data_column="delta").numbers[0] == round(100 * row.score_delta, 2)
        assert line.one(data_column="size").numbers == [round(row.size_bytes / 1e6, 2)]
        assert line.one(data_column="latency").numbers[0] == round(row.latency_ms_p50, 2)
        assert row.sha256 in root.one(data_file=row.variant).text
    assert "colours" in root.text
    assert "A <great> teacher" in root.text


def test_the_page_recommends_none_when_no_variant_passes() -> None:
    run = with_table(results.run(), verdict="reject")
    root = rendered(run)
    assert root.one("h1").attributes["data-variant"] == ""
    assert run.choice.reason.replace("`", "") in root.one(id="budget").text
    assert root.all(class_="best") == root.all(class_="figures") == []


def test_the_star_is_the_budgets_with_its_limits_and_its_reason() -> None:
    run = results.run(limits={"max_drop": 0.005, "max_size_bytes": 8_000_000})
    assert run.choice.variant == "int8"
    large = replace(run, choice=budget.choose(run.table[:1], max_size_bytes=8_000_000))
    assert large.choice.variant == "fp32"
    for one in (run, large):
        root = rendered(one)
        best = one.choice.variant
        assert [row.attributes["data-variant"] for row in root.all("tr", class_="best")] == [best]
        assert one.choice.reason.replace("`", "") in root.one(id="budget").text
        assert root.one("section", id="ship").attributes["data-variant"] == best
        assert root.one("h1").attributes["data-variant"] == best


def test_a_budget_that_no_variant_meets_is_named_with_what_comes_closest() -> None:
    run = results.run(limits={"max_size_bytes": 1_000_000})
    root = rendered(run)
    assert root.one("h1").attributes["data-variant"] == ""
    assert run.choice.reason.replace("`", "") in root.one(id="budget").text
    assert root.one("section", id="ship").attributes["data-variant"] == run.choice.closest == "int8"


def test_a_page_without_training_and_without_fp32_is_complete() -> None:
    run = with_table(results.run(variants=["fp32"]), latency_ratio_to_fp32=None)
    untrained = replace(run, teacher_history=[], variants=[replace(run.variants[0], history=())])
    root = rendered(untrained)
    assert {section.attributes["id"] for section in root.all("section")} == ALWAYS - {"training"}
    assert root.one("h1").attributes["data-variant"] == "fp32"


def test_the_page_of_attributes_shows_map_and_no_statistics_of_classes() -> None:
    root = rendered(results.run(attributes=True))
    assert "mAP" in root.one("h1").text
    cells = root.one(id="classes-table").cells()
    assert [cell.numbers[0] for cell in cells["red"]] == [91.7] * 4
    assert [cell.numbers for cell in cells["blue"]] == [[]] * 4
    assert root.all(id="mistakes") == []
    visible = "".join(section.text for section in root.all("section"))
    assert not re.search(r"top-1|McNemar", visible)


def test_the_charts_of_sensitivity_hold_every_score_and_so_do_their_tables(tmp_path: Path) -> None:
    section = rendered(results.run(tmp_path)).one("section", id="sensitivity")
    channels, int8 = section.all("svg", class_="chart")
    tips = {tip.text.split(":")[0]: tip.numbers for tip in channels.all("title")}
    assert tips["stem"] == [75, 87.0, 50, 81.0, 25, 61.0]
    assert int8.all("title")[3].numbers[-2:] == [2.80, 0.80]
    first, second = section.all("figcaption")
    assert "stem" in first.text
    assert {-26.5, -21.5} <= set(first.numbers)
    assert {2.00, 3.10, 2.50, 87.5, 86.0, 85.5} <= set(second.numbers)
    rows = section.one(id="sensitivity-2-table").cells()
    assert [cell.text for cell in rows["stem"]] == ["86.0 2.00", "87.0 2.50"]
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
    run = results.run(variants=["fp32"])
    counts = [{"label": f"class-{n}", "n": 10, "correct": 10 - n % 7} for n in range(200)]
    entry = replace(run.variants[0], scores={**run.variants[0].scores, "classes": counts})
    grid = scores.classes(replace(run, variants=[entry]))
    assert len(grid.rows) == findings.SHOWN_CLASSES
    assert {cells[0].text for _, cells in grid.rows} == {"40.0", "50.0"}
    assert "200" in grid.note


def test_the_snippet_of_the_page_classifies_a_photograph(tmp_path: Path) -> None:
    run = results.run()
    assert words.snippet("int8").strip() == "".join(rendered(run).one("pre", id="snippet").parts).strip()
    tiny_onnx.write(tmp_path / "int8.onnx")
    pixels = np.full((20, 33, 3), 30, dtype=np.uint8)
    pixels[:, :, 1] = 220
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", words.snippet("int8")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "green"


def test_the_page_shows_everything_that_was_measured(tmp_path: Path) -> None:
    run = results.run(tmp_path)
    root = rendered(run)
    pruned = root.one("li", data_variant="pruned")
    assert pruned.numbers[:1] == [-8.0]
    assert re.findall(r"\.(?!\d)", pruned.text) == ["."]  # one sentence
    details = root.one(id="details").text
    assert run.change("pruned")["reason"] in details
    assert "320 images" in details
    for label in results.CLASSES:
        assert label in details
    strip = root.one(id="corruptions-table").cells()["fog"][0]
    assert strip.one("svg").attributes["aria-label"].endswith("83.0, 74.0, 61.0, 47.0, 32.0")
    attacks = root.one(id="adversarial-table").cells()
    [header] = [name for name in attacks if re.search(r"FGSM.*fp32.*int8\.onnx", name)]
    assert [cell.numbers[0] for cell in attacks[header]] == [92.7, 81.0, 40.5]
    outside = root.one(id="out-of-distribution-table").cells()["noise"]
    assert outside[0].text == "48.6 AUROC 0.957"
    groups = root.one("section", id="groups").all("figcaption")
    assert [caption.numbers[:3] for caption in groups] == [[2.9, 1.1, 4.7]]
    calibration = root.one("section", id="calibration")
    assert calibration.one("figure", data_variant="teacher").one("figcaption").numbers == [
        2.10,
        1.70,
        2.50,
        91.4,
    ]
    own = calibration.one("figure", data_variant="fp32").one("figcaption").numbers
    assert own == [2.10, 1.70, 2.50, 91.4, 0.47, 0.07, 0.87, -1.13]
    assert [flip.attributes["data-of"] for flip in root.all(data_flips="lost")] == [
        "int8",
        "pruned",
        "pruned-int8",
    ]
    assert "others took 0.8 cores" in root.one(id="noise").text
    assert {19.30, 8.44} <= set(root.one("section", id="energy").numbers)
    # A column that could not be measured has no picture.
    assert len(groups) == 1


def test_odd_data_are_shown_as_the_stages_write_them(tmp_path: Path) -> None:
    """A class that no test image has, a single group, and measurements that were not made."""
    run = results.run(variants=tuple(results.CHAIN))
    entries, teacher, labels = results.results(600)
    names = ["absent", *results.DATA["classes"]]
    answers = {"teacher": teacher + 1} | {e.variant: np.array(e.scores["predictions"]) + 1 for e in entries}
    labels = labels + 1
    column = slices.Column("camera", "metadata", {"one": np.ones(600, bool)}, "from the metadata file")
    parents = {entry.variant: entry.parent for entry in entries}
    changes = {
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
                    limits=StepLimits(max_drop=0.02, max_class_drop=1.0),
                ),
                "reference": {
                    "variant": "fp32",
                    "delta": 0.0,
                    "lo": 0.0,
                    "hi": 0.0,
                    "distinguishable": False,
                },
            }
            for e in entries
        },
        "slices": [slices.measure(column, answers, parents, labels)],
    }
    parts = ("explanations", "robustness", "sensitivity", "costs", "suspects")
    files = {name: tmp_path / f"{name}.json" for name in parts}
    for name in parts[:3]:
        files[name].write_text(json.dumps({"note": "not measured"}))
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
    run = replace(
        run,
        table=tables.rows(entries, changes),
        variants=entries,
        comparison=changes,
        data=results.DATA | {"classes": names},
        evidence=evidence.read(**files),
    )
    root = rendered(run)
    cells = root.one(id="classes-table").cells()
    assert [cell.numbers for cell in cells["absent"]] == [[]] * 4
    moved = {change["label"]: change["delta"] for change in changes["variants"]["pruned"]["classes"]}
    for label in results.CLASSES:
        assert cells[label][2].one("small").numbers == [pytest.approx(100 * moved[label], abs=0.05)]
    assert {section.attributes["id"] for section in root.all("section")} == ALWAYS | {"groups"}
    assert root.all(id="gaps-table") == []


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
def test_a_browser_shows_every_section_without_errors_on_a_phone_and_on_a_desk(tmp_path: Path) -> None:
    run = results.run(tmp_path)
    # Two variants lie almost on top of each other.
    twin = replace(run.table[1], variant="int8-twin", latency_ms_p50=2.52, score=run.table[1].score + 0.001)
    crowded = pictures.overview(replace(run, table=[*run.table, twin]))
    (tmp_path / "report.html").write_text(page.render(run))
    (tmp_path / "overview.html").write_text(f"<!doctype html><body>{crowded}</body>")
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
            view.goto((tmp_path / "overview.html").as_uri())
            assert view.locator("svg.chart").count() == 2
            assert view.evaluate(OVERLAPS) == []
            view.goto((tmp_path / "report.html").as_uri())
            assert view.evaluate("getComputedStyle(document.body).backgroundColor") == paper
            # Nothing makes the page wider than the screen; wide tables scroll within themselves.
            assert view.evaluate("document.documentElement.scrollWidth") == width
            # What to ship, why, and what one loses by it is seen without scrolling.
            assert view.evaluate("document.querySelector('.figures').getBoundingClientRect().bottom") < 844
            # Tables that are wider than the screen say so, and no others.
            wide = view.evaluate(WIDE)
            assert view.locator(".scroll.wide").count() == wide
            assert (wide > 0) == (width == 390)
            # The navigation stays, and marks the section in view.
            view.evaluate("document.getElementById('data').scrollIntoView()")
            view.wait_for_selector("nav a[aria-current][href='#data']")
            assert view.evaluate("document.querySelector('nav').getBoundingClientRect().top") == 0
            titles = view.locator("section > h2")
            assert titles.count() == view.locator("section").count() == len(ALWAYS | OPTIONAL)
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


WIDE = """
[...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth + 1).length
"""
"""Number of tables that are wider than the screen."""

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
"""Texts of a chart that overlap each other."""


def lacking_proof(run: RunResults, **changes: Any) -> RunResults:
    """The same run on 120 test images, which do not show that int8 loses nothing; others are rejected."""
    change = {
        **run.comparison["variants"]["int8"],
        **{"n": 120, "delta": 0.0, "lo": -0.031, "hi": 0.031, "verdict": "reject", "images_needed": 381},
        **{"distinguishable": False, "limits": {"max_drop": 0.01, "max_class_drop": 0.03}, "classes": []},
    }
    values = {"score_delta": 0.0, "delta_lo": -0.031, "max_drop": 0.01, "test_images": 120}
    table = [
        row
        if row.variant == "fp32"
        else replace(row, verdict="reject", images_needed=381, **values)
        if row.variant == "int8"
        else replace(row, verdict="reject", score_delta=-0.1, delta_lo=-0.2)
        for row in run.table
    ]
    comparison = {**run.comparison, "variants": {**run.comparison["variants"], "int8": change}}
    return replace(run, table=table, comparison=comparison, choice=budget.choose(table, **changes))


def test_a_variant_that_lacks_test_images_is_told_from_one_that_loses_something() -> None:
    root = rendered(lacking_proof(results.run()))
    lead = root.one(id="budget").text
    for part in ("only accepted variant", "int8", "120 test images", "381"):
        assert part in lead
    row = root.one("tr", data_variant="int8")
    assert row.attributes["data-verdict"] == "reject"
    small = row.one(data_column="verdict").text
    assert words.NO_DIFFERENCE not in small
    assert "3.1" in small
    sentence = root.one("li", data_variant="int8").text
    assert "1 point." in sentence
    assert "381" in sentence


def test_where_more_test_images_would_help_the_advice_is_that_and_no_smaller_variant() -> None:
    run = results.run()
    limits = {"max_size_bytes": 3_000_000}
    advice = rendered(lacking_proof(run, **limits)).one(id="advice").text
    assert "381" in advice
    assert "smaller or faster" not in advice
    none = replace(run, choice=budget.choose(run.table, max_size_bytes=20_000))
    assert "smaller or faster" in rendered(none).one(id="advice").text


def test_a_busy_machine_is_explained_once_and_under_latency() -> None:
    run = results.run()
    noise = {"noisy": True, "reasons": ["others took 0.8 cores"]}
    busy = replace(
        run, benchmark={**run.benchmark, "noise": noise}, choice=budget.choose(run.table, noisy=True)
    )
    root = rendered(busy)
    assert budget.BUSY in root.one(id="budget").text
    assert root.text.count("0.8 cores") == 1
    assert "0.8 cores" in root.one("section", id="latency").text


def test_the_reference_is_not_compared_with_its_own_speed() -> None:
    run = results.run()
    alone = replace(run, choice=budget.choose(run.table[:1]))
    assert "the speed of" not in rendered(alone).one(data_figure="latency").text
    assert "the speed of" in rendered(run).one(data_figure="latency").text
