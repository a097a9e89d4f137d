import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from pipeline.statistics import average_precision, bootstrap, intervals


@pytest.mark.parametrize(("correct", "images"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(correct: int, images: int) -> None:
    with pytest.raises(ValueError, match=rf"correct.*={correct}.*images.*={images}"):
        intervals.wilson(correct, images)


def test_wilson_agrees_with_scipy() -> None:
    for images in (1, 7, 240, 10_000):
        for correct in (0, 1, images // 3, images - 1, images):
            expected = stats.binomtest(correct, images).proportion_ci(0.95, method="wilson")
            assert intervals.wilson(correct, images) == pytest.approx(
                (expected.low, expected.high), abs=1e-15
            )


def test_paired_interval_agrees_with_the_published_example() -> None:
    # Fagerland, Lydersen and Laake 2014 (doi 10.1186/1471-2288-14-5): 1 and 7 discordant pairs of 21.
    assert intervals.paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_paired_interval_of_no_disagreement_is_not_a_point() -> None:
    lo, hi = intervals.paired_interval(0, 0, 100)
    assert lo == pytest.approx(-hi, abs=1e-14)
    assert hi == pytest.approx(intervals.Z95**2 / (100 + intervals.Z95**2), abs=1e-14)


@pytest.mark.parametrize("images", [1, 2, 50])
def test_paired_interval_of_complete_disagreement_ends_at_the_limit(images: int) -> None:
    lo, hi = intervals.paired_interval(images, 0, images)
    assert -1 < lo < hi == 1
    assert intervals.paired_interval(0, images, images) == pytest.approx((-1, -lo), abs=1e-14)


def test_paired_interval_leaves_zero_out_exactly_when_the_score_test_rejects() -> None:
    seen = set()
    for gained, lost in itertools.product(range(0, 40, 3), repeat=2):
        if gained == lost:
            continue
        lo, hi = intervals.paired_interval(gained, lost, 60 + gained + lost)
        significant = abs(gained - lost) / math.sqrt(gained + lost) > intervals.Z95
        assert (lo > 0 or hi < 0) == significant, (gained, lost, lo, hi)
        seen.add(significant)
    assert seen == {True, False}


def test_paired_interval_mirrors_when_the_classifiers_change_places() -> None:
    lo, hi = intervals.paired_interval(12, 31, 372)
    assert intervals.paired_interval(31, 12, 372) == pytest.approx((-hi, -lo))


def test_paired_interval_covers_the_truth_in_95_of_100_simulations() -> None:
    random = np.random.default_rng(0)
    truth, images = 0.03 - 0.05, 372
    counts = random.multinomial(images, [0.03, 0.05, 0.92], size=2000)
    interval = functools.cache(intervals.paired_interval)
    covered = [interval(int(gained), int(lost), images) for gained, lost, _ in counts]
    assert np.mean([lo <= truth <= hi for lo, hi in covered]) == pytest.approx(0.95, abs=0.015)


def test_mcnemar_does_not_underflow() -> None:
    assert 0 < intervals.mcnemar(4500, 5500) < 1e-20


@pytest.mark.parametrize(("gained", "lost"), [(1, 0), (3, 9), (9, 3), (5, 5), (40, 61)])
def test_mcnemar_agrees_with_scipy(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue
    assert intervals.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_no_disagreement_is_1() -> None:
    assert intervals.mcnemar(0, 0) == 1


def attributes(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and hard targets of 4 attributes that correlate with them."""
    random = np.random.default_rng(seed)
    targets = (random.random((images, 4)) < [0.5, 0.3, 0.1, 0.02]).astype(np.float32)
    return (targets + random.normal(0, 1, targets.shape)).round(1), targets


def test_average_precision_is_scikit_learns_also_with_ties_and_weights() -> None:
    scores, targets = attributes(300)
    weights = np.random.default_rng(1).integers(0, 4, (3, 300)).astype(np.float64)
    for column in range(4):
        truth = targets[:, column] > 0.5
        result = average_precision.average_precision(scores[:, column], truth, weights)
        expected = [average_precision_score(truth, scores[:, column], sample_weight=row) for row in weights]
        np.testing.assert_allclose(result, expected, rtol=1e-12)
    expected = average_precision_score(targets, scores)
    assert average_precision.mean_average_precision(scores, targets) == pytest.approx(expected, rel=1e-12)


def test_an_attribute_that_no_image_has_is_left_out_of_the_mean() -> None:
    scores, targets = attributes(50)
    targets[:, 3] = 0
    assert np.isnan(average_precision.average_precisions(scores, targets)[3])
    expected = average_precision_score(targets[:, :3], scores[:, :3])
    assert average_precision.mean_average_precision(scores, targets) == pytest.approx(expected)


def test_the_bootstrap_covers_the_truth_and_differences_are_paired() -> None:
    scores, targets = attributes(20000, seed=2)
    truth = average_precision.mean_average_precision(scores[:, :2], targets[:, :2])
    hits = 0
    for part in range(40):
        some = slice(500 * part, 500 * (part + 1))
        lo, hi = bootstrap.percentile_interval(
            bootstrap.resampled_map(scores[some, :2], targets[some, :2], 200)
        )
        hits += lo <= truth <= hi
    assert hits >= 34
    scores, targets = scores[:500], targets[:500]
    worse = scores + np.random.default_rng(0).normal(0, 0.1, scores.shape)
    resampled, resampled_worse = (bootstrap.resampled_map(s, targets, 200) for s in (scores, worse))
    lo, hi = bootstrap.percentile_interval(resampled)
    paired_lo, paired_hi = bootstrap.percentile_interval(resampled_worse - resampled)
    assert paired_hi - paired_lo < 0.5 * (hi - lo)


@pytest.mark.parametrize(("gained", "lost"), [(3, 9), (40, 25), (0, 0)])
def test_the_bootstrap_of_a_paired_difference_agrees_with_resampling_the_images(
    gained: int, lost: int
) -> None:
    values = np.zeros(400)
    values[:gained], values[400 - lost :] = 1, -1
    random = np.random.default_rng(1)
    means = values[random.integers(0, 400, (4000, 400))].mean(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap.difference_interval(gained, lost, 400) == pytest.approx(expected, abs=2.6e-3)


def test_gap_interval_agrees_with_the_published_example() -> None:
    # Newcombe 1998, table II: 56/70 - 48/80 by method 10.
    assert intervals.gap_interval((56, 48), (70, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_gap_interval_of_a_picked_pair_is_wider() -> None:
    once, picked = (intervals.gap_interval((56, 48), (70, 80), pairs) for pairs in (1, 10))
    assert picked[0] < once[0] < once[1] < picked[1]


def test_mean_interval_is_students() -> None:
    values = np.array([1.0, 1.2, 0.9, 1.1])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert intervals.mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert intervals.mean_interval(values[:1]) == (-math.inf, math.inf)


def test_holm_agrees_with_the_step_down_rule() -> None:
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]
    assert intervals.holm([]) == []


def test_the_bootstrap_of_means_covers_the_truth() -> None:
    random = np.random.default_rng(0)
    result = [bootstrap.mean_with_interval(random.exponential(1, 100)) for _ in range(200)]
    assert sum(lo <= 1 <= hi for _, lo, hi in result) >= 180


def test_an_attribute_of_one_image_has_an_interval_from_the_samples_that_hold_it() -> None:
    targets = np.zeros((40, 1))
    targets[7] = 1
    scores = np.linspace(0, 1, 40)[:, None]
    resampled = bootstrap.resampled_map(scores, targets)
    assert 0.3 < np.isnan(resampled).mean() < 0.45  # (1 - 1 / 40) ** 40 is 0.36
    lo, hi = bootstrap.percentile_interval(resampled)
    assert 0 < lo < hi < 1


@pytest.mark.parametrize(
    ("gained", "lost", "max_drop"), [(0, 0, 0.01), (0.01, 0.01, 0.01), (0.002, 0.01, 0.02)]
)
def test_images_needed_is_where_the_paired_interval_comes_within_the_limit(
    gained: float, lost: float, max_drop: float
) -> None:
    images = intervals.images_needed(gained, lost, max_drop)
    assert images is not None
    ends = [intervals.paired_interval(gained * n, lost * n, n)[0] for n in (images - 1, images)]
    assert ends[0] < -max_drop <= ends[1]


@pytest.mark.parametrize(("gained", "lost", "max_drop"), [(0, 0, 0), (0, 0.01, 0.01), (0.01, 0.05, 0.02)])
def test_no_number_of_images_shows_a_loss_below_the_estimate(
    gained: float, lost: float, max_drop: float
) -> None:
    assert intervals.images_needed(gained, lost, max_drop) is None
