"""Files of folders that cannot be used: how many may be lost, and what is said of them."""

import shutil
from pathlib import Path

import pytest

from pipeline.data import listing, sources
from pipeline.data.listing import SourceError
from tests.photo_folders import check, paint, rename


def test_damaged_files_above_a_share_stop_the_run_with_the_first_of_them(tmp_path: Path) -> None:
    paint(tmp_path, "cat", "dog", count=6)
    for number in range(12):
        (tmp_path / "cat" / f"bad{number:02}.jpg").write_bytes(b"no image")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    contents = sources.read("folder", tmp_path)
    with pytest.raises(SourceError) as caught:
        listing.refuse_losses(contents, 0.4)
    head, *lines = str(caught.value).splitlines()
    assert "12 of 24" in head
    assert "data.max_rejected" in head
    assert [line.split(":")[0] for line in lines[:-1]] == [f"cat/bad{number:02}.jpg" for number in range(10)]
    assert "2 more" in lines[-1]
    listing.refuse_losses(contents, 0.5)


@pytest.mark.parametrize("suffix", [".heic", ".CR2", ".jp2", ".jpg_large", ".jpg!d", ""])
def test_pictures_in_formats_that_are_not_read_count_as_lost(tmp_path: Path, suffix: str) -> None:
    paint(tmp_path, "cat", "dog", count=20)
    rename(tmp_path / "dog", 17, suffix)
    contents = sources.read("folder", tmp_path)
    with pytest.raises(SourceError) as caught:
        listing.refuse_losses(contents, 0.1)
    head, first, *_ = str(caught.value).splitlines()
    assert "17 of 40" in head
    assert "data.max_rejected" in head
    assert f"dog/0{suffix}" in first
    [note] = contents.notes
    assert "`dog`" in note
    assert "17 of 20" in note
    rename(tmp_path / "dog", 18, suffix)
    with pytest.raises(SourceError, match=r"'dog' has 2 images.*18 of 20"):
        check(tmp_path)


def test_a_class_that_loses_less_than_half_is_not_noted(tmp_path: Path) -> None:
    paint(tmp_path, "cat", "dog", count=8)
    rename(tmp_path / "dog", 3, ".heic")
    assert sources.read("folder", tmp_path).notes == ()


def test_what_lies_beside_photographs_is_not_lost(tmp_path: Path) -> None:
    paint(tmp_path, "cat", "dog", count=3)
    for name in ("0.CR2", "1.HEIC", "0.mov", "clip.mp4", "notes.txt", "plan.pdf", "logo.svg", "0.png.json"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    for name in ("0.png~", "0.png.bak", "0.PNG.old"):
        shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / name)
    contents = sources.read("folder", tmp_path)
    assert len(contents.rejected) == 11
    assert {item.kind for item in contents.rejected} == {"no image"}


def test_pictures_in_two_classes_are_noted_and_many_are_refused(tmp_path: Path) -> None:
    paint(tmp_path, "cat", "dog", "owl", count=25)
    for number in range(4):
        if number == 3:
            with pytest.raises(SourceError) as caught:
                listing.refuse_losses(sources.read("folder", tmp_path), 0.1)
            lines = str(caught.value).splitlines()
            assert [line.split("'")[1::2] for line in lines] == [["cat", "dog"], ["dog", "cat"]]
            assert all("3 of its" in line and "data.max_rejected" in line for line in lines)
            listing.refuse_losses(sources.read("folder", tmp_path), 0.13)
        elif number:
            contents = sources.read("folder", tmp_path)
            listing.refuse_losses(contents, 0.0 if number < 3 else 0.1)
            [note] = check(tmp_path)
            assert note.split("'")[1::2] == ["cat", "dog"]
            assert f" {number} " in note
        shutil.copy(tmp_path / "cat" / f"{number}.png", tmp_path / "dog" / f"copy{number}.png")


def test_a_small_class_that_is_in_another_is_refused(tmp_path: Path) -> None:
    paint(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    shutil.copytree(tmp_path / "train" / "cat", tmp_path / "test" / "owl")
    with pytest.raises(SourceError, match="'owl'"):
        listing.refuse_losses(sources.read("folder", tmp_path), 0.1)


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".CR2", ".dng", ".pdf", ".svg", ".mp4", ".dcm", ".psd"])
def test_classes_in_formats_that_are_not_read_are_told_what_to_do(tmp_path: Path, suffix: str) -> None:
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(3):
            (tmp_path / place / f"{number}{suffix}").write_bytes(b"x")
    with pytest.raises(SourceError) as caught:
        sources.read("folder", tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(suffix in line and "convert it to JPEG or PNG" in line and "3 files" in line for line in lines)
