"""Folders as people pack them: which of their folders are splits, and what becomes of every file."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data import images, layouts, listing, names, reading, sources, splits, trees, writing
from pipeline.data.listing import Listing, SourceError

ROOT = Path(__file__).parents[1]


def paint(root: Path, *places: str, count: int = 2) -> None:
    """Put different small images into folders, or write the one that a place names."""
    for place in places:
        for number in range(count):
            file = root / place if Path(place).suffix == ".png" else root / place / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            seed = list(os.fsencode(file.relative_to(root)))
            pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)


def refusal(root: Path, *places: str) -> str:
    """The one line with which a folder of these places is refused."""
    paint(root, *places)
    with pytest.raises(SourceError) as caught:
        sources.read("folder", root)
    [line] = str(caught.value).splitlines()
    return line


def sizes(contents: Listing) -> dict[str | None, int]:
    """The number of images by split."""
    found = [image.split for image in contents.labelled]
    return {split: found.count(split) for split in sorted(set(found), key=str)}


def check(root: Path, **options: str) -> list[str]:
    """Read and split a folder as `prepare` does, and return what it notes."""
    anew = options.pop("splits", "original") == "new"
    contents = sources.read("folder", root, options.get("layout", "auto"))  # type: ignore[arg-type]
    assigned = splits.assign(
        contents.labelled, contents.unlabelled, train=None, val=0.3, test=0.3, seed=0, anew=anew
    )
    return [*contents.notes, *splits.check(contents, assigned, anew=anew)]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN", "train"),
        ("train_set", "train"),
        ("trainset", "train"),
        ("Training Set", "train"),
        ("images_train", "train"),
        ("train-images", "train"),
        ("train2017", "train"),
        ("01_train", "train"),
        ("train (1)", "train"),
        ("traindata", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("Validation", "val"),
        ("validation_set", "val"),
        ("valset", "val"),
        ("dev", "val"),
        ("eval", "val"),
        ("imgs.val", "val"),
        ("test", "test"),
        ("Testing", "test"),
        ("test_set", "test"),
        ("TESTSET", "test"),
        ("holdout", "test"),
        ("hold-out", "test"),
        ("test1", "test"),
        ("trainer", None),
        ("trains", None),
        ("steam train", None),
        ("crash_test", None),
        ("tests", None),
        ("protest", None),
        ("valley", None),
        ("validated", None),
        ("device", None),
        ("evaluate me", None),
        ("set", None),
        ("images", None),
    ],
)
def test_a_folders_name_means_a_split_in_the_ways_that_people_write_it(name: str, split: str | None) -> None:
    assert names.split_of(name) == split


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["Training/cat", "Training/dog", "Testing/cat", "Testing/dog"], {"train": 4, "test": 4}),
        (["train/cat", "train/dog", "valid/cat", "valid/dog", "test/cat", "test/dog"],
         {"train": 4, "val": 4, "test": 4}),
        (["train_set/cat", "train_set/dog", "test_set/cat", "test_set/dog"], {"train": 4, "test": 4}),
        (["seg_train/seg_train/cat", "seg_train/seg_train/dog", "seg_test/cat", "seg_test/dog"],
         {"train": 4, "test": 4}),
        (["train/images/cat", "train/images/dog", "val/images/cat", "val/images/dog"],
         {"train": 4, "val": 4}),
        (["archive/train/cat", "archive/train/dog", "archive/test/cat", "archive/test/dog"],
         {"train": 4, "test": 4}),
        (["archive/pets/cat", "archive/pets/dog"], {None: 4}),
        (["cat/deep/er", "dog"], {None: 4}),
        (["train/train", "train/bus", "test/train", "test/bus"], {"train": 4, "test": 4}),
        (["trainers", "protest"], {None: 4}),
        (["steam train", "bullet train"], {None: 4}),
        (["train/n01/images", "train/n02/images", "val/images", "test/images"], {"train": 4}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_known_layouts_are_read(tmp_path: Path, places: list[str], expected: dict) -> None:
    paint(tmp_path, *places)
    contents = sources.read("folder", tmp_path)
    assert sizes(contents) == expected
    assert len(contents.classes) == 2


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (["bus", "car", "train"], ["`train`", "As splits", "no class folders", "3 classes", "data.layout"]),
        (["bus", "car", "train/steam", "train/electric"], ["`train`", "`electric`", "`bus`", "3 classes"]),
        (["Training", "Testing"], ["`Testing`", "`Training`", "As splits", "2 classes", "data.layout"]),
        (["train", "test/cat", "test/dog", "cat"], ["`test`", "`train`", "As classes"]),
        (["cat/train", "cat/test", "dog/train", "dog/test"],
         ["`cat`", "test, train", "As classes", "as splits", "data.layout"]),
        (["test/cat", "test/dog", "val/cat", "val/dog"], ["no folder holds those of train"]),
        (["train/cat", "train/dog", "val/cat", "val/dog", "dev/cat"], ["`dev`", "`val`", "rename"]),
        (["train/train", "train/test"], ["As splits", "As classes"]),
        (["cat"], ["at least 2 class folders", "`cat`", ": 1"]),
        (["train"], ["`train`", "As splits", "As classes"]),
        (["train/cat"], ["at least 2 class folders", "`cat`"]),
        (["."], ["2 images are not in class folders", ": 0"]),
        (["train/cat", "train/dog", "train/Dog"], ["`Dog`", "`dog`", "train/Dog", "train/dog"]),
        (["cat", "cat "], ["`cat`", "`cat `"]),
        (["t shirt", "t-shirt", "t_shirt"], ["`t shirt`", "`t-shirt`", "`t_shirt`"]),
    ],
    ids=lambda value: value[0] if value[0].islower() else "",
)  # fmt: skip
def test_what_can_be_read_in_two_ways_or_in_none_is_refused(
    tmp_path: Path, places: list[str], words: list[str]
) -> None:
    line = refusal(tmp_path, *places)
    assert str(tmp_path) in line
    assert [word for word in words if word not in line] == []


def both(*folders: str) -> list[str]:
    """Two classes in each folder."""
    return [f"{folder}/{name}" for folder in folders for name in ("gato", "perro")]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (both("entrenamiento", "prueba"), ["`entrenamiento`, `prueba`", "`gato`, `perro`"]),
        (both("学習", "テスト"), ["`学習`"]),
        (both("Тренировка", "Тест"), ["`Тест`"]),
        (both("fold1", "fold2"), ["`fold1`, `fold2`"]),
        (both("fold_0", "fold_1", "fold_2"), ["`fold_0`, `fold_1`, `fold_2`", "3 classes"]),
        (both("part1", "part2"), ["`part1`"]),
        (both("seen", "unseen"), ["`unseen`"]),
        (both("source", "target"), ["`target`"]),
        (both("trainA", "trainB", "testA", "testB"), ["`testA`", "4 classes"]),
        (["trainA", "trainB", "testA", "testB"], ["test and train", "4 classes"]),
        (both("set/one", "set/two"), ["(in `set`)", "`one`, `two`"]),
        ([f"{place}/images" for place in both("one", "two")], ["`one`, `two`"]),
        (both("one/images", "two/images"), ["`one`, `two`", "`gato`, `perro`"]),
        ([*both("one", "two"), "one/pez"], ["3 classes"]),
        ([*both("one", "two"), "caballo"], ["`one`, `two`", "`caballo`"]),
        (["one/Gato", "one/perro", "two/gato", "two/perros"], ["`one`, `two`"]),
        (["one/gato", "one/perro", "two/gato", "two/pero"], ["`one`, `two`"]),
        (["one/1", "one/2", "two/01", "two/02"], ["`one`, `two`"]),
        ([*both("one"), "gato", "perro"], ["`one`", "beside it"]),
        (both("train", "tset"), ["`tset`", "`splits`", "test or val"]),
        (both("train", "val", "prueba"), ["`prueba`", "`splits`", "test"]),
    ],
    ids=lambda value: value[0],
)
def test_folders_that_hold_folders_of_the_same_names_can_be_splits_and_are_refused(
    tmp_path: Path, places: list[str], words: list[str]
) -> None:
    line = refusal(tmp_path, *places)
    assert [word for word in [*words, "data.layout", "split"] if word not in line] == []
    other = "splits" if places[0].startswith("train/") else "classes"
    assert len(sources.read("folder", tmp_path, other).classes) >= 2


@pytest.mark.parametrize(
    "places",
    [
        ["gato/images", "perro/images"],
        ["gato/images", "perro/images", "gato/photos", "perro/photos"],
        ["gato/2023", "perro/2023"],
        ["gato/a", "gato/b", "perro/c", "perro/d"],
        ["gato/a", "gato/b", "perro/b", "perro/c"],
        ["gato", "gato/a/0.png", "gato/b/0.png", "gato/x.png", "perro", "perro/a/0.png", "perro/b/0.png",
         "perro/x.png"],
        ["steam train", "bullet train"],
    ],
)  # fmt: skip
def test_class_folders_that_hold_folders_stay_classes(tmp_path: Path, places: list[str]) -> None:
    paint(tmp_path, *places)
    assert sizes(sources.read("folder", tmp_path)).keys() == {None}


def test_classes_that_are_all_divided_are_noted_with_their_parts(tmp_path: Path) -> None:
    paint(tmp_path, "animals/cat", "animals/dog", "vehicles/bus", "vehicles/car")
    [note] = sources.read("folder", tmp_path).notes
    assert all(f"`{name}`" in note for name in ("animals", "vehicles", "cat", "dog"))


def test_a_folder_that_no_split_is_missing_for_is_noted(tmp_path: Path) -> None:
    paint(tmp_path, *both("train", "val", "test", "prueba"))
    [note] = sources.read("folder", tmp_path).notes
    assert "`prueba`" in note


@pytest.mark.parametrize(
    ("places", "link", "target"),
    [
        (both("train"), "test", "train"),
        (both("train", "test"), "Validation", "test"),
        (both("set/train"), "set/test", "train"),
        (["gato", "perro"], "caballo", "gato"),
        ([*both("train"), "test/perro"], "test/gato", "../train/gato"),
        (both("elsewhere/../train"), "test", "train"),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_split_or_class_that_is_a_link_to_another_is_refused(
    tmp_path: Path, places: list[str], link: str, target: str, absolute: bool
) -> None:
    (tmp_path / "elsewhere").mkdir()
    paint(tmp_path, *places)
    (tmp_path / "elsewhere").rmdir()
    place = tmp_path / link
    place.symlink_to((place.parent / target).resolve() if absolute else target)
    with pytest.raises(SourceError) as caught:
        sources.read("folder", tmp_path)
    assert f"`{link}`" in str(caught.value)
    assert "link" in str(caught.value)


def test_two_links_to_one_folder_outside_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "real", "gato", "perro")
    (tmp_path / "set").mkdir()
    for name in ("train", "test"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "real")
    with pytest.raises(SourceError, match=r"`(test|train)` is a link"):
        sources.read("folder", tmp_path / "set")


@pytest.mark.parametrize(("link", "target"), [("latest", "train"), ("again", "."), (".hidden", "train")])
def test_other_links_beside_the_splits_are_listed(tmp_path: Path, link: str, target: str) -> None:
    paint(tmp_path, *both("train", "test"))
    (tmp_path / link).symlink_to(target)
    contents = sources.read("folder", tmp_path)
    assert [item.source for item in contents.rejected] == [link]
    assert len(contents.notes) == (0 if link.startswith(".") else 1)


def test_folders_without_labels_are_said_not_to_be_classes(tmp_path: Path) -> None:
    paint(tmp_path, "labelled", "unlabelled")
    with pytest.raises(SourceError, match=r"`unlabelled` is no class"):
        sources.read("folder", tmp_path)


@pytest.mark.parametrize(
    ("layout", "places", "classes", "expected"),
    [
        ("classes", ["bus", "car", "train"], ("bus", "car", "train"), {None: 6}),
        ("classes", ["Training", "Testing"], ("Testing", "Training"), {None: 4}),
        ("classes", ["cat/train", "cat/test", "dog/train", "dog/test"], ("cat", "dog"), {None: 8}),
        ("splits", ["bus", "car", "train/steam", "train/electric"], ("electric", "steam"), {"train": 4}),
        ("splits", ["train/a", "train/b", "val/a", "dev/b"], ("a", "b"), {"train": 4, "val": 4}),
    ],
)
def test_a_parameter_settles_what_a_folder_is(
    tmp_path: Path, layout: layouts.LayoutName, places: list[str], classes: tuple, expected: dict
) -> None:
    paint(tmp_path, *places)
    contents = sources.read("folder", tmp_path, layout)
    assert contents.classes == classes
    assert sizes(contents) == expected


@pytest.mark.parametrize("places", [["cat", "dog"], ["train", "test"]])
def test_splits_that_are_not_there_are_missed(tmp_path: Path, places: list[str]) -> None:
    paint(tmp_path, *places)
    with pytest.raises(SourceError, match=r"data\.layout"):
        sources.read("folder", tmp_path, "splits")


def test_every_file_is_used_or_listed_with_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "set"
    paint(root, "train/cat", "train/dog", "val/cat", "val/dog", "test", "extra/deep", "train/loose.png")
    paint(root, "train/cat/.hidden", "train/dog/.h.png", "__MACOSX/train/cat", ".cache", "top.png")
    paint(root, "unlabelled/web", "train/unlabelled")
    paint(tmp_path, "elsewhere")
    for name in (
        "README.md",
        "train/dog/Thumbs.db",
        "train/cat/clip.mp4",
        "train/cat/none",
        "train/labels.csv",
    ):
        (root / name).write_bytes(b"x")
    (root / "train/cat/.DS_Store").write_bytes(b"x")
    (root / "train/cat/empty.png").write_bytes(b"")
    (root / "train/cat/photo.heic").write_bytes(b"x")
    (root / "train/dog/link.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (root / "train/dog/gone.png").symlink_to("nowhere")
    (root / "train/dog/self.png").symlink_to("self.png")
    (root / "train/dog/more").symlink_to(tmp_path / "elsewhere")
    (root / "train/dog/up").symlink_to("../..")
    (root / "train/dog/cats").symlink_to("../cat")
    os.mkfifo(root / "train/dog/pipe.png")
    contents = sources.read("folder", root)
    assigned = splits.assign(contents.labelled, contents.unlabelled, train=None, val=0.3, test=0.3, seed=0)
    reasons = {item.source: item.reason for item in [*contents.rejected, *assigned.rejected]}
    assert len(reasons) == len(contents.rejected) + len(assigned.rejected)
    used = {image.source for _, split in assigned.items() for image in split}
    seen = {
        str(Path(folder).relative_to(root) / name) for folder, _, files in os.walk(root) for name in files
    }
    assert (used | set(reasons)) >= seen
    assert not used & set(reasons)
    assert "train/dog/link.png" in used
    kinds = {item.source: item.kind for item in contents.rejected}
    assert {source: kinds[source] for source in (
        "README.md", "test/0.png", "extra/deep/1.png", "train/loose.png", "train/cat/.hidden/0.png",
        "train/dog/.h.png", "__MACOSX/train/cat/0.png", "top.png", "train/unlabelled/0.png",
        "train/cat/empty.png", "train/cat/photo.heic", "train/dog/gone.png", "train/dog/up",
        "train/dog/cats", "train/dog/pipe.png",
    )} == {
        "README.md": "no image", "test/0.png": "unlabelled", "extra/deep/1.png": "aside",
        "train/loose.png": "unlabelled", "train/cat/.hidden/0.png": "hidden", "train/dog/.h.png": "hidden",
        "__MACOSX/train/cat/0.png": "hidden", "top.png": "unlabelled", "train/unlabelled/0.png": "aside",
        "train/cat/empty.png": "damaged", "train/cat/photo.heic": "format", "train/dog/gone.png": "damaged",
        "train/dog/up": "link", "train/dog/cats": "link", "train/dog/pipe.png": "damaged",
    }  # fmt: skip
    # The linked file and the linked folder hold the same picture.
    assert reasons["train/dog/more/0.png"] == "same content as train/dog/link.png"
    assert any("`test`" in note and "2 images" in note for note in contents.notes)
    assert any("`extra`" in note for note in contents.notes)


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    paint(tmp_path / "real", "dog", "more")
    root = tmp_path / "set"
    paint(root, "cat")
    (root / "dog").symlink_to(tmp_path / "real" / "dog")
    for name in ("cat", "dog"):
        for other in ("cat", "dog", "."):
            (root / name / f"to {other}").symlink_to(root / other)
    (root / "cat" / "outside").symlink_to(tmp_path)
    (root / "cat" / "more").symlink_to(tmp_path / "real" / "more")
    (root / "cat" / "again").symlink_to(tmp_path / "real" / "more")
    contents = sources.read("folder", root)
    assert [image.source for image in contents.labelled] == [
        "cat/0.png", "cat/1.png", "cat/again/0.png", "cat/again/1.png", "dog/0.png", "dog/1.png",
    ]  # fmt: skip
    listed = {item.source: item.reason for item in contents.rejected}
    assert {"cat/to cat", "cat/to .", "cat/to dog", "cat/outside", "cat/more"} <= set(listed)
    assert "contains it" in listed["cat/outside"]
    assert "again" in listed["cat/more"]


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


def rename(folder: Path, count: int, suffix: str) -> None:
    for file in sorted(folder.iterdir())[:count]:
        file.rename(file.with_suffix(suffix))


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


def test_images_that_change_or_vanish_after_they_were_listed_end_in_one_line(tmp_path: Path) -> None:
    root = tmp_path / "set"
    paint(root, "cat", "dog", count=6)
    for change in ("vanish", "change"):
        contents = sources.read("folder", root)
        assigned = splits.assign(contents.labelled, train=None, val=0.2, test=0.2, seed=0)
        file = root / assigned.train[0].source
        before = file.read_bytes()
        file.unlink()
        if change == "change":
            Image.new("RGB", (5, 5)).save(file)
        with pytest.raises(SourceError, match=assigned.train[0].source):
            writing.write(tmp_path / "data", contents, assigned, {})
        file.write_bytes(before)


def test_a_file_that_vanishes_between_listing_and_reading_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path, "cat", "dog")
    walk = trees.walk

    def walk_and_remove(root: Path) -> trees.Tree:
        tree = walk(root)
        (root / "cat" / "1.png").unlink()
        return tree

    monkeypatch.setattr(trees, "walk", walk_and_remove)
    [rejected] = sources.read("folder", tmp_path).rejected
    assert (rejected.source, rejected.kind) == ("cat/1.png", "missing")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path, "cat", "dog", "owl/deep", "owl")
    scandir = os.scandir

    def refuse(folder: Path):
        if Path(folder).name in ("dog", "deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"'dog'.*Permission denied"):
        sources.read("folder", tmp_path)
    monkeypatch.setattr(
        os, "scandir", lambda folder: refuse(folder) if "deep" in str(folder) else scandir(folder)
    )
    assert [(item.source, item.kind) for item in sources.read("folder", tmp_path).rejected] == [
        ("owl/deep", "unreadable")
    ]


NAMES = {
    "not UTF-8": os.fsdecode(b"\xe4\xff.png"),
    "line break": "a\nb.png",
    "control": "a\x1b[31mb\x07.png",
    "right to left": "a\u202egnp.png",
    "long": "n" * 251 + ".png",
    "blank": " .png",
    "quotes": "'\"`$(x).png",
    "hash": "#%?*[0].png",
    "dash": "-rf.png",
    "backslash": "a\\b.png",
    "emoji": "🐈.png",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_files_of_any_name_are_used_and_printed_on_one_line(tmp_path: Path, name: str) -> None:
    paint(tmp_path / "set", "cat", "dog", count=5)
    paint(tmp_path / "set", f"cat/{name}", count=1)
    contents = sources.read("folder", tmp_path / "set")
    assert (len(contents.labelled), contents.rejected) == (11, [])
    assert all(image.source.isprintable() for image in contents.labelled)
    assigned = splits.assign(contents.labelled, train=None, val=0.2, test=0.2, seed=0)
    writing.write(tmp_path / "data", contents, assigned, {})
    (tmp_path / "set" / "cat" / name).write_bytes(b"damaged")
    [rejected] = sources.read("folder", tmp_path / "set").rejected
    assert rejected.source.isprintable()


def test_a_class_whose_name_is_not_in_utf_8_is_named(tmp_path: Path) -> None:
    paint(tmp_path, "cat", os.fsdecode(b"k\xe4se"))
    with pytest.raises(SourceError, match=r"k\\xe4se.*UTF-8"):
        sources.read("folder", tmp_path)


@pytest.mark.parametrize("place", ["/", "/proc", "/proc/self", "/sys", "/dev", "/home/..", "~", ".", ".."])
def test_places_that_hold_more_than_images_are_refused_without_looking(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "walk", lambda root: pytest.fail(f"{root} was listed"))
    for source in sources.SOURCES:
        with pytest.raises(SourceError, match=r"^data\.path \(="):
            sources.read(source, Path(place).expanduser())


@pytest.mark.parametrize(
    "kind", ["missing", "file", "link to nothing", "loop", "pipe", "long name", "zero byte"]
)
def test_what_is_no_folder_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    match kind:
        case "file":
            place.write_text("x")
        case "link to nothing":
            place.symlink_to("nowhere")
        case "loop":
            place.symlink_to("place")
        case "pipe":
            os.mkfifo(place)
        case "long name":
            place = tmp_path / ("n" * 300)
        case "zero byte":
            place = tmp_path / "a\0b"
    for source in sources.SOURCES:
        with pytest.raises(SourceError, match=r"^data\.path \(=.*must be a folder") as caught:
            sources.read(source, place)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("pipe", "pipe"),
        ("socket", "socket"),
        ("device", "device"),
        ("link to nothing", "link to nothing"),
        ("bytes", "UTF-8"),
        ("loop", "could not be looked at"),
    ],
)
def test_what_dvc_cannot_hash_is_named_before_it_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "set"
    paint(root, "cat", "dog")
    assert sources.check_files(root) == []
    file = root / "cat" / "odd.png"
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "socket":
            monkeypatch.chdir(root / "cat")
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("odd.png")
            monkeypatch.chdir(tmp_path)
        case "device":
            file.symlink_to("/dev/null")
        case "link to nothing":
            file.symlink_to("nowhere")
        case "bytes":
            paint(root, "cat/" + os.fsdecode(b"odd\xe4.png"), count=1)
        case "loop":
            file.symlink_to("odd.png")
    with pytest.raises(SourceError) as caught:
        sources.check_files(root)
    head, line = str(caught.value).splitlines()
    assert head.startswith(f"data.path (={root})")
    assert "cat/odd" in line
    assert word in line


def test_links_to_folders_whose_changes_dvc_does_not_notice_are_noted(tmp_path: Path) -> None:
    paint(tmp_path / "real", "dog")
    paint(tmp_path / "set", "cat")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "real" / "dog")
    # DVC does not look behind the link.
    (tmp_path / "real" / "dog" / "gone.png").symlink_to("nowhere")
    paint(tmp_path / "real", "dog/" + os.fsdecode(b"odd\xe4.png"), count=1)
    [note] = sources.check_files(tmp_path / "set")
    assert "dog" in note


def test_predict_takes_linked_files_and_folders_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    paint(tmp_path / "real", "deep")
    root = tmp_path / "set"
    paint(root, "a.png", ".hidden", count=1)
    (root / "b.png").symlink_to(tmp_path / "real" / "deep" / "0.png")
    (root / "c").symlink_to(tmp_path / "real")
    (root / "d.png").symlink_to("nowhere")
    (root / "loop").symlink_to(root)
    (root / "notes.txt").write_text("x")
    lines: list[str] = []
    found = [str(file.relative_to(root)) for file in images.find([str(root)], lines.append)]
    assert found == ["a.png", "b.png", "c/deep/0.png", "c/deep/1.png"]
    for word in ("notes.txt", "d.png", "loop", "0.png"):
        assert any(word in line for line in lines), word
    assert all(line.isprintable() for line in lines)
    lines.clear()
    assert [file.name for file in images.find([f"{root}/*.*"], lines.append)] == ["a.png", "b.png", "d.png"]
    assert len(lines) == 1
    assert "notes.txt" in lines[0]
    assert [file.name for file in images.find([f"{root}/{'n' * 300}.png"], lines.append)] == [
        "n" * 300 + ".png"
    ]


def test_a_name_that_the_terminal_lacks_is_printed_as_an_escape() -> None:
    code = (
        "from pipeline.running.process import one_line_errors\n"
        "with one_line_errors():\n"
        "    print('k\\u00e4se \\udce4')\n"
    )
    for encoding in ("ascii:strict", "utf-8:strict"):
        environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": encoding}
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        assert b"\\udce4" in result.stdout


def test_large_images_are_hashed_in_strips_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 11, 3), dtype=np.uint8)
    expected = hashlib.sha256(b"(11, 37)" + pixels.tobytes()).hexdigest()
    for strip in (1, 11, 50, 10_000):
        monkeypatch.setattr(listing, "STRIP_PIXELS", strip)
        assert listing.content_hash(Image.fromarray(pixels)) == expected


def test_results_are_computed_a_bounded_number_ahead() -> None:
    started: list[int] = []

    def note(number: int) -> int:
        started.append(number)
        return number

    results = reading.in_order(note, range(100), threads=2)
    assert next(results) == 0
    assert len(started) <= 5
    assert list(results) == list(range(1, 100))


@pytest.mark.parametrize(
    "places",
    [
        ("cat/images", "cat/masks", "dog/images", "dog/masks"),
        ("cat", "cat/Mask", "dog"),
        ("cat/a/Ground_Truth", "cat/a/photos", "dog"),
        ("train/cat", "train/cat/masks", "train/dog", "test/cat", "test/dog"),
        ("train/cat/img", "train/cat/gt", "train/dog"),
    ],
)
def test_masks_are_not_pooled_with_the_photographs_of_a_class(
    tmp_path: Path, places: tuple[str, ...]
) -> None:
    line = refusal(tmp_path, *places)
    [layout] = re.findall(r"data.layout to `(\w+)`", line)
    assert any(name in line for name in ("`masks`", "`Mask`", "`Ground_Truth`", "`gt`"))
    expected = sum(len(files) for *_, files in os.walk(tmp_path))
    assert len(sources.read("folder", tmp_path, layout).labelled) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "places",
    [
        ("mask", "no mask"),
        ("with_mask/cloth_mask", "with_mask/surgical_mask", "without_mask"),
        ("face/mask", "hand"),
        ("train/mask", "train/bare", "test/mask", "test/bare"),
    ],
)
def test_masks_that_people_wear_are_classes(tmp_path: Path, places: tuple[str, ...]) -> None:
    paint(tmp_path, *places)
    assert len(sources.read("folder", tmp_path).labelled) == 2 * len(places)


@pytest.mark.parametrize(
    "name",
    [
        "$RECYCLE.BIN",
        "System Volume Information",
        "@eaDir",
        "#recycle",
        "lost+found",
        "LOST+FOUND",
        "__MACOSX",
    ],
)
def test_folders_that_systems_leave_are_no_classes_and_their_files_are_listed(
    tmp_path: Path, name: str
) -> None:
    paint(tmp_path, "cat", "dog", name, f"cat/{name}")
    contents = sources.read("folder", tmp_path)
    assert contents.classes == ("cat", "dog")
    assert len(contents.labelled) == 4
    assert {(item.source.rpartition("/")[0], item.kind) for item in contents.rejected} == {
        (name, "hidden"),
        (f"cat/{name}", "hidden"),
    }


@pytest.mark.parametrize("name", ["unlabeled2017", "Unlabelled_images", "unlabeled (1)", "unlabeled data"])
def test_images_without_labels_are_recognised_in_the_ways_that_people_write_it(
    tmp_path: Path, name: str
) -> None:
    paint(tmp_path, "cat", "dog", name)
    contents = sources.read("folder", tmp_path)
    assert contents.classes == ("cat", "dog")
    assert len(contents.unlabelled) == 2


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
