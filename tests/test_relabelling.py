"""Names of classes, labels from a table, and the published validation split as the test split."""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from timm.data.imagenet_info import ImageNetInfo

from pipeline import paths
from pipeline.data import preparation, store, writing
from pipeline.data.listing import Listing, SourceError
from pipeline.data.settings import DataSettings
from pipeline.data.splits import Splits
from pipeline.parameters import ParameterError, checks, composition
from pipeline.settings import merge

ROOT = Path(__file__).parents[1]
FOLDERS = ("n01", "n02", "n03")
NAMES = {"n01": "zebra", "n02": "ant", "n03": "horse"}


@pytest.fixture
def root(tmp_path: Path, photographs: Path) -> Path:
    """16 training and 8 validation images of three classes, whose folders are ids."""
    for folder, colour in zip(FOLDERS, ("blue", "green", "red"), strict=True):
        for number, file in enumerate(sorted((photographs / colour).iterdir())):
            place = tmp_path / "set" / ("train" if number < 16 else "val") / folder
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    return tmp_path / "set"


def settings(root: Path, **values: Any) -> DataSettings:
    return DataSettings.model_validate({"source": "folder", "path": root, "test": 0.25, "val": 0.25} | values)


def prepare(root: Path, **values: Any) -> tuple[Listing, Splits, list[str]]:
    data = settings(root, **values)
    contents = preparation.read(data)
    return contents, *preparation.divide(contents, data, seed=0)


def write_table(root: Path, labels: Mapping[str, str], column: str = "noisy_50") -> dict[str, str]:
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "noisy_0", column, "is_valid"])
        for place, label in labels.items():
            writer.writerow([place, Path(place).parent.name, label, place.startswith("val")])
    return {"table": "labels.csv", "column": column, "files": "path"}


def places(root: Path) -> list[str]:
    return sorted(str(file.relative_to(root)) for file in root.rglob("*.jpg"))


def test_classes_have_the_given_names_in_the_order_of_their_folders(root: Path, tmp_path: Path) -> None:
    plain, plain_splits, _ = prepare(root)
    named, named_splits, _ = prepare(root, names=NAMES)
    assert plain.classes == FOLDERS
    assert named.classes == ("zebra", "ant", "horse")
    for (_, before), (_, after) in zip(plain_splits.items(), named_splits.items(), strict=True):
        assert [(image.source, image.label) for image in before] == [
            (image.source, image.label) for image in after
        ]
    facts = {"source": "folder", "path": str(root), "license": "unknown"}
    report = writing.write(tmp_path / "data", named, named_splits, facts)
    assert report["folders"] == NAMES
    assert report["classes"] == list(NAMES.values())
    assert (
        report["data_sha256"] == writing.write(tmp_path / "plain", plain, plain_splits, facts)["data_sha256"]
    )
    assert "folders" not in json.loads((tmp_path / "plain" / store.REPORT).read_text())
    assert "relabelled" not in report


def test_classes_without_a_given_name_keep_that_of_their_folder(root: Path) -> None:
    assert prepare(root, names={"n02": "ant"})[0].classes == ("n01", "ant", "n03")


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ({"n1": "ant"}, ["n1", "n01", "n02", "n03"]),
        ({"train": "ant"}, ["train"]),
        ({"n01": "ant", "n02": "ant"}, ["n01", "n02", "ant"]),
        ({"n01": "sea lion", "n02": "Sea_Lion"}, ["n01", "n02", "sea lion"]),
        ({"n01": "n02"}, ["n01", "n02"]),
        ({"n01": "n02", "n02": "n01"}, ["n01", "n02"]),
        ({"n01": " ant"}, [" ant"]),
        ({"n01": "a\nnt"}, ["a\\nnt"]),
    ],
)
def test_names_that_cannot_be_used_are_named(root: Path, names: dict[str, str], parts: Sequence[str]) -> None:
    with pytest.raises(SourceError) as caught:
        prepare(root, names=names)
    assert "data.names" in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("names", [{"n01": "n02", "n02": "n01"}, {"n01": "n02", "n02": "cat"}])
def test_a_class_does_not_get_the_name_of_another_folder(root: Path, names: dict[str, str]) -> None:
    """A table, or a logit of the teacher, could then mean either class."""
    with pytest.raises(SourceError, match=r"data\.names: the class folder `n01` .* another one, `n02`"):
        prepare(root, names=names)


