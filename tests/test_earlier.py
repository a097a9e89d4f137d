"""What was measured once is used again, for as long as nothing that it depends on differs."""

import json
from pathlib import Path

import pytest

from pipeline import earlier
from pipeline.running import dvc_parent


def test_a_digest_tells_contents_and_names_and_absence(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    seen = {earlier.digest(folder), earlier.digest(tmp_path / "absent")}
    for name, content in (("a", "1"), ("a", "2"), ("b", "2"), ("below/a", "2")):
        (folder / name).write_text(content)
        assert earlier.digest(folder) == earlier.digest(folder)
        seen.add(earlier.digest(folder))
    assert len(seen) == 6


def test_entries_stay_whose_inputs_are_the_same() -> None:
    before = {"inputs": {"fp32": "1", "int8": "2", "removed": "3"}}
    assert earlier.kept(before, {"new": "4", "fp32": "1", "int8": "changed"}) == {"fp32"}
    for nothing in ({}, {"inputs": None}, {"note": "not measured"}):
        assert earlier.kept(nothing, {"fp32": "1"}) == set()


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\xff"])
def test_an_earlier_result_that_cannot_be_read_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv(dvc_parent.STAGE, "probe")
    file = tmp_path / "result.json"
    assert earlier.read(file) == {}
    file.write_text(content, encoding="latin-1")
    assert earlier.read(file) == {}


def test_a_stage_that_somebody_starts_by_hand_measures_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"inputs": {}}))
    monkeypatch.delenv(dvc_parent.STAGE, raising=False)
    assert earlier.read(file) == {}
    monkeypatch.setenv(dvc_parent.STAGE, "probe")
    assert earlier.read(file) == {"inputs": {}}


def test_entries_are_joined_in_the_order_of_today_and_new_ones_count() -> None:
    joined = earlier.join(["c", "a", "b"], {"a": "new"}, {"a": "old", "b": "old", "c": "old", "d": "old"})
    assert list(joined.items()) == [("c", "old"), ("a", "new"), ("b", "old")]
