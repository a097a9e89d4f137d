import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.models import storage
from pipeline.models.storage import Model
from pipeline.statistics import chance
from pipeline.tasks import SINGLE_LABEL
from pipeline.training import results
from pipeline.training.results import ChanceError
from pipeline.training.scoring import Score
from tests import tiny_students


def test_the_chance_of_an_accuracy_is_that_of_shuffled_images() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
    predictions = random.choice(4, 300, p=[0.7, 0.1, 0.1, 0.1])
    result = chance.of_classes(predictions, labels)
    shuffled = [float((random.permutation(predictions) == labels).mean()) for _ in range(20_000)]
    assert result.expected == pytest.approx(np.mean(shuffled), abs=0.001)
    assert result.deviation == pytest.approx(np.std(shuffled), rel=0.03)


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_independent_answers_seldom_exceed_chance(share: float) -> None:
    """One in a hundred does, at a confidence of 99 %; a skill of 5 % is found nearly always."""
    random = np.random.default_rng(1)
    exceeded = 0
    for _ in range(300):
        labels = random.integers(0, 10, 2000)
        predictions = np.where(random.random(2000) < share, labels, random.integers(0, 10, 2000))
        exceeded += chance.of_classes(predictions, labels).is_exceeded
    assert exceeded <= 10 if not share else exceeded >= 290


def test_a_constant_answer_is_at_chance_however_frequent_its_class() -> None:
    assert not chance.of_classes(np.zeros(2, int), np.array([0, 1])).is_reached
    assert chance.of_classes(np.zeros(12, int), np.arange(12) % 3).is_reached
    labels = np.array([0] * 900 + [1] * 100)
    result = chance.of_classes(np.zeros(1000, int), labels)
    assert result.score == result.expected == 0.9
    assert result.deviation == 0
    assert result.is_reached


def test_few_images_do_not_show_that_a_classifier_is_at_chance() -> None:
    """5 of 12 right in three classes may be skill or chance: it is neither accepted nor called at chance."""
    labels = np.arange(12) % 3
    predictions = np.where(np.arange(12) < 5, labels, (labels + 1) % 3)
    result = chance.of_classes(predictions, labels)
    assert not result.is_exceeded
    assert not result.is_reached
    assert chance.of_classes(labels, labels).is_exceeded


def test_attributes_at_chance_are_told_from_learned_ones() -> None:
    random = np.random.default_rng(2)
    targets = (random.random((2000, 3)) < [0.5, 0.2, 0.05]).astype(np.float32)
    noise = random.normal(size=targets.shape)
    assert chance.of_attributes(noise, targets).is_reached
    assert chance.of_attributes(noise + 0.5 * targets, targets).is_exceeded


@pytest.mark.parametrize(("right", "at_chance"), [(0.25, True), (0.5, False)])
def test_a_student_at_chance_is_named_and_is_not_a_parent(
    right: float, at_chance: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.arange(1000) % 4
    predictions = np.where(labels < 4 * right, labels, 0)
    score = Score(SINGLE_LABEL, predictions, 1000, float((predictions == labels).mean()), 1.4, labels)
    model = tiny_students.student()
    card = replace(model.card, val=results.describe(score), settings={"learning_rate": 100.0})
    folder = tmp_path / "model"
    results.save(
        Model(model.module, card),
        [],
        folder=folder,
        timings=lambda history: tmp_path / history,
        run=tmp_path / "run",
    )
    parent = storage.load(folder).card
    if at_chance:
        assert re.search(r"tiny is at chance.* learning_rate below 100", capsys.readouterr().err)
        with pytest.raises(ChanceError, match="tiny"):
            results.check_parent(parent)
    else:
        assert not capsys.readouterr().err
        results.check_parent(parent)


def test_few_images_of_a_rare_class_do_not_show_that_a_constant_answer_is_at_chance() -> None:
    """Whoever finds half of a rare class misses six images in a row in one of 64 cases."""
    rare = np.repeat([0, 1], [300, 6])
    assert not chance.of_classes(np.zeros(306, int), rare).is_reached
    assert chance.of_classes(np.zeros(307, int), np.append(rare, 1)).is_reached


@pytest.mark.parametrize(("classes", "images"), [(2, 10), (2, 60), (3, 14), (3, 30), (5, 60), (10, 1000)])
def test_answers_that_are_never_right_are_below_chance(classes: int, images: int) -> None:
    labels = np.arange(images) % classes
    others = np.random.default_rng(0).integers(1, classes, images)
    result = chance.of_classes((labels + others) % classes, labels)
    assert result.is_missed
    assert result.is_reached
    assert not result.is_exceeded


def test_few_wrong_answers_and_independent_ones_are_not_below_chance() -> None:
    """One in a hundred independent classifiers is, at a confidence of 99 %."""
    for images in (2, 4, 6):
        labels = np.arange(images) % 2
        assert not chance.of_classes(1 - labels, labels).is_missed
    random = np.random.default_rng(3)
    sizes = random.integers(8, 200, 200)
    missed = sum(
        chance.of_classes(random.integers(0, 3, size), random.integers(0, 3, size)).is_missed
        for size in sizes
    )
    assert missed <= 6


def test_attributes_the_wrong_way_round_are_below_chance() -> None:
    random = np.random.default_rng(2)
    targets = (random.random((300, 3)) < [0.5, 0.3, 0.2]).astype(np.float32)
    scores = random.normal(size=targets.shape) + 3 * targets
    assert chance.of_attributes(-scores, targets).is_missed
    assert not chance.of_attributes(scores, targets).is_missed


def test_images_of_one_class_do_not_show_chance() -> None:
    predictions = np.repeat([0, 1], [90, 10])
    assert not chance.of_classes(predictions, np.zeros(100, int)).is_reached


def test_chance_is_the_same_in_blocks_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    predictions, labels = random.integers(0, 30, (2, 500))
    whole = chance.of_classes(predictions, labels)
    monkeypatch.setattr(chance, "BLOCK", 100)
    assert chance.of_classes(predictions, labels).deviation == pytest.approx(whole.deviation, rel=1e-12)