@pytest.mark.parametrize("names", [{}, NAMES])
def test_a_table_gives_the_labels_of_training_images_alone(root: Path, names: dict[str, str]) -> None:
    following: dict[str, str] = {"n01": "n02", "n02": "n03", "n03": "n01"}
    wrong = {place: following[Path(place).parent.name] for place in places(root)}
    labels = write_table(root, wrong)
    _, true, _ = prepare(root, splits="val_as_test", names=names)
    contents, noisy, notes = prepare(root, splits="val_as_test", names=names, labels=labels)
    assert [image.source for image in noisy.train] == [image.source for image in true.train]
    assert [image.label for image in noisy.train] == [(int(image.label) + 1) % 3 for image in true.train]  # type: ignore[arg-type]
    for split in ("val", "test"):
        same = [[(i.source, i.label) for i in getattr(made, split)] for made in (true, noisy)]
        assert same[0] == same[1]
        assert same[0]
    assert noisy.relabelled == len(noisy.train)
    assert any("labels.csv" in note and "noisy_50" in note for note in notes)
    assert not [item for item in contents.rejected if item.source == "labels.csv"]


def test_readable_names_are_labels_as_well(root: Path) -> None:
    labels = write_table(
        root, dict.fromkeys(places(root)[:4], "horse") | dict.fromkeys(places(root)[4:], "n01")
    )
    contents = preparation.read(settings(root, names=NAMES, labels=labels))
    assert [image.training_label for image in contents.labelled] == [2] * 4 + [0] * (len(places(root)) - 4)


def test_the_drawn_images_do_not_depend_on_the_table(root: Path, tmp_path: Path) -> None:
    labels = write_table(root, {place: FOLDERS[index % 3] for index, place in enumerate(places(root))})
    plain = prepare(root, train=12)[1]
    noisy = prepare(root, train=12, labels=labels)[1]
    for (_, before), (_, after) in zip(plain.items(), noisy.items(), strict=True):
        assert [image.source for image in before] == [image.source for image in after]
    changed = sum(a.label != b.label for a, b in zip(plain.train, noisy.train, strict=True))
    assert noisy.relabelled == changed > 0
    contents = preparation.read(settings(root, labels=labels))
    facts = {"source": "folder", "path": str(root), "license": "unknown"}
    report = writing.write(tmp_path / "data", contents, noisy, facts)
    assert report["relabelled"] == changed
    counts = Counter(contents.classes[int(image.label)] for image in noisy.train)  # type: ignore[arg-type]
    assert report["counts"]["train"] == counts
    read = store.read(tmp_path / "data", "train")
    assert read.labels.tolist() == [image.label for image in noisy.train]


