import json

import numpy as np
import pytest

from pipeline.evaluation import comparison, confidence
from pipeline.evaluation.comparison import Answers
from pipeline.statistics import intervals

NAMES = ("red", "green", "blue")


def answers(images: int, share: float, seed: int) -> np.ndarray:
    """Answers to ``labels(images)`` of which about ``share`` are right, the others one class too high."""
    wrong = np.random.default_rng(seed).random(images) >= share
    return (labels(images) + wrong) % 3


def labels(images: int) -> np.ndarray:
    return np.arange(images) % 3


def compared(own: np.ndarray, parent: np.ndarray, max_drop: float = 0.03) -> dict:
    return comparison.against_parent(Answers(own), Answers(parent), labels(len(own)), NAMES, max_drop)


def test_a_file_against_itself_is_not_distinguishable_and_accepted() -> None:
    own = answers(4000, 0.9, 0)
    found = compared(own, own)
    assert not found["distinguishable"]
    assert (found["delta"], found["mcnemar_p"], found["verdict"]) == (0, 1, "accept")
    assert found["flips"] == {"gained": 0, "lost": 0, "changed": 0, "agreement": 1}
    assert found["classes_worse"] == found["classes_better"] == []


def test_false_alarms_between_equally_good_files_keep_the_nominal_level() -> None:
    """1,000 repeats: each file is right on its own random 90 %, so whatever is found is chance."""
    random, truth = np.random.default_rng(0), np.ones(500, dtype=bool)
    right = random.random((1000, 2, 500)) < 0.9
    found = [intervals.compare(new & truth, old & truth) for new, old in right]
    alarms = sum(difference.distinguishable for difference in found)
    assert 30 <= alarms <= 70  # 50 are expected, 99.6 % of all experiments lie between
    assert sum((difference.mcnemar_p or 0) < 0.05 for difference in found) <= alarms


def test_a_loss_is_rejected_with_its_reason_in_numbers() -> None:
    found = compared(answers(4000, 0.8, 1), answers(4000, 0.9, 2))
    assert (found["verdict"], found["distinguishable"]) == ("reject", True)
    assert "all of the interval lies below the limit of -3.00" in found["reason"]
    assert f"{100 * found['delta']:+.2f} points" in found["reason"]
    assert set(found["classes_worse"]) == set(NAMES)


def test_a_loss_that_may_be_too_great_says_so() -> None:
    own = labels(400)
    own[:8] = (own[:8] + 1) % 3
    found = compared(own, labels(400))
    assert found["delta"] == -0.02
    assert found["verdict"] == "reject"
    assert "may be greater than is tolerated" in found["reason"]


def test_flips_are_counted_in_both_directions_and_between_wrong_answers() -> None:
    truth = np.array([0, 1, 2, 0, 1, 2])
    own, parent = np.array([0, 1, 0, 1, 2, 2]), np.array([0, 2, 2, 2, 2, 2])
    found = comparison.against_parent(Answers(own), Answers(parent), truth, NAMES, 0.03)
    assert found["flips"] == {"gained": 1, "lost": 1, "changed": 3, "agreement": 0.5}


def test_only_the_class_that_was_damaged_is_named() -> None:
    parent = answers(6000, 0.95, 3)
    own, truth = parent.copy(), labels(6000)
    own[np.flatnonzero(truth == 1)[:150]] = 0
    found = compared(own, parent)
    assert found["classes_worse"] == ["green"]
    by_name = {line["label"]: line for line in found["classes"]}
    assert by_name["green"]["hi"] < 0
    assert by_name["red"]["delta"] == 0
    assert all(line["p_holm"] >= line["p"] for line in found["classes"])


def test_many_classes_raise_no_more_false_alarms_than_one() -> None:
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        truth = np.repeat(np.arange(20), 60)
        own, parent = (np.where(random.random(1200) < 0.8, truth, -1) for _ in range(2))
        groups = {str(index): truth == index for index in range(20)}
        found = comparison.paired(own, parent, truth, groups)
        alarms += any(line["worse"] or line["better"] for line in found.values())
    assert alarms <= 20  # 10 would be the level; of 200 experiments, 97.5 % have no more than 16


def test_drift_is_told_where_both_have_probabilities() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (300, 3)).astype(np.float32)
    kept = [confidence.of(scale * logits, labels(300)) for scale in (np.float32(1.5), np.float32(1))]
    own, parent = (Answers(one.predictions, one) for one in kept)
    told = comparison.against_parent(own, parent, labels(300), NAMES, 0.03)
    assert told["calibration"]["confidence_delta"] > 0
    silent = comparison.against_parent(own, Answers(parent.predictions), labels(300), NAMES, 0.03)
    assert silent["calibration"] is None
    json.dumps(told)


def test_attributes_are_compared_by_average_precision() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((500, 3)) < 0.3).astype(np.float32)
    parent = targets + random.normal(0, 0.7, targets.shape)
    own = parent.copy()
    own[:, 1] += random.normal(0, 2, 500)
    found = comparison.against_parent(Answers(own), Answers(parent), targets, NAMES, 0.01)
    assert found["classes_worse"] == ["green"]
    assert (found["verdict"], found["flips"], found["mcnemar_p"]) == ("reject", None, None)
    assert found["reason"].startswith("mAP ")


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        comparison.against_parent(Answers(labels(10)), Answers(labels(9)), labels(10)[:9], NAMES, 0.03)
