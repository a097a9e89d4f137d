import json
from pathlib import Path

import pytest

from pipeline.models import histories
from pipeline.models.histories import continued


@pytest.fixture
def place(tmp_path: Path) -> histories.Place:
    """Where the timings of a history belong."""
    return lambda history: tmp_path / "timings" / f"{history}.json"


def test_a_history_is_one_json_line_per_epoch(tmp_path: Path, place: histories.Place) -> None:
    lines = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    histories.write(tmp_path, lines, place)
    assert [json.loads(line) for line in (tmp_path / histories.HISTORY).read_text().splitlines()] == lines
    assert histories.read(tmp_path, place) == lines


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


BARE = [{key: value for key, value in line.items() if key not in histories.TIMINGS} for line in LINES]
SLOWER = [{**line, "seconds": 100.0, "images_per_second": 1.0} for line in LINES]


def test_a_history_that_was_trained_again_in_another_time_is_the_same_file(
    tmp_path: Path, place: histories.Place
) -> None:
    for name, lines in (("once", LINES), ("again", SLOWER)):
        histories.write(tmp_path / name, lines, place)
    once, again = ((tmp_path / name / histories.HISTORY).read_bytes() for name in ("once", "again"))
    assert once == again


def test_timings_lie_elsewhere_and_join_the_history_that_they_belong_to(
    tmp_path: Path, place: histories.Place
) -> None:
    histories.write(tmp_path / "x", LINES, place)
    assert (tmp_path / "x" / histories.HISTORY).read_text().count("seconds") == 0
    assert histories.read(tmp_path / "x", place) == LINES
    assert histories.seconds(LINES) == 11.5
    # The same variant, trained anew with another result, as in a queued experiment beside this one.
    histories.write(tmp_path / "y", [{**line, "loss": 0.1} for line in SLOWER], place)
    assert histories.read(tmp_path / "x", place) == LINES


def test_a_training_of_another_machine_has_no_seconds(tmp_path: Path, place: histories.Place) -> None:
    histories.write(tmp_path, LINES, place)
    elsewhere = histories.read(tmp_path, lambda history: tmp_path / "another machine" / history)
    assert elsewhere == BARE
    assert histories.seconds(elsewhere) is None


@pytest.mark.parametrize(
    "damage",
    ["", "[", "{}", "[1]", '[{"seconds": "long"}, {"seconds": 1}]', '[{"seconds": -1}]', '[{"seconds": 1}]'],
)
def test_damaged_timings_are_no_timings(tmp_path: Path, place: histories.Place, damage: str) -> None:
    histories.write(tmp_path, LINES, place)
    [file] = (tmp_path / "timings").glob("*.json")
    file.write_text(damage)
    assert histories.read(tmp_path, place) == BARE


def test_timings_that_cannot_be_written_lose_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").write_text("a file where a folder should be")
    histories.write(tmp_path, LINES, lambda history: tmp_path / "full" / history)
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "full") in line
    assert histories.read(tmp_path, lambda history: tmp_path / "full" / history) == BARE


def test_a_variant_without_training_has_an_empty_history_and_took_no_time(
    tmp_path: Path, place: histories.Place
) -> None:
    histories.write(tmp_path, [], place)
    assert (tmp_path / histories.HISTORY).read_bytes() == b""
    assert histories.read(tmp_path, place) == []
    assert histories.seconds([]) == 0
    assert not (tmp_path / "timings").exists()
