"""Teachers at chance, with logits in another order, or the wrong way round are noticed on val."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.data.arrow import Rows
from pipeline.data.store import ImageSet
from pipeline.distillation import doubts
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL
from teachers.errors import TeacherError

NUMBERS = ["1", "10", *map(str, range(2, 10))]
"""Ten numbered classes in the order of the data, which is that of their texts."""


def val(labels: np.ndarray, classes: Sequence[str]) -> ImageSet:
    """A split whose images nobody looks at."""
    sources = [f"photo {index}.png" for index in range(len(labels))]
    table = Rows(pa.table({"label": labels.tolist(), "source": sources}))
    return ImageSet(table, tuple(classes), SINGLE_LABEL if labels.ndim == 1 else MULTI_LABEL)


def balanced(classes: int, images: int) -> np.ndarray:
    return np.arange(images) % classes


def classifier(labels: np.ndarray, classes: int, accuracy: float, seed: int = 0) -> torch.Tensor:
    """Logits that are right for a share of the images, and random for the others."""
    random = np.random.default_rng(seed)
    guesses = random.integers(0, classes, len(labels))
    answers = np.where(random.random(len(labels)) < accuracy, labels, guesses)
    return torch.from_numpy(random.normal(0, 0.1, (len(labels), classes)) + 4 * np.eye(classes)[answers])


def tagger(targets: np.ndarray, noise: float, seed: int = 0) -> torch.Tensor:
    """Log-odds of attributes with some noise."""
    return torch.from_numpy(4 * targets - 2 + np.random.default_rng(seed).normal(0, noise, targets.shape))


def attributes(images: int = 300, count: int = 6) -> np.ndarray:
    shares = np.linspace(0.1, 0.6, count)
    return (np.random.default_rng(1).random((images, count)) < shares).astype(np.float32)


@pytest.mark.parametrize(
    ("classes", "images", "accuracy"),
    [(10, 100, 0.5), (10, 2000, 0.2), (2, 60, 0.8), (3, 9, 1.0), (40, 80, 0.9)],
)
def test_a_teacher_that_knows_something_raises_no_doubt(classes: int, images: int, accuracy: float) -> None:
    labels = balanced(classes, images)
    names = [f"class {index:02}" for index in range(classes)]
    for seed in range(5):
        assert doubts.find(classifier(labels, classes, accuracy, seed), val(labels, names)) == []


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_teacher_that_ignores_the_images_is_at_chance(share: float) -> None:
    random = np.random.default_rng(0)
    labels = (random.random(400) > share).astype(int)
    always_first = torch.tensor([[1.0, 0.0]]).repeat(400, 1)
    as_frequent = torch.from_numpy(np.eye(2)[random.permutation(labels)])
    for logits in (always_first, as_frequent):
        assert len(doubts.find(logits, val(labels, "ab"))) == 1


def test_too_few_images_raise_no_doubt() -> None:
    labels = np.array([0, 1])
    assert doubts.find(classifier(labels, 2, 0.0), val(labels, "ab")) == []


def test_random_teachers_have_no_better_order() -> None:
    labels = balanced(10, 200)
    for seed in range(20):
        assert doubts._better_order(classifier(labels, 10, 0.0, seed).argmax(1).numpy(), labels, 10) is None


@pytest.mark.parametrize("accuracy", [1.0, 0.6])
def test_natural_order_taken_for_text_order_is_named_with_the_key_to_set(accuracy: float) -> None:
    labels = balanced(10, 200)
    natural = sorted(NUMBERS, key=int)
    right = classifier(labels, 10, accuracy)
    logits = right[:, [NUMBERS.index(name) for name in natural]]
    order, *others = doubts.find(logits, val(labels, NUMBERS))
    assert "natural" in order
    assert "teacher.labels" in order
    assert len(others) <= 1


def test_two_logits_that_changed_places_are_named() -> None:
    labels = balanced(10, 400)
    logits = classifier(labels, 10, 0.9)[:, [0, 1, 2, 7, 4, 5, 6, 3, 8, 9]]
    (doubt,) = doubts.find(logits, val(labels, list("abcdefghij")))
    assert "'d'" in doubt
    assert "'h'" in doubt
    assert "'b'" not in doubt.split("perhaps")[0]


def test_classes_that_are_often_confused_do_not_look_like_another_order() -> None:
    random = np.random.default_rng(0)
    labels = balanced(4, 400)
    answers = labels.copy()
    confused = (labels == 0) & (random.random(400) < 0.6)
    answers[confused] = 1
    answers[(labels == 1) & (random.random(400) < 0.5)] = 0
    assert doubts.find(torch.from_numpy(np.eye(4)[answers]), val(labels, "abcd")) == []


def test_a_good_tagger_raises_no_doubt() -> None:
    targets = attributes()
    for seed, noise in enumerate((0.5, 3.0, 6.0)):
        assert doubts.find(tagger(targets, noise, seed), val(targets, "uvwxyz")) == []


def test_attributes_at_chance_in_another_order_or_the_wrong_way_round_are_noticed() -> None:
    targets = attributes()
    images = val(targets, "uvwxyz")
    good = tagger(targets, 2.0)
    (chance,) = doubts.find(good[torch.randperm(300, generator=torch.Generator().manual_seed(0))], images)
    assert "chance" in chance
    turned = good.clone()
    turned[:, 2] *= -1
    (wrong_way,) = doubts.find(turned, images)
    assert "'w'" in wrong_way
    (order,) = doubts.find(good[:, [1, 0, 2, 3, 4, 5]], images)
    assert "'u'" in order
    assert "teacher.labels" in order


def test_doubts_end_the_run_unless_they_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    labels = balanced(2, 100)
    bad = classifier(labels, 2, 0.0)
    with pytest.raises(TeacherError, match=r"(?s)^teacher: x: .*teacher\.doubtful"):
        doubts.check(bad, val(labels, "ab"), "teacher: x", accept=False)
    doubts.check(bad, val(labels, "ab"), "teacher: x", accept=True)
    assert capsys.readouterr().err.startswith("warning: teacher: x: ")
    doubts.check(classifier(labels, 2, 1.0), val(labels, "ab"), "teacher: x", accept=False)


@pytest.mark.parametrize(("classes", "images"), [(2, 60), (3, 14), (3, 30)])
def test_answers_of_the_wrong_sign_end_the_run(classes: int, images: int) -> None:
    labels = balanced(classes, images)
    wrong = -classifier(labels, classes, 1.0)
    with pytest.raises(TeacherError, match=r"^teacher: x: .*teacher\.doubtful") as error:
        doubts.check(wrong, val(labels, "abc"[:classes]), "teacher: x", accept=False)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(TeacherError, match="below chance"):
        doubts.check_views(
            wrong.argmax(1).numpy(), val(labels, "abc"[:classes]), "x", {"n": 9, "top1": 1.0}, accept=False
        )


def test_a_score_at_chance_on_the_first_views_ends_the_run_unless_it_is_accepted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = balanced(3, 300)
    labels[::4] = -1  # without a label
    images, before = val(labels, "abc"), {"n": 20, "top1": 0.95}
    bad, good = (classifier(labels, 3, skill).argmax(1).numpy() for skill in (0.0, 1.0))
    with pytest.raises(TeacherError, match=r"^x: .* 225 .* 95\.0% on the 20 .*teacher\.doubtful"):
        doubts.check_views(bad, images, "x", before, accept=False)
    doubts.check_views(good, images, "x", before, accept=False)
    assert capsys.readouterr().err == ""
    doubts.check_views(bad, images, "x", before, accept=True)
    assert capsys.readouterr().err.startswith("warning: x: ")
    doubts.check_views(bad, val(0 * labels - 1, "abc"), "x", before, accept=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_name_their_images(value: float) -> None:
    labels = balanced(2, 10)
    logits = classifier(labels, 2, 1.0)
    logits[4, 1] = value
    with pytest.raises(TeacherError, match=r"1 of 10 images of val .* photo 4\.png;"):
        doubts.check_finite(logits, val(labels, "ab"), "val", "x")
