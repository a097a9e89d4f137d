from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from pipeline.evaluation import confidence
from pipeline.evaluation.confidence import BINS, Confidence


def drawn(images: int, scale: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, ``scale`` times those that the labels are drawn from: calibrated where it is 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (images, 5))
    labels = np.array([random.choice(5, p=row) for row in softmax(logits, axis=1)])
    return (scale * logits).astype(np.float32), labels


def test_the_summary_of_probabilities_agrees_with_scipy_and_scikit_learn() -> None:
    logits, labels = drawn(200)
    summary = confidence.from_logits(logits, labels)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert summary.confidence == pytest.approx(probabilities.max(axis=1), rel=1e-6)
    assert summary.nll == pytest.approx(-log_softmax(logits, axis=1)[np.arange(200), labels], rel=1e-4)
    assert summary.squared == pytest.approx(((probabilities - np.eye(5)[labels]) ** 2).sum(axis=1), rel=1e-5)
    assert confidence.measure(summary, labels)["nll"] == pytest.approx(
        log_loss(labels, probabilities), rel=1e-5
    )


def test_ece_is_the_mean_over_bins_of_how_far_confidence_is_from_accuracy() -> None:
    summary = Confidence(np.array([0, 0, 1, 1]), np.array([0.95, 0.97, 0.61, 0.63]), np.ones(4), np.ones(4))
    result = confidence.measure(summary, np.array([0, 1, 1, 1]))
    # Two bins of two images each: |0.96 - 0.5| and |0.62 - 1|.
    assert result["ece"] == pytest.approx((0.46 + 0.38) / 2)
    filled = {(line["n"], line["accuracy"]) for line in result["reliability"] if line["n"]}
    assert filled == {(2, 0.5), (2, 1.0)}
    assert len(result["reliability"]) == BINS == 15


def test_an_overconfident_classifier_has_a_greater_ece_than_a_calibrated_one() -> None:
    calibrated, overconfident = (
        confidence.measure(confidence.from_logits(*drawn(4000, s)), drawn(4000)[1]) for s in (1, 3)
    )
    assert calibrated["ece_hi"] < 0.04
    assert overconfident["ece_lo"] > calibrated["ece_hi"]
    for result in (calibrated, overconfident):
        assert result["ece_lo"] <= result["ece"] <= result["ece_hi"]


def test_the_interval_of_a_calibrated_classifier_begins_at_0_and_holds_its_estimate() -> None:
    result = [
        confidence.measure(confidence.from_logits(*drawn(300, 1.0, seed)), drawn(300, 1.0, seed)[1])
        for seed in range(60)
    ]
    assert sum(one["ece_lo"] == 0 for one in result) >= 55  # of 60, where 97.5 % are expected
    assert all(one["ece_lo"] <= one["ece"] <= one["ece_hi"] for one in result)
    assert all(one["ece"] > 0.01 for one in result), "no sample is perfectly calibrated"


def test_drift_of_a_classifier_against_itself_is_0() -> None:
    logits, labels = drawn(300)
    summary = confidence.from_logits(logits, labels)
    assert set(confidence.drift(summary, summary, labels).values()) == {0.0}


def test_drift_sees_more_confidence_and_a_worse_calibration() -> None:
    (logits, labels), (sharper, _) = drawn(3000), drawn(3000, 2)
    result = confidence.drift(
        confidence.from_logits(sharper, labels), confidence.from_logits(logits, labels), labels
    )
    for name in ("ece", "confidence", "nll"):
        assert 0 < result[f"{name}_delta_lo"] < result[f"{name}_delta"] < result[f"{name}_delta_hi"]
    assert result["confidence_moved"] >= result["confidence_delta"]


def test_what_is_saved_is_read_again_and_so_is_none(tmp_path: Path) -> None:
    summary = confidence.from_logits(*drawn(20))
    confidence.save(tmp_path / "some.npz", summary)
    confidence.save(tmp_path / "none.npz", None)
    read = confidence.load(tmp_path / "some.npz")
    assert read is not None
    assert all((vars(read)[name] == values).all() for name, values in vars(summary).items())
    assert confidence.load(tmp_path / "none.npz") is None
