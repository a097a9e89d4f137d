from typing import Any

import numpy as np
import pytest

from pipeline.evaluation import gate
from pipeline.evaluation.gate import Difference
from pipeline.evaluation.settings import StepLimits
from pipeline.statistics.chance import Chance

ABOVE = Chance(score=0.9, expected=0.1, deviation=0.001, reference=0.001)


def limits(max_drop: float, max_class_drop: float = 0.03) -> StepLimits:
    return StepLimits(max_drop=max_drop, max_class_drop=max_class_drop)


def test_compare_counts_the_images_that_only_one_gets_right() -> None:
    variant = np.array([True, True, True, False, False])
    parent = np.array([True, False, False, True, False])
    difference = gate.compare(variant, parent)
    assert difference.images == 5
    assert difference.mcnemar_p == 1.0
    assert difference.delta == pytest.approx(0.2)
    assert difference.lo < difference.delta < difference.hi


def test_compare_refuses_an_empty_test_set() -> None:
    with pytest.raises(ValueError, match="same images; got 0 and 0"):
        gate.compare(np.ones(0, dtype=bool), np.ones(0, dtype=bool))


def test_false_alarms_between_equally_good_files_keep_the_nominal_level() -> None:
    """1,000 repeats: each file is right on its own random 90 %, so every difference is chance."""
    random = np.random.default_rng(0)
    correct = random.random((1000, 2, 500)) < 0.9
    differences = [gate.compare(variant, parent) for variant, parent in correct]
    alarms = sum(difference.distinguishable for difference in differences)
    assert 30 <= alarms <= 70  # 50 are expected, 99.6 % of all experiments lie between
    assert sum((difference.mcnemar_p or 0) < 0.05 for difference in differences) <= alarms


def test_mean_average_precisions_are_compared_on_the_same_samples() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((500, 3)) < 0.3).astype(np.float32)
    parent = targets + random.normal(0, 0.7, targets.shape)
    difference = gate.compare_map(parent + random.normal(0, 0.1, targets.shape), parent, targets)
    assert difference.lo < difference.delta < difference.hi
    assert difference.mcnemar_p is None
    same = gate.compare_map(parent, parent, targets)
    assert (same.delta, same.lo, same.hi) == (0, 0, 0)


def test_a_few_images_that_two_classifiers_rank_alike_do_not_prove_that_they_are_equal() -> None:
    targets = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=np.float32)
    difference = gate.compare_map(targets + 0.1, targets, targets)
    assert difference.delta == 0
    assert difference.lo < -0.4
    assert difference.hi > 0.4


def test_an_attribute_of_one_image_is_compared_on_the_samples_that_hold_it() -> None:
    targets = np.zeros((40, 1))
    targets[7] = 1
    scores = np.linspace(0, 1, 40)[:, None]
    difference = gate.compare_map(scores, 1 - scores, targets)
    assert difference.lo <= difference.delta <= difference.hi


