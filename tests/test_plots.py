import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.report import plots
from tests import results


def test_each_variant_has_a_file_of_single_figures(tmp_path: Path) -> None:
    table = results.run().table
    plots.write_metrics(tmp_path, table)
    for row in table:
        figures = json.loads((tmp_path / f"{row.variant}.json").read_text())
        assert figures["top1"] == pytest.approx(row.score, abs=1e-6)
        assert figures["latency_ms_p50"] == row.latency_ms_p50
        assert figures["verdict"] == row.verdict
        assert all(isinstance(value, int | float | str) for value in figures.values())
    assert len(list(tmp_path.iterdir())) == len(table)


def test_points_of_a_plot_have_the_same_keys_as_dvc_asks(tmp_path: Path) -> None:
    teacher = [{"epoch": 1, "loss": 0.5, "val_top1": 0.8, "size": 64, "kl": 0.5}]
    plots.write_points(tmp_path, replace(results.run(), teacher_history=teacher))
    drawn = {file.stem: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    assert set(drawn) == {"training", "latency", "size", "classes", "confusion"}
    for points in drawn.values():
        assert len({tuple(point) for point in points}) == 1


def test_the_parts_of_one_training_follow_each_other() -> None:
    half, whole = ({"epoch": n, "loss": 0.5, "val_top1": 0.8} for n in (0.5, 1.0))
    points = plots.training({"teacher": [half, half, whole]}, "top1")
    assert [point["epoch"] for point in points] == [0.5, 1.0, 2.0]


def test_the_front_holds_what_no_other_variant_beats() -> None:
    points = plots.tradeoff(results.run().table, "latency")
    # fp32 is as accurate as int8 and slower; pruned is as accurate as pruned-int8 and slower.
    assert {point["variant"] for point in points if point["front"]} == {"int8", "pruned-int8"}


def test_every_test_image_is_in_the_confusion_once() -> None:
    entry = results.run().variants[0]
    points = plots.confusion(entry)
    assert sum(point["images"] for point in points) == entry.scores["n"]
    right = sum(point["images"] for point in points if point["truth"] == point["answer"])
    assert right == entry.scores["correct"]
    shares = dict.fromkeys(results.CLASSES, 0.0)
    for point in points:
        shares[point["truth"]] += point["share"]
    assert list(shares.values()) == pytest.approx([1.0] * 3, abs=1e-5)
