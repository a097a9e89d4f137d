import json
from pathlib import Path

from pipeline.models import histories
from pipeline.models.histories import continued


def test_a_history_is_one_json_line_per_epoch(tmp_path: Path) -> None:
    lines = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    histories.write(tmp_path, lines)
    assert [json.loads(line) for line in (tmp_path / histories.HISTORY).read_text().splitlines()] == lines
    assert histories.read(tmp_path) == lines


def test_parts_of_a_training_count_their_epochs_and_steps_on() -> None:
    # Half an epoch, then one and a quarter, then three whole ones.
    parts = [(5, 0.5), (10, 1.0), (12, 1.25), (10, 1.0), (20, 2.0), (30, 3.0)]
    joined = continued({"step": step, "epoch": epoch, "loss": 0.1} for step, epoch in parts)
    assert [line["epoch"] for line in joined] == [0.5, 1.5, 1.75, 2.75, 3.75, 4.75]
    assert [line["step"] for line in joined] == [5, 15, 17, 27, 37, 47]
    assert {line["loss"] for line in joined} == {0.1}


def test_a_training_of_one_part_and_one_without_steps_stay_as_they_are() -> None:
    history = [{"epoch": 1.0}, {"epoch": 2.0}, {"epoch": 2.8}]
    assert continued(history) == history
    assert continued([]) == []


LINES = [
    {"part": "head", "epoch": 1.0, "step": 5, "seconds": 2.5, "images_per_second": 64.0, "loss": 0.5},
    {"part": "full", "epoch": 0.5, "step": 3, "seconds": 9.0, "images_per_second": 32.0, "loss": 0.25},
]


def test_a_history_that_was_trained_again_in_another_time_is_the_same_file(tmp_path: Path) -> None:
    slower = [{**line, "seconds": 100.0, "images_per_second": 1.0} for line in LINES]
    for name, lines in (("once", LINES), ("again", slower)):
        histories.write(tmp_path / name, lines)
    once, again = ((tmp_path / name / histories.HISTORY).read_bytes() for name in ("once", "again"))
    assert once == again


def test_timings_are_a_file_of_their_own_and_join_the_history_line_by_line(tmp_path: Path) -> None:
    histories.write(tmp_path, LINES)
    histories.write_timings(tmp_path / "timings" / "x.jsonl", LINES)
    timings = histories.read_timings(tmp_path / "timings" / "x.jsonl")
    assert [line["seconds"] for line in timings] == [2.5, 9.0]
    assert set(timings[0]) == {"part", "epoch", "step", "seconds", "images_per_second"}
    assert histories.read(tmp_path) == [
        {key: value for key, value in line.items() if key not in histories.TIMINGS} for line in LINES
    ]
    assert histories.read(tmp_path, tmp_path / "timings" / "x.jsonl") == LINES


def test_a_variant_without_training_has_an_empty_history_and_empty_timings(tmp_path: Path) -> None:
    histories.write(tmp_path, [])
    histories.write_timings(tmp_path / "x.jsonl", [])
    assert histories.read(tmp_path, tmp_path / "x.jsonl") == []
    assert (tmp_path / "x.jsonl").read_bytes() == b""
