"""Training images whose labels are known to be right: how they are given, stored, and trained on alone."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import students
from pipeline.data import preparation, store, views, writing
from pipeline.data.batches import Request, ViewSet
from pipeline.data.listing import SourceError
from pipeline.data.settings import DataSettings
from pipeline.data.splits import Splits, fingerprint
from pipeline.data.store import ImageSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import training_data
from pipeline.distillation.objective import loss_terms
from pipeline.distillation.settings import Objective
from pipeline.distillation.training_data import TrainingData
from pipeline.models.storage import Model
from pipeline.parameters import ParameterError, checks, composition
from pipeline.settings import merge
from pipeline.training import compute, loop
from pipeline.training.loop import Run
from pipeline.training.settings import ComputeSettings, TrainingSettings
from teachers.contract import InputContract
from tests import tiny_students

SPACE = ViewSpace(seed=0, crop_scale=(0.6, 1.0), crop_ratio=(0.8, 1.25), mixup=0.5, cutmix=0.5)
CONTRACT = InputContract(32)
FOLDERS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """72 photographs, each of which `labels.csv` gives the class of the next folder."""
    root = tmp_path_factory.mktemp("source") / "set"
    for folder in FOLDERS:
        shutil.copytree(photographs / folder, root / folder)
    write(root / "labels.csv", {place: FOLDERS[(truth(place) + 1) % 3] for place in places(root)})
    return root


def places(root: Path) -> list[str]:
    return sorted(str(file.relative_to(root)) for file in root.rglob("*.jpg"))


def truth(place: str) -> int:
    return FOLDERS.index(place.partition("/")[0])


def write(file: Path, labels: dict[str, str]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerows([("file_name", "label"), *labels.items()])


def divide(root: Path, **values: Any) -> tuple[Splits, list[str]]:
    given = {"source": "folder", "path": root, "test": 0.2, "val": 0.2, **values}
    data = DataSettings.model_validate(given)
    return preparation.divide(preparation.read(data), data, seed=0)


NOISY = {"labels": {"table": "labels.csv", "column": "label"}}


@pytest.mark.parametrize(("amount", "wanted"), [(0.25, 12), (9, 9)])
def test_drawn_images_keep_the_labels_of_their_folders(root: Path, amount: float, wanted: int) -> None:
    made, notes = divide(root, **NOISY, verified=amount)
    chosen = [image for image in made.train if image.verified]
    assert len(chosen) == made.verified == wanted
    assert np.bincount([int(image.label) for image in chosen]).tolist() == [wanted // 3] * 3  # type: ignore[arg-type]
    for image in made.train:
        right = image.label == truth(image.source)
        assert right == image.verified
    assert made.relabelled == len(made.train) - wanted
    assert any(f"{wanted} of {len(made.train)}" in note for note in notes)
    again, _ = divide(root, **NOISY, verified=amount)
    assert [image.verified for image in again.train] == [image.verified for image in made.train]


def test_a_table_gives_labels_that_take_precedence(root: Path) -> None:
    training = [image.source for image in divide(root)[0].train]
    write(root / "right.csv", dict.fromkeys(training[:5], "green"))
    made, _ = divide(root, **NOISY, verified={"table": "right.csv", "column": "label"})
    by_source = {image.source: image for image in made.train}
    assert [by_source[source].verified for source in training] == [True] * 5 + [False] * (len(training) - 5)
    assert {by_source[source].label for source in training[:5]} == {1}
    assert all(by_source[s].label == (truth(s) + 1) % 3 for s in training[5:])


def test_a_table_of_other_images_is_refused(root: Path) -> None:
    made, _ = divide(root)
    write(root / "tested.csv", {image.source: "red" for image in made.test})
    with pytest.raises(SourceError, match=r"data\.verified"):
        divide(root, verified={"table": "tested.csv", "column": "label"})
    with pytest.raises(SourceError, match=r"data\.verified\.table"):
        divide(root, verified={"table": "missing.csv", "column": "label"})
    with pytest.raises(SourceError, match=r"data\.verified"):
        divide(root, verified=1000)


def test_which_labels_are_verified_is_part_of_the_identity_of_the_data(root: Path) -> None:
    plain, verified = divide(root)[0], divide(root, verified=0.25)[0]
    assert [image.label for image in plain.train] == [image.label for image in verified.train]
    assert fingerprint(plain) != fingerprint(verified)


@pytest.fixture(scope="module")
def data(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    given = {"source": "folder", "path": root, "test": 0.2, "val": 0.2, **NOISY, "verified": 12}
    settings = DataSettings.model_validate(given)
    contents = preparation.read(settings)
    made, _ = preparation.divide(contents, settings, seed=0)
    report = writing.write(folder, contents, made, {"source": "folder", "path": "x", "license": "CC0-1.0"})
    assert report["verified"] == 12
    return folder


@pytest.fixture
def images(data: Path) -> ImageSet:
    return store.read_training_images(data)


def test_the_prepared_data_know_which_labels_are_verified(images: ImageSet, data: Path) -> None:
    assert len(images.verified) == 12
    right = [index for index, place in enumerate(images.sources) if images.labels[index] == truth(place)]
    assert images.verified.tolist() == right
    assert store.read(data, "val").verified.tolist() == []


def test_a_verified_image_is_mixed_with_verified_ones_only(images: ImageSet) -> None:
    view_set = ViewSet(images, SPACE, CONTRACT)
    others = set()
    for view in range(20):
        request = Request(images.verified, view, 32)
        labels = view_set[request].labels
        for index, shares in zip(images.verified.tolist(), labels, strict=True):
            mixture = views.draw_mixture(SPACE, int(images.keys[index]), view, len(images.verified))
            assert mixture is not None
            partner = int(images.verified[mixture.partner])
            wanted = np.zeros(3)
            wanted[images.labels[index]] += mixture.weight
            wanted[images.labels[partner]] += 1 - mixture.weight
            np.testing.assert_allclose(shares.numpy(), wanted, atol=1e-6)
            others.add(partner)
    assert others == set(images.verified.tolist())
    unverified = np.setdiff1d(np.arange(len(images)), images.verified)
    mixtures = view_set.mixtures(np.repeat(unverified, 20), np.tile(np.arange(20), len(unverified)))
    assert mixtures is not None
    assert np.isin(mixtures.partners, unverified).any(), "other images are mixed with any image"


class Recorder(nn.Module):
    """A classifier that keeps what it is shown while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(images.detach())
        return self.head(images.mean((2, 3)))


