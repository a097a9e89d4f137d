"""Labels that the teacher contradicts: planted errors are found, and the list can be given back."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from jaxtyping import Float16, Float32, Int64
from PIL import Image

from pipeline import paths
from pipeline.data import preparation, sources, splits, store, tables, views, writing
from pipeline.data.arrow import Rows
from pipeline.data.settings import DataSettings
from pipeline.data.splits import Splits
from pipeline.data.store import ImageSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import labels
from pipeline.inspection import suspects
from pipeline.inspection.suspects import Suspects
from pipeline.settings import merge
from pipeline.stages import explain, label, teach
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL
from tests import odd_onnx

ROOT = Path(__file__).parents[1]
CLASSES = ("coat", "dress", "shirt", "shoe")
PLAIN = ViewSpace(crop_scale=(0.8, 1.0), crop_ratio=(0.9, 1.1), seed=0)


def answers(truth: Int64[np.ndarray, " images"], classes: int, noise: float = 0.5) -> np.ndarray:
    """Logits of a good teacher: that of the true class is 5, with noise."""
    random = np.random.default_rng(0)
    return np.eye(classes, dtype=np.float32)[truth] * 5 + random.normal(0, noise, (len(truth), classes))


def softmax(logits: np.ndarray) -> Float32[np.ndarray, "images classes"]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def planted(images: int = 400, wrong: int = 100, classes: int = 4) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """True classes, labels of which some are wrong, and which ones are."""
    random = np.random.default_rng(1)
    truth = np.arange(images) % classes
    chosen = random.choice(images, wrong, replace=False)
    given = truth.copy()
    given[chosen] = (truth[chosen] + random.integers(1, classes, wrong)) % classes
    return truth, given, set(chosen.tolist())


def image_set(given: Any, classes: tuple[str, ...] = CLASSES, sources: list[str] | None = None) -> ImageSet:
    given = np.asarray(given)
    sources = sources or [f"{number}.jpg" for number in range(len(given))]
    hashes = [hashlib.sha256(source.encode()).hexdigest() for source in sources]
    table = Rows(pa.table({"label": given.tolist(), "source": sources, "sha256": hashes}))
    return ImageSet(table, classes, MULTI_LABEL if given.ndim > 1 else SINGLE_LABEL)


@pytest.mark.parametrize(("wrong", "least"), [(8, 0.5), (40, 0.9), (100, 1.0), (160, 1.0)])
def test_planted_errors_are_found_with_the_true_class_and_nothing_else_is(wrong: int, least: float) -> None:
    """An error is missed if the teacher is less sure of its true class than of that class on average, which
    matters while there are few errors."""
    truth, given, errors = planted(wrong=wrong)
    found = suspects.find(softmax(answers(truth, 4)), given)
    assert set(found.images.tolist()) <= errors
    assert least * wrong <= len(found) <= wrong
    assert (found.suggestions == truth[found.images]).all()
    assert (found.labels == given[found.images]).all()


def test_the_greatest_contradiction_comes_first() -> None:
    truth, given, _ = planted()
    probabilities = softmax(answers(truth, 4, noise=2.0))
    found = suspects.find(probabilities, given)
    margins = found.label_probabilities - found.suggestion_probabilities
    assert (np.diff(margins) >= 0).all()
    assert (margins < 0).all()
    assert (found.suggestion_probabilities == probabilities[found.images, found.suggestions]).all()
    assert (found.label_probabilities == probabilities[found.images, found.labels]).all()


def test_a_class_of_which_the_teacher_is_rarely_sure_has_a_lower_threshold() -> None:
    # On average 0.9 of class 0 and 0.4 of class 1, on the images that are labelled so.
    probabilities = np.array(
        [[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.3, 0.4, 0.3], [0.3, 0.4, 0.3], [0.45, 0.05, 0.5]],
        dtype=np.float32,
    )
    given = np.array([0, 0, 1, 1, 2])
    assert len(suspects.find(probabilities, given)) == 0
    more = np.concatenate([probabilities, [[0.1, 0.45, 0.45 - 0.01]], [[0.55, 0.05, 0.4]]]).astype(np.float32)
    found = suspects.find(more, np.array([*given, 2, 2]))
    # 0.45 is enough for class 1 (threshold 0.4); 0.55 is not for class 0 (0.9).
    assert found.images.tolist() == [5]
    assert found.suggestions.tolist() == [1]


def test_a_label_that_is_more_probable_than_any_other_class_is_not_suspicious() -> None:
    probabilities = np.array([[0.4, 0.6], [0.55, 0.45], [0.95, 0.05]], dtype=np.float32)
    given = np.array([1, 0, 0])
    # Image 1 is as sure of class 1 as ... no other image is labelled so: its threshold is 0.6.
    assert len(suspects.find(probabilities, given)) == 0
    low = np.array([[0.7, 0.3], [0.55, 0.45], [0.95, 0.05]], dtype=np.float32)
    # Class 1 has the threshold 0.3, and image 1 reaches it; yet its label is more probable.
    assert suspects.find(low, given).images.tolist() == []


def test_a_class_of_which_all_answers_are_equally_sure_can_be_suggested() -> None:
    probabilities = np.tile(np.array([[0.9, 0.1]], np.float32), (1000, 1))
    given = np.zeros(1000, np.int64)
    given[7] = 1
    assert suspects.find(probabilities, given).images.tolist() == [7]


def test_a_class_without_images_is_never_suggested() -> None:
    probabilities = np.array([[0.1, 0.1, 0.8], [0.1, 0.9, 0.0]], dtype=np.float32)
    assert len(suspects.find(probabilities, np.array([0, 1]))) == 0


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, given, _ = planted()
    logits = answers(truth, 4, noise=2.0).astype(np.float16)
    whole = suspects.search(image_set(given), lambda i, _: logits[i], PLAIN, 2)
    monkeypatch.setattr(suspects, "BLOCK", 10)
    parts = suspects.search(image_set(given), lambda i, _: logits[i], PLAIN, 2)
    assert len(whole.suspects) > 60
    for name, value in vars(whole.suspects).items():
        assert value is None or (value == getattr(parts.suspects, name)).all()


def test_only_views_that_show_an_image_alone_are_asked() -> None:
    truth, given, errors = planted()
    space = PLAIN.model_copy(update={"mixup": 0.3, "cutmix": 0.3})
    images = image_set(given)
    plain = suspects.plain_views(space, images.keys, 4)
    mixed = [
        [views.draw_mixture(space, key, view, len(images)) is not None for view in range(4)]
        for key in images.keys.tolist()
    ]
    assert (plain == ~np.array(mixed)).all()
    assert 0.3 < plain.mean() < 0.5
    good = answers(truth, 4).astype(np.float16)
    asked: list[tuple[int, int]] = []

    def ask(indices: Int64[np.ndarray, " batch"], view: int) -> Float16[np.ndarray, "batch classes"]:
        asked.extend((image, view) for image in indices.tolist())
        return good[indices]

    found = suspects.search(images, ask, space, 4)
    assert {tuple(pair) for pair in asked} == {tuple(pair) for pair in np.argwhere(plain).tolist()}
    alone = np.flatnonzero(plain.any(axis=1)).tolist()
    assert 0 < found.not_judged == len(images) - len(alone)
    assert found.judged == len(alone)
    assert set(found.suspects.images.tolist()) == errors & set(alone)


def test_images_of_which_all_views_are_mixed_are_counted_and_not_judged() -> None:
    _, given, _ = planted()
    space = PLAIN.model_copy(update={"mixup": 1.0})
    found = suspects.search(image_set(given), lambda i, _: np.zeros((len(i), 4), np.float16), space, 2)
    assert (len(found.suspects), found.judged, found.not_judged) == (0, 0, 400)


def test_probabilities_are_the_mean_over_the_views() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (5, 3, 4)).astype(np.float16)
    plain = np.ones((5, 3), bool)
    plain[2, 1] = False
    means = suspects.mean_probabilities(lambda i, v: logits[i, v], np.arange(5), plain, exclusive=True)
    each = np.stack([softmax(logits[:, view].astype(np.float32)) for view in range(3)], axis=1)
    assert means[:2] == pytest.approx(each[:2].mean(1), abs=1e-6)
    assert means[2] == pytest.approx(each[2, [0, 2]].mean(0), abs=1e-6)


def test_answers_of_which_only_the_most_probable_classes_are_stored_name_the_same_errors() -> None:
    truth, given, errors = planted(images=2000, wrong=1000, classes=20)
    logits = answers(truth, 20).astype(np.float16)
    stored = labels.compact(np.stack([logits, logits], axis=1), top=3)
    assert stored.top_classes is not None
    names = tuple(f"class {number}" for number in range(20))
    found = suspects.search(image_set(given, names), stored.at, PLAIN, 2)
    assert set(found.suspects.images.tolist()) == errors
    assert (found.suspects.suggestions == truth[found.suspects.images]).all()


def test_images_without_a_label_are_left_out() -> None:
    truth, given, errors = planted()
    given[::5] = -1
    logits = answers(truth, 4).astype(np.float16)
    found = suspects.search(image_set(given), lambda i, _: logits[i], PLAIN, 1)
    assert (found.judged, found.not_judged) == (320, 0)
    assert set(found.suspects.images.tolist()) == {image for image in errors if image % 5}


def test_verified_labels_are_not_suspicious() -> None:
    truth, given, errors = planted()
    logits = answers(truth, 4).astype(np.float16)
    images = image_set(given)
    vars(images)["verified"] = np.array(sorted(errors)[:10])
    found = suspects.search(images, lambda i, _: logits[i], PLAIN, 1)
    assert found.judged == len(given)
    assert set(found.suspects.images.tolist()) == errors - set(images.verified.tolist())
    assert (found.suspects.suggestions == truth[found.suspects.images]).all()


def test_planted_errors_of_attributes_are_found_per_attribute(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (300, 3))
    shares = truth.astype(np.float32)
    errors = {(image, image % 3) for image in range(0, 300, 2)}
    for image, attribute in errors:
        shares[image, attribute] = 1 - shares[image, attribute]
    shares[7] = np.nan
    logits = ((2 * truth - 1) * 4 + random.normal(0, 0.5, truth.shape)).astype(np.float16)
    names = ("hat", "bag", "belt")
    images = image_set(shares, names)
    found = suspects.search(images, lambda i, _: logits[i], PLAIN, 1)
    assert found.judged == 299
    assert found.suspects.attributes is not None
    pairs = zip(found.suspects.images.tolist(), found.suspects.attributes.tolist(), strict=True)
    assert set(pairs) == errors
    lines = suspects.describe(found.suspects, images.sources, names)
    assert len(lines) == len(errors)
    for line in lines:
        image = int(line["file_name"].removesuffix(".jpg"))
        attribute = names.index(line["attribute"])
        assert line["label"] == str(int(shares[image, attribute]))
        assert line["suggestion"] == str(int(truth[image, attribute]))
    suspects.write(tmp_path / "list.csv", lines)
    rows = [row for _, row in tables.read(tmp_path / "list.csv").rows]
    assert [(row["file_name"], row["attribute"], row["label"]) for row in rows] == [
        (line["file_name"], line["attribute"], line["label"]) for line in lines
    ]


def test_an_attribute_that_all_images_have_is_never_suspicious() -> None:
    found = suspects.find_attributes(np.full((4, 1), 0.2, np.float32), np.ones((4, 1), np.float32))
    assert len(found) == 0


def folder(root: Path, photographs: Path, names: dict[str, str], first: str) -> DataSettings:
    """Photographs of three classes with the given names; the names of the files begin with ``first``."""
    for colour, name in names.items():
        (root / name).mkdir(parents=True)
        for file in sorted((photographs / colour).iterdir()):
            shutil.copy(file, root / name / f"{first}{file.name}")
    return DataSettings.model_validate({"source": "folder", "path": root, "test": 0.25, "val": 0.25})


def prepare(settings: DataSettings) -> tuple[tuple[str, ...], Splits]:
    contents = preparation.read(settings)
    splits, _ = preparation.divide(contents, settings, seed=0)
    return contents.classes, splits


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ({"blue": "blue", "green": "green", "red": "red"}, ""),
        ({"blue": "+blue", "green": "-1", "red": "=red"}, "=1+"),
        ({"blue": "de l'été", "green": 'a "b", c', "red": "r;d"}, "ü "),
    ],
    ids=["plain", "formulas", "quotes"],
)
def test_the_corrected_list_is_a_table_of_labels(
    tmp_path: Path, photographs: Path, names: dict[str, str], first: str
) -> None:
    settings = folder(tmp_path / "set", photographs, names, first)
    classes, splits = prepare(settings)
    truth = np.array([image.label for image in splits.train])
    sources = [image.source for image in splits.train]
    # The first image of every class is in the folder of another class.
    probabilities = softmax(answers(truth, 3))
    wrong = [int(np.flatnonzero(truth == label)[0]) for label in range(3)]
    given = truth.copy()
    given[wrong] = (truth[wrong] + 1) % 3
    found = suspects.find(probabilities, given)
    assert set(found.images.tolist()) == set(wrong)
    suspects.write(tmp_path / "set" / "list.csv", suspects.describe(found, sources, classes))

    def train(column: str) -> dict[str, int]:
        table = {"table": "list.csv", "column": column}
        _, again = prepare(DataSettings.model_validate({**settings.model_dump(), "labels": table}))
        return {image.source: image.label for image in again.train}  # pyright: ignore[reportReturnType]

    before = dict(zip(sources, truth.tolist(), strict=True))
    assert train("label") == before | {sources[i]: int(given[i]) for i in wrong}
    assert train("suggestion") == before
    # A person corrects one label by hand.
    file = tmp_path / "set" / "list.csv"
    with file.open(newline="", encoding="utf-8-sig") as opened:
        lines = list(csv.DictReader(opened))
    lines[0]["label"] = lines[0]["suggestion"]
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    corrected = found.images[0]
    expected = before | {sources[i]: int(given[i]) for i in wrong if i != corrected}
    assert train("label") == expected


def test_no_cell_of_the_list_is_a_formula(tmp_path: Path) -> None:
    found = Suspects(*(np.array([0]) for _ in range(3)), *(np.array([0.25], np.float32) for _ in range(2)))
    suspects.write(tmp_path / "list.csv", suspects.describe(found, ["=1.jpg"], ("@coat",)))
    content = (tmp_path / "list.csv").read_bytes()
    assert content.startswith("\ufeff".encode())
    [header, cells] = list(csv.reader(content.decode("utf-8-sig").splitlines()))
    assert header == list(suspects.COLUMNS)
    assert cells == ["'=1.jpg", "'@coat", "'@coat", "0.2500", "0.2500"]
    [(_, row)] = tables.read(tmp_path / "list.csv").rows
    assert (row["file_name"], row["label"]) == ("=1.jpg", "@coat")


def test_a_list_that_replaces_a_table_has_the_labels_of_all_images(tmp_path: Path) -> None:
    truth, given, _ = planted()
    given[3] = -1
    images = image_set(given)
    found = suspects.find(softmax(answers(truth, 4))[4:], given[4:])
    found = replace(found, images=found.images + 4)
    lines = suspects.describe(found, images.sources, CLASSES)
    suspects.write(tmp_path / "list.csv", lines, suspects.describe_others(found, images))
    table = [row for _, row in tables.read(tmp_path / "list.csv").rows]
    assert {row["file_name"]: row["label"] for row in table} == {
        f"{image}.jpg": CLASSES[label] for image, label in enumerate(given) if label >= 0
    }
    assert [bool(row["suggestion"]) for row in table] == [True] * len(found) + [False] * (399 - len(found))


def test_an_empty_list_is_a_table_without_rows(tmp_path: Path) -> None:
    suspects.write(tmp_path / "list.csv", [])
    assert tables.read(tmp_path / "list.csv").rows == []
    assert json.loads(json.dumps(suspects.METHOD)) == suspects.METHOD


WRONG = {"red/00.jpg": "blue", "red/01.jpg": "green", "green/02.jpg": "blue", "blue/03.jpg": "red"}
"""Places of planted errors: which photograph lies in the folder of another colour."""


@pytest.fixture
def project(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the answers of a teacher to photographs of which some lie in wrong folders."""
    photos = tmp_path / "photos"
    shutil.copytree(photographs, photos)
    for place, colour in WRONG.items():
        shutil.move(photos / place, photos / colour / f"wrong-{place.replace('/', '-')}")
    listing = sources.folder(photos)
    parts = splits.assign(listing.labelled, train=None, val=0.1, test=0.1, seed=0)
    facts = {"source": "folder", "path": "photos", "license": "CC0-1.0"}
    writing.write(tmp_path / paths.DATA, listing, parts, facts)
    monkeypatch.chdir(tmp_path)
    odd_onnx.write(tmp_path / "box.onnx")
    teacher = {"source": "onnx", "name": "box.onnx", "size": None, "head": None, "full": None}
    values = {
        "teacher": {**teacher, "input": {"interpolation": "bilinear"}, "doubtful": "accept"},
        "compute": {"workers": 0, "threads": 1},
        "views": {"per_image": 2},
        "explain": {"suspects": 2},
        "student": {"size": 32},
    }
    parameters = yaml.safe_load((ROOT / paths.PARAMETERS).read_text())
    paths.PARAMETERS.write_text(yaml.safe_dump(merge(parameters, values)))
    teach.main()
    label.main()
    monkeypatch.setattr(explain, "_explain", lambda _: {"note": "not drawn here"})


