"""Splits of folders: what is refused and noted, class by class."""

import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import names, sources, splits, trees
from pipeline.data.listing import SourceError
from tests.photo_folders import check, paint


@pytest.mark.parametrize(
    ("places", "lines"),
    [
        (["train/cat", "train/dog", "test/cat", "test/owl"], [["'owl'", "no training images", "2 test"]]),
        (["train/cat", "train/dog", "test/cats", "test/dog"], [["'cats'", "no training images", "'cat'"]]),
        (["train/a", "train/b", "val/c", "test/d"],
         [["'c'", "no training"], ["'d'", "no training"]]),
        (["a", "b", "c/0.png"], [["'a'", "2 images", "at least 3"], ["'b'", "at least 3"],
                                 ["'c'", "no training images"]]),
    ],
    ids=lambda value: value[-1] if isinstance(value[0], str) else "",
)  # fmt: skip
def test_splits_are_checked_class_by_class_and_all_problems_are_said(
    tmp_path: Path, places: list[str], lines: list[list[str]]
) -> None:
    paint(tmp_path, *places)
    with pytest.raises(SourceError) as caught:
        check(tmp_path)
    found = str(caught.value).splitlines()
    if places[0] == "a":  # which images are drawn depends on their contents; each class is named
        assert {line.split("'")[1] for line in found} == {"a", "b", "c"}
        return
    assert len(found) == len(lines)
    for line, words in zip(found, lines, strict=True):
        assert [word for word in words if word not in line] == []


def test_a_class_that_val_or_test_lack_is_noted(tmp_path: Path) -> None:
    paint(tmp_path, "train/cat", "train/dog", "train/owl", "val/cat", "val/dog", "val/owl", "test/cat")
    notes = check(tmp_path)
    assert [note.split("'")[1] for note in notes] == ["dog", "owl"]
    assert all("test lacks it" in note for note in notes)


def test_an_empty_class_in_a_split_is_refused_unless_the_splits_are_drawn_anew(tmp_path: Path) -> None:
    paint(tmp_path, "train/cat", "train/dog", "test/cat", count=5)
    (tmp_path / "test" / "dog").mkdir()
    with pytest.raises(SourceError, match=r"'dog'.* test "):
        check(tmp_path)
    assert check(tmp_path, splits="new") == []
    (tmp_path / "test" / "dog" / "0.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"'dog'.* test "):
        check(tmp_path)


def test_a_split_whose_images_are_all_in_test_is_not_drawn_from_train(tmp_path: Path) -> None:
    paint(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    shutil.copytree(tmp_path / "test", tmp_path / "val")
    with pytest.raises(SourceError, match=r"val .*4 images .*test"):
        check(tmp_path)
    paint(tmp_path, "val/cat/new.png", count=1)
    with pytest.raises(SourceError, match=r"'dog'.*2 images of val is also in test"):
        check(tmp_path)


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_split_that_is_a_copy_of_train_is_called_so(tmp_path: Path, split: str) -> None:
    paint(tmp_path, "train/cat", "train/dog")
    shutil.copytree(tmp_path / "train", tmp_path / split)
    with pytest.raises(SourceError, match=r"train .* all its \d images .*copy"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("data.test", {"train": None, "val": 0.1, "test": 100}),
        ("data.val", {"train": None, "val": 100, "test": 0.1}),
        ("data.train", {"train": 100, "val": 0.1, "test": 0.1}),
    ],
)
def test_a_count_above_the_number_of_images_names_its_own_key(
    tmp_path: Path, key: str, counts: dict[str, Any]
) -> None:
    paint(tmp_path, "cat", "dog", count=10)
    with pytest.raises(SourceError) as caught:
        splits.assign(sources.read("folder", tmp_path).labelled, seed=0, **counts)
    assert re.findall(r"data\.\w+", str(caught.value)) == [key]
    assert "100" in str(caught.value)


@pytest.mark.parametrize("split", ["test", "Validation"])
def test_a_split_folder_without_images_is_refused(tmp_path: Path, split: str) -> None:
    paint(tmp_path, "train/cat", "train/dog")
    (tmp_path / split).mkdir()
    with pytest.raises(SourceError, match=f"`{split}` must hold the images"):
        sources.read("folder", tmp_path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train/cat", "test/Cat"),
        ("train/Café", "test/" + unicodedata.normalize("NFD", "Café")),
        ("train/t-shirt", "test/T_Shirt"),
        ("train/cat", "test/cat "),
        ("train/\uff43\uff41\uff54", "test/cat"),
        ("train/Straße", "test/STRASSE"),
        ("train/cat", "test/cat."),
        ("train/cat", "test/ca\u200bt"),
        ("train/cat", "test/\ufeffcat"),
        ("train/cat", "test/\u202ecat"),
        ("train/so\u00adfa", "test/sofa"),
        ("train/cat", "test/c\u0430t"),
        ("train/t-shirt", "test/t\u2011shirt"),
        ("train/0", "test/00"),
        ("train/1", "test/01"),
        ("train/1", "test/1.0"),
        ("train/class1", "test/class01"),
    ],
)
def test_class_names_that_are_one_name_are_refused_with_both_places(
    tmp_path: Path, one: str, other: str
) -> None:
    paint(tmp_path, "train/owl", "test/owl", one, other)
    with pytest.raises(SourceError) as caught:
        sources.read("folder", tmp_path)
    [line] = str(caught.value).splitlines()
    assert trees.printable(one) in line
    assert trees.printable(other) in line
    assert ("U+0430" in line) == ("\u0430" in other)


@pytest.mark.parametrize(
    ("group", "noted"),
    [
        (("cat", "cats"), True),
        (("Shoes", "shoe"), True),
        (("tshirt", "t-shirt"), True),
        (("dress", "dresses"), True),
        (("class1", "class2"), False),
        (("cat", "car"), False),
        (("cafe", "café"), True),
        (("A", "\u0410"), True),
        (("кот", "kot"), True),
        (("I", "\u0131"), True),
        (("1", "10"), False),
        (("1.5", "15"), False),
        (("1.05", "1.5"), False),
        (("class1", "class10"), False),
        (("12345678901234567890123456789012", "12345678901234567890123456789013"), False),
        (("v1", "v2"), False),
        (("0", "0s"), False),
        (("glass", "gla"), False),
        (("\U0001f431", "\U0001f436"), False),
        (("+", "-+"), False),
    ],
)
def test_class_names_that_are_nearly_one_name_are_noted(group: tuple[str, str], noted: bool) -> None:
    assert names.similar([*group, "owl"]) == ([tuple(sorted(group))] if noted else [])


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_whose_training_images_are_copies_is_told_where_they_are(tmp_path: Path, split: str) -> None:
    paint(tmp_path, "train/cat", "train/dog", f"{split}/dog")
    shutil.copytree(tmp_path / "train/cat", tmp_path / split / "copy")
    (tmp_path / split / "copy").rename(tmp_path / split / "cat")
    with pytest.raises(SourceError) as caught:
        check(tmp_path)
    [line] = str(caught.value).splitlines()
    assert "'cat' has no training images" in line
    assert f"train/cat/0.png, which is {split}/cat/0.png of {split}" in line