def test_images_that_only_the_table_or_only_the_folder_has_are_counted(root: Path) -> None:
    training = [place for place in places(root) if place.startswith("train")]
    labels = write_table(root, dict.fromkeys([*training[:-2], "train/n01/lost.jpg"], "n01"))
    contents = preparation.read(settings(root, labels=labels))
    lost, missing = [note for note in contents.notes if "labels.csv" in note]
    assert " 1 " in lost
    assert " 2 " in missing
    assert sum(image.training_label is not None for image in contents.labelled) == len(training) - 2


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"table": "other.csv"}, ["data.labels.table", "other.csv"]),
        ({"table": "../labels.csv"}, ["data.labels.table", "../labels.csv"]),
        ({"table": "train"}, ["data.labels.table"]),
        ({"column": "noisy_40"}, ["data.labels.column", "noisy_40", "noisy_0", "noisy_50"]),
        ({"column": "is_valid"}, ["labels.csv, line 2", "is_valid", "False", "n01"]),
        ({"files": "file_name"}, ["labels.csv", "file_name"]),
        ({"files": "noisy_0"}, ["labels.csv", "noisy_0", "train/n01/00.jpg"]),
    ],
)
def test_a_table_that_does_not_fit_is_named(root: Path, change: dict[str, str], parts: Sequence[str]) -> None:
    labels = write_table(root, dict.fromkeys(places(root), "n01"))
    shutil.copy(root / "labels.csv", root.parent)
    with pytest.raises(SourceError) as caught:
        preparation.read(settings(root, labels=labels | change))
    for part in parts:
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("line", ["train/n01/00.jpg,n01,n02,False", "../train/n01/00.jpg,n01,n01,False"])
def test_a_line_that_contradicts_or_leaves_the_folder_is_named(root: Path, line: str) -> None:
    labels = write_table(root, dict.fromkeys(places(root), "n01"))
    with (root / "labels.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(SourceError, match=f"line {2 + len(places(root))}"):
        preparation.read(settings(root, labels=labels))


def test_a_line_that_is_repeated_counts_once(root: Path) -> None:
    labels = write_table(root, dict.fromkeys(places(root), "n01"))
    with (root / "labels.csv").open("a") as file:
        file.write("train/n01/00.jpg,n01,n01,False\n")
    assert not [
        note for note in preparation.read(settings(root, labels=labels)).notes if "labels.csv" in note
    ]


def test_a_class_that_no_training_image_is_left_of_is_named(root: Path) -> None:
    labels = write_table(root, dict.fromkeys(places(root), "n01"))
    with pytest.raises(SourceError) as caught:
        prepare(root, names=NAMES, labels=labels)
    assert "ant" in str(caught.value)


def test_the_published_validation_split_is_tested_on(root: Path) -> None:
    _, made, _ = prepare(root, splits="val_as_test")
    assert sorted(image.source for image in made.test) == [
        place for place in places(root) if place.startswith("val")
    ]
    assert len(made.val) == round(0.25 * 48)
    assert {image.source.partition("/")[0] for image in [*made.train, *made.val]} == {"train"}


@pytest.mark.parametrize("name", ["test", "other", None])
def test_without_a_validation_split_or_with_a_test_split_it_cannot_be_tested_on(
    root: Path, name: str | None
) -> None:
    if name == "other":
        shutil.copytree(root / "val", root / "test")
    elif name is None:
        root = root / "train"
    else:
        (root / "val").rename(root / name)
    with pytest.raises(SourceError, match=r"data\.splits"):
        preparation.read(settings(root, splits="val_as_test"))


PRESETS = {
    file.stem: data
    for file in sorted((ROOT / paths.CONFIGS / "data").glob("*.yaml"))
    if (data := composition.composed("config", [f"data={file.stem}"])["data"]).get("download")
}
"""The values of each set of photographs that is downloaded."""


def test_published_sets_of_photographs_are_presets() -> None:
    assert PRESETS.keys() >= {"flowers", "imagenette", "imagenette_noisy", "imagewoof", "imagewoof_noisy"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_where_it_comes_from_and_needs_no_folder_before_it_is_fetched(name: str) -> None:
    values = composition.composed("config", [f"data={name}"])
    data = checks.check(values, name).data
    assert data.is_downloaded
    assert not data.path.exists()
    assert data.license != "unknown"
    inherited = [ROOT / paths.CONFIGS / "data" / f"{part}.yaml" for part in (name, name.split("_")[0])]
    assert any("# https://" in file.read_text() or ": https://" in file.read_text() for file in inherited)
    ids = set(data.names)
    assert len(ids) == len(set(data.names.values())) in (0, 10)
    assert all(re.fullmatch(r"n\d{8}", wordnet) for wordnet in ids)
    for elsewhere in ("nowhere", str(Path(__file__))):
        with pytest.raises(ParameterError, match=r"data\.path"):
            checks.check(merge(values, {"data": {"path": elsewhere}}), name)


@pytest.mark.parametrize("key", ["names", "labels"])
def test_names_and_labels_are_for_class_folders_alone(key: str) -> None:
    values = composition.composed()
    given = {"names": {"a": "b"}, "labels": {"table": "a.csv", "column": "b"}}[key]
    with pytest.raises(ParameterError, match=rf"data\.{key}"):
        checks.check(merge(values, {"data": {key: given}}), "params.yaml")


def test_names_are_one_text_for_tracking_and_stay_a_mapping_elsewhere() -> None:
    values = composition.composed("config", ["data=imagewoof"])
    checked = checks.check(values, "params.yaml")
    assert checks.check(checked.model_dump(mode="json"), "params.yaml").data == checked.data
    recipe = checked.recipe("teacher")
    assert "n02086240: Shih-Tzu" in recipe["data"]["names"]
    assert checks.check(composition.composed(), "params.yaml").recipe("teacher")["data"]["names"] == {}


@pytest.mark.parametrize("name", ["imagenette", "imagewoof"])
def test_names_of_wordnet_ids_are_those_of_image_net(name: str) -> None:
    info = ImageNetInfo("imagenet-1k")
    places = {wordnet: index for index, wordnet in enumerate(info.label_names())}
    for wordnet, english in PRESETS[name]["names"].items():
        assert english in info.index_to_description(places[wordnet]).split(", ")
