import json
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation import comparison, confidence
from pipeline.evaluation.comparison import ClassifierOutput
from pipeline.evaluation.settings import StepLimits

NAMES = ("red", "green", "blue")


def predictions(images: int, share: float, seed: int) -> np.ndarray:
    """Predictions of ``labels(images)`` of which about ``share`` are right, the others one class too high."""
    wrong = np.random.default_rng(seed).random(images) >= share
    return (labels(images) + wrong) % 3


def labels(images: int) -> np.ndarray:
    return np.arange(images) % 3


def compare(
    variant: ClassifierOutput, parent: ClassifierOutput, truth: np.ndarray, max_drop: float = 0.03
) -> dict[str, Any]:
    return comparison.compare_with_parent(
        variant,
        parent,
        truth,
        NAMES,
        parent_name="fp32",
        limits=StepLimits(max_drop=max_drop, max_class_drop=1.0),
    )


def compare_predictions(variant: np.ndarray, parent: np.ndarray) -> dict[str, Any]:
    return compare(ClassifierOutput(variant), ClassifierOutput(parent), labels(len(variant)))


def test_a_file_against_itself_is_not_distinguishable_and_accepted() -> None:
    own = predictions(4000, 0.9, 0)
    result = compare_predictions(own, own)
    assert not result["distinguishable"]
    assert (result["delta"], result["mcnemar_p"], result["verdict"]) == (0, 1, "accept")
    assert result["flips"] == {"gained": 0, "lost": 0, "changed": 0, "agreement": 1}
    assert result["classes_worse"] == result["classes_better"] == []


def test_a_loss_is_rejected_and_the_reason_holds_it() -> None:
    result = compare_predictions(predictions(4000, 0.8, 1), predictions(4000, 0.9, 2))
    assert (result["verdict"], result["distinguishable"]) == ("reject", True)
    assert f"{-100 * result['delta']:.2f} points below fp32" in result["reason"]
    assert set(result["classes_worse"]) == set(NAMES)


def test_a_loss_that_may_exceed_the_limit_is_rejected() -> None:
    own = labels(400)
    own[:8] = (own[:8] + 1) % 3
    result = compare_predictions(own, labels(400))
    assert result["delta"] == -0.02
    assert result["lo"] < -0.03 < result["hi"]
    assert result["verdict"] == "reject"


def test_flips_are_counted_in_both_directions_and_between_wrong_answers() -> None:
    truth = np.array([0, 1, 2, 0, 1, 2])
    own, parent = np.array([0, 1, 0, 1, 2, 2]), np.array([0, 2, 2, 2, 2, 2])
    result = compare(ClassifierOutput(own), ClassifierOutput(parent), truth)
    assert result["flips"] == {"gained": 1, "lost": 1, "changed": 3, "agreement": 0.5}


def test_only_the_class_that_was_damaged_is_named() -> None:
    parent = predictions(6000, 0.95, 3)
    own, truth = parent.copy(), labels(6000)
    own[np.flatnonzero(truth == 1)[:150]] = 0
    result = compare_predictions(own, parent)
    assert result["classes_worse"] == ["green"]
    by_name = {line["label"]: line for line in result["classes"]}
    assert by_name["green"]["hi"] < 0
    assert by_name["red"]["delta"] == 0
    assert all(line["p_holm"] >= line["p"] for line in result["classes"])


def test_many_classes_raise_no_more_false_alarms_than_one() -> None:
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        truth = np.repeat(np.arange(20), 60)
        own, parent = (np.where(random.random(1200) < 0.8, truth, -1) for _ in range(2))
        groups = {str(index): truth == index for index in range(20)}
        result = comparison.compare_groups(own, parent, truth, groups)
        alarms += any(line["worse"] or line["better"] for line in result.values())
    assert alarms <= 20  # 10 would be the level; of 200 experiments, 97.5 % have no more than 16


def test_drift_is_measured_where_both_have_probabilities() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (300, 3)).astype(np.float32)
    own, parent = (
        ClassifierOutput(one.predictions, one)
        for scale in (np.float32(1.5), np.float32(1))
        for one in [confidence.from_logits(scale * logits, labels(300))]
    )
    result = compare(own, parent, labels(300))
    assert result["calibration"]["confidence_delta"] > 0
    assert json.loads(json.dumps(result)) == result
    without = compare(own, ClassifierOutput(parent.predictions), labels(300))
    assert without["calibration"] is None


def test_attributes_are_compared_by_average_precision() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((500, 3)) < 0.3).astype(np.float32)
    parent = targets + random.normal(0, 0.7, targets.shape)
    own = parent.copy()
    own[:, 1] += random.normal(0, 2, 500)
    result = compare(ClassifierOutput(own), ClassifierOutput(parent), targets, max_drop=0.01)
    assert result["classes_worse"] == ["green"]
    assert (result["verdict"], result["flips"], result["mcnemar_p"]) == ("reject", None, None)


def test_predictions_for_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="got 10, 9 of the parent, and 9 labels"):
        compare(ClassifierOutput(labels(10)), ClassifierOutput(labels(9)), labels(9))


def test_the_reference_does_not_differ_from_itself_and_others_differ_as_from_a_parent() -> None:
    worse, reference = (ClassifierOutput(predictions(4000, share, 0)) for share in (0.8, 0.9))
    truth = labels(4000)
    own = comparison.compare_with_reference(reference, reference, truth)
    assert own == {"delta": 0.0, "lo": 0.0, "hi": 0.0, "distinguishable": False}
    other, parent = (
        comparison.compare_with_reference(worse, reference, truth),
        compare(worse, reference, truth),
    )
    assert other == {key: parent[key] for key in other}
    assert other["distinguishable"]