def test_a_loss_within_the_limit_is_rejected_while_the_test_set_is_too_small_to_show_it() -> None:
    verdicts = []
    for images in (100, 10_000):
        variant, parent = np.zeros(images, dtype=bool), np.zeros(images, dtype=bool)
        parent[: images // 20] = True
        variant[images // 100 : images // 20] = True
        difference = gate.compare(variant, parent)
        assert difference.delta == pytest.approx(-0.01)
        verdicts.append(gate.verdict(difference, limits(0.02), ABOVE))
    assert verdicts == ["reject", "accept"]


@pytest.mark.parametrize(
    ("delta", "lo", "hi", "sentence"),
    [
        (
            -0.0053,
            -0.0083,
            -0.0024,
            "Accepted: 0.53 points below fp32 (95 % CI -0.83 to -0.24); up to 4 are allowed.",
        ),
        (
            -0.001,
            -0.004,
            0.002,
            "Accepted: 0.10 points below fp32 (95 % CI -0.40 to +0.20); up to 4 are allowed.",
        ),
        (
            0.003,
            -0.0003,
            0.0062,
            "Accepted: 0.30 points above fp32 (95 % CI -0.03 to +0.62); a loss of up to 4 is allowed.",
        ),
        (
            -0.1,
            -0.12,
            -0.08,
            "Rejected: 10.00 points below fp32 (95 % CI -12.00 to -8.00); up to 4 are allowed.",
        ),
        (
            -0.03,
            -0.05,
            -0.01,
            "Rejected: 3.00 points below fp32 (95 % CI -5.00 to -1.00); up to 4 are allowed, "
            "and 10,000 test images do not exclude a greater loss.",
        ),
    ],
)
def test_the_explanation_holds_the_loss_its_interval_and_the_limit(
    delta: float, lo: float, hi: float, sentence: str
) -> None:
    assert gate.explain(Difference(10_000, delta, lo, hi, None), limits(0.04), "fp32", ABOVE) == sentence


def test_a_variant_at_chance_is_rejected_even_if_it_loses_nothing() -> None:
    equal = Difference(1000, 0.0, -0.001, 0.001, 1.0)
    chance = Chance(score=0.11, expected=0.1, deviation=0.0095, reference=0.0095)
    assert gate.verdict(equal, limits(0.04), ABOVE) == "accept"
    assert gate.verdict(equal, limits(0.04), chance) == "reject"
    sentence = gate.explain(equal, limits(0.04), "fp32", chance)
    assert "11.0%" in sentence
    assert "10.0%" in sentence


@pytest.mark.parametrize(
    ("shirt", "worse", "verdict"),
    [(-0.056, True, "reject"), (-0.056, False, "accept"), (-0.02, True, "accept"), (0.01, False, "accept")],
)
def test_a_class_whose_loss_is_shown_and_beyond_its_limit_rejects_a_variant(
    shirt: float, worse: bool, verdict: str
) -> None:
    small = Difference(10_000, -0.005, -0.008, -0.002, None)
    classes = [
        {"label": "Bag", "delta": 0.0, "worse": False},
        {"label": "Shirt", "delta": shirt, "worse": worse},
    ]
    assert gate.verdict(small, limits(0.01), ABOVE, classes) == verdict
    sentence = gate.explain(small, limits(0.01), "fp32", ABOVE, classes)
    assert sentence.startswith(f"{verdict.capitalize()}ed: 0.50 points below fp32")
    assert ("'Shirt' loses" in sentence) == worse


@pytest.mark.parametrize(("max_drop", "images"), [(0.01, 381), (0.02, 189), (0.04, 93)])
def test_a_variant_that_changes_no_answer_is_accepted_from_the_number_of_images_that_is_named(
    max_drop: float, images: int
) -> None:
    verdicts, named = [], []
    for count in (120, images - 1, images):
        correct = np.arange(count) % 10 > 0
        difference = gate.compare(correct, correct)
        verdicts.append(gate.verdict(difference, limits(max_drop), ABOVE))
        named.append(gate.images_needed(difference, limits(max_drop), ABOVE))
    assert verdicts[1:] == ["reject", "accept"]
    assert named[1:] == [images, None]
    small = gate.compare(np.ones(60, dtype=bool), np.ones(60, dtype=bool))
    sentence = gate.explain(small, limits(max_drop), "fp32", ABOVE)
    assert "60 test images" in sentence
    assert f"about {images} would" in sentence


def test_more_images_are_named_only_where_they_help() -> None:
    def needed(gained: int, lost: int, classes: list[dict[str, Any]] | None = None, at: Chance = ABOVE):
        parent, variant = np.zeros(200, dtype=bool), np.zeros(200, dtype=bool)
        parent[:lost], variant[lost : lost + gained] = True, True
        return gate.images_needed(gate.compare(variant, parent), limits(0.01), at, classes or [])

    chance = Chance(score=0.11, expected=0.1, deviation=0.0095, reference=0.0095)
    assert needed(0, 0) == 381
    assert (needed(1, 1) or 0) > 381
    assert (needed(1, 0) or 400) < 381
    assert needed(0, 2) is None  # the estimate is the limit
    assert needed(0, 0, at=chance) is None
    assert needed(0, 0, [{"label": "a", "delta": -0.2, "worse": True}]) is None
    attributes = Difference(200, 0.0, -0.03, 0.03, None)
    assert gate.images_needed(attributes, limits(0.01), ABOVE) is None
