"""Folders as people pack them: which of their folders are splits and which are classes."""

import os
import re
from pathlib import Path

import pytest

from pipeline.data import layouts, names, sources
from pipeline.data.listing import SourceError
from tests.photo_folders import both, paint, refusal, sizes


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