def test_a_training_on_verified_images_shows_all_of_them_and_no_other(
    images: ImageSet, data: Path, tmp_path: Path
) -> None:
    space = SPACE.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    train_set = ViewSet(images, space, CONTRACT)
    module = Recorder()
    objective = Objective(kl=0.0, cross_entropy=1.0)
    loop.train(
        compute.start(ComputeSettings(accelerator="cpu", threads=1)),
        module,
        loss_terms(objective, CONTRACT, images.task),
        objective.weights(),
        TrainingSettings(epochs=2.0, images="verified", batch_size=4, learning_rate=0.01),
        train_set=train_set,
        val_set=ViewSet(store.read(data, "val"), None, CONTRACT),
        views=None,
        seed=0,
        workers=0,
        run=Run("test", tmp_path, "test"),
    )
    seen = torch.cat(module.seen)
    assert len(seen) == 24
    for epoch in (0, 1):
        shown = {image.numpy().tobytes() for image in seen[12 * epoch : 12 * epoch + 12]}
        batch = train_set[Request(images.verified, epoch, 32)]
        assert shown == {image.numpy().tobytes() for image in CONTRACT.normalise(batch.images)}


@pytest.mark.parametrize(
    ("target", "teacher_score", "from_parent"),
    [("auto", 0.8, True), ("auto", 0.9, False), ("parent", 0.95, True), ("teacher", 0.8, False)],
)
def test_a_parent_that_has_passed_the_teacher_is_the_target(
    images: ImageSet,
    data: Path,
    target: Literal["auto", "teacher", "parent"],
    teacher_score: float,
    from_parent: bool,
) -> None:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    contract = replace(CONTRACT, size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    arguments: dict[str, Any] = {"classes": 3, "channels": (8,) * 14, "size": 64}
    torch.manual_seed(0)
    parent = students.build("mobilenet_v1", arguments).eval()
    nn.init.normal_(parent.get_parameter("classifier.bias"))
    stored = TrainingData(
        ViewSet(images, SPACE, contract),
        ViewSet(store.read(data, "val"), None, contract),
        views=2,
        data_sha256="",
        classes=FOLDERS,
        license="",
        teacher="",
        teacher_score=teacher_score,
        key="",
    )
    card = replace(tiny_students.card(arguments, contract, labels=FOLDERS), val={"top1": 0.9})
    made = training_data.with_target(fabric, stored, Model(parent, card), target)
    if not from_parent:
        assert made is stored
        return
    batch = made.train_set[Request([3, 30], 1, 64)]
    assert batch.for_teachers[0] is batch.images, "views of one size are rendered once"
    smaller = made.train_set[Request([3, 30], 1, 32)]
    assert [views.shape[1] for views in (smaller.images, *smaller.for_teachers)] == [32, 64]
    assert torch.equal(smaller.for_teachers[0], batch.images)
    terms = loss_terms(Objective(kl=1.0), contract, images.task, made.live)
    assert terms(parent, batch)["kl"].item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        parent.get_parameter("classifier.bias").mul_(-1)
    assert terms(parent, batch)["kl"].item() > 0.01, "the target stays as it was when the parent changes"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"distill": {"images": "verified"}}, "variants.fp32.images"),
        ({"variants": {"int8-qat": {"images": "verified"}}}, "variants.int8-qat.images"),
        ({"teacher": {"head": {"images": "verified"}}}, "teacher.head.images"),
        ({"data": {"verified": 0.1}}, "data.verified"),
    ],
)
def test_verified_images_that_nobody_named_are_asked_for(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ParameterError) as caught:
        checks.check(merge(composition.composed(), change), "params.yaml")
    assert key in str(caught.value)
    assert "data.verified" in str(caught.value)


def test_a_student_can_be_distilled_once_more(tmp_path: Path) -> None:
    values = composition.composed("config", ["variants=web"])
    folder = {"source": "folder", "path": str(tmp_path), "verified": 0.1}
    parameters = checks.check(merge(values, {"data": folder}), "params.yaml")
    assert parameters.variants["fp32"].parent == "pretrained"
    assert parameters.uncompressed == ["pretrained", "fp32"]
    last = {"variants": {"last": {"parent": "int8-ptq", "op": "distill"}}}
    with pytest.raises(ParameterError, match=r"variants\.last\.parent = 'int8-ptq': a quantised variant"):
        checks.check(merge(values, last | {"data": folder}), "params.yaml")
