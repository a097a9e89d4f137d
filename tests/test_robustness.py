import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import students
from pipeline.inspection import corruptions, robustness
from pipeline.models.storage import Card, Model
from pipeline.onnx import inference
from pipeline.onnx.inference import Classifier
from teachers.contract import InputContract
from tests import tiny_onnx

SIZE = 32


@pytest.fixture
def classifiers(tmp_path: Path) -> dict[str, Classifier]:
    """A file that recognises the colour, and a child of it that always answers red."""
    red = np.zeros((3, 3), dtype=np.float32)
    red[:, 0] = 1
    files = {
        "fp32": tiny_onnx.write(tmp_path / "fp32.onnx", size=SIZE),
        "blind": tiny_onnx.write(tmp_path / "blind.onnx", size=SIZE, weights=red),
    }
    return {name: inference.open_classifier(file, threads=1) for name, file in files.items()}


def colours(images: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(images) % 3
    pixels = np.full((images, SIZE, SIZE, 3), 60, np.uint8)
    pixels[np.arange(images), :, :, labels] = 190
    return pixels, labels


def test_logits_come_set_by_set_in_the_order_of_the_images(classifiers: dict[str, Classifier]) -> None:
    images, labels = colours(70)  # more than one batch
    sets = [images, images[::-1]]
    first, second = robustness.compute_logits(classifiers, sets)
    assert first["fp32"].argmax(axis=1).tolist() == labels.tolist()
    assert second["fp32"].argmax(axis=1).tolist() == labels[::-1].tolist()
    assert set(first["blind"].argmax(axis=1)) == {0}


def test_corrupted_accuracy_is_given_by_kind_and_severity_and_against_the_parent(
    classifiers: dict[str, Classifier],
) -> None:
    images, labels = colours(12)
    parents = {"fp32": "teacher", "blind": "fp32"}
    scores = robustness.score_corrupted(classifiers, images, labels, list(range(12)))
    result = robustness.combine([{"corruptions": scores}], parents)
    variants = json.loads(json.dumps(result))["corruptions"]["variants"]
    sighted, blind = variants["fp32"], variants["blind"]
    assert list(sighted["table"]) == list(corruptions.KINDS)
    assert all([cell["severity"] for cell in row] == [1, 2, 3, 4, 5] for row in sighted["table"].values())
    assert sighted["clean"] == 1
    assert blind["clean"] == blind["mean"] == pytest.approx(1 / 3)
    assert sighted["mean"] > 0.8
    cells = [cell["accuracy"] for row in sighted["table"].values() for cell in row]
    assert sighted["mean"] == pytest.approx(np.mean(cells))
    assert sighted["delta"] is None
    assert blind["delta"] == pytest.approx(1 / 3 - sighted["mean"])
    assert blind["delta_lo"] < blind["delta"] < blind["delta_hi"] < 0


def test_auroc_agrees_with_scikit_learn_with_ties_too() -> None:
    random = np.random.default_rng(0)
    positives, negatives = random.normal(1, 1, 400).round(1), random.normal(0, 1, 90).round(1)
    area, lo, hi = robustness.auroc(positives, negatives)
    truth = np.concatenate([np.ones(400), np.zeros(90)])
    assert area == pytest.approx(roc_auc_score(truth, np.concatenate([positives, negatives])))
    assert lo < area < hi


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_few_images_that_are_told_apart_leave_a_wide_interval(count: int) -> None:
    area, lo, hi = robustness.auroc(np.ones(count), np.zeros(count))
    assert (area, hi) == (1, 1)
    assert lo < 0.6


def test_the_interval_of_the_auroc_covers_the_truth() -> None:
    random, hits = np.random.default_rng(0), 0
    for _ in range(300):
        area, lo, hi = robustness.auroc(random.normal(1, 1, 100), random.normal(0, 1, 60))
        hits += lo <= 0.7602 <= hi  # the normal distribution function at 1 / sqrt(2)
        assert 0 <= lo <= area <= hi <= 1
    assert hits >= 275


def test_images_of_doubtful_colour_are_separated_from_test_images(
    classifiers: dict[str, Classifier],
) -> None:
    grey = np.full((40, SIZE, SIZE, 3), 100, np.uint8)
    sure = np.full(100, 0.99, dtype=np.float32)
    result = robustness.score_out_of_distribution(
        classifiers, {"grey": grey}, dict.fromkeys(classifiers, sure)
    )
    scores = result["sets"]["grey"]["variants"]["fp32"]
    assert scores["confidence"] == pytest.approx(1 / 3, rel=1e-5)
    assert (scores["auroc"], scores["over_90"]) == (1, 0)
    assert result["test"]["fp32"] == {"n": 100, "confidence": pytest.approx(0.99), "over_90": 1}


def test_a_new_variant_measured_alone_gives_the_result_of_all_measured_together(
    classifiers: dict[str, Classifier],
) -> None:
    images, labels = colours(12)
    seeds, sure = list(range(12)), np.linspace(0.5, 1, 30, dtype=np.float32)
    module = Model(students.build("mobilenet_v1", {"classes": 3, "channels": (8,) * 14}).eval(), card())
    parents = {"fp32": "teacher", "blind": "fp32"}

    def measure(*names: str) -> dict[str, Any]:
        files = {name: classifiers[name] for name in names}
        attacked = robustness.score_attacked(
            files, {"fp32": module}, {"fp32": names}, images, labels, radii=[4, 1], steps=2, seed=0
        )
        return {
            "corruptions": robustness.score_corrupted(files, images, labels, seeds),
            "adversarial": attacked,
            "out_of_distribution": robustness.score_out_of_distribution(
                files, {"noise": images[::-1].copy()}, dict.fromkeys(names, sure)
            ),
        }

    together = json.dumps(robustness.combine([measure("fp32", "blind")], parents))
    alone = json.loads(json.dumps(robustness.combine([measure("fp32")], {"fp32": "teacher"})))
    assert json.dumps(robustness.combine([measure("blind"), alone], parents)) == together
    # Whoever is removed leaves the others as they were.
    both = json.loads(together)
    assert json.dumps(robustness.combine([both], {"fp32": "teacher"})) == json.dumps(alone)


def card() -> Card:
    return Card(
        variant="fp32",
        parent="teacher",
        op="distill",
        architecture="mobilenet_v1",
        arguments={},
        input=InputContract(SIZE),
        labels=("red", "green", "blue"),
        teacher="none",
        data_sha256="0",
        license="MIT",
        settings={},
    )