@pytest.mark.usefixtures("project")
def test_the_stage_lists_planted_errors_and_draws_the_first() -> None:
    train = store.read(paths.DATA, "train")
    names = {f"{colour}/wrong-{place.replace('/', '-')}" for place, colour in WRONG.items()}
    planted_here = names & set(train.sources)
    assert len(planted_here) > 2
    paths.EXPLANATIONS.mkdir(parents=True)
    (paths.EXPLANATIONS / "train-99999.png").write_bytes(b"of another run")
    explain.main()
    about = json.loads((paths.EXPLANATIONS / "suspicious_labels.json").read_text())
    rows = [row for _, row in tables.read(paths.SUSPECTS).rows]
    assert {row["file_name"] for row in rows} == planted_here
    for row in rows:
        assert row["label"] == row["file_name"].split("/")[0]
        assert row["suggestion"] == row["file_name"].split("-")[1]
    counts = (about["suspects"], about["labels"], about["not_judged"], about["trained_on_them"])
    assert counts == (len(rows), len(train), 0, False)
    assert [image["file_name"] for image in about["images"]] == [row["file_name"] for row in rows[:2]]
    pictures = {file.name for file in paths.EXPLANATIONS.glob("*.png")}
    assert pictures == {image["file"] for image in about["images"]}
    for image in about["images"]:
        with Image.open(paths.EXPLANATIONS / image["file"]) as picture:
            colour = np.asarray(picture).mean(axis=(0, 1))
        assert ("red", "green", "blue")[colour.argmax()] == image["suggestion"]


@pytest.mark.usefixtures("project")
def test_where_a_table_gave_labels_the_list_has_all_of_them() -> None:
    report = store.read_report(paths.DATA)
    (paths.DATA / store.REPORT).write_text(json.dumps({**report, "relabelled": 4}))
    explain.main()
    rows = [row for _, row in tables.read(paths.SUSPECTS).rows]
    train = store.read(paths.DATA, "train")
    assert {row["file_name"] for row in rows} == set(train.sources)
    assert [bool(row["suggestion"]) for row in rows] == sorted(
        (bool(row["suggestion"]) for row in rows), reverse=True
    )
    about = json.loads((paths.EXPLANATIONS / "suspicious_labels.json").read_text())
    assert about["complete"]


@pytest.mark.usefixtures("project")
def test_answers_to_other_views_are_refused() -> None:
    values = yaml.safe_load(paths.PARAMETERS.read_text())
    paths.PARAMETERS.write_text(yaml.safe_dump(merge(values, {"views": {"flip": 0.1}})))
    with pytest.raises(labels.LabelError, match="space"):
        explain.main()
