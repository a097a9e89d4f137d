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


def test_what_is_kept_agrees_with_scipy_and_scikit_learn() -> None:
    logits, labels = drawn(200)
    kept = confidence.of(logits, labels)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert kept.confidence == pytest.approx(probabilities.max(axis=1), rel=1e-6)
    assert kept.nll == pytest.approx(-log_softmax(logits, axis=1)[np.arange(200), labels], rel=1e-4)
    assert kept.squared == pytest.approx(((probabilities - np.eye(5)[labels]) ** 2).sum(axis=1), rel=1e-5)
    assert confidence.measure(kept, labels)["nll"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)


def test_ece_is_the_mean_over_bins_of_how_far_confidence_is_from_accuracy() -> None:
    kept = Confidence(np.array([0, 0, 1, 1]), np.array([0.95, 0.97, 0.61, 0.63]), np.ones(4), np.ones(4))
    found = confidence.measure(kept, np.array([0, 1, 1, 1]))
    # Two bins of two images each: |0.96 - 0.5| and |0.62 - 1|.
    assert found["ece"] == pytest.approx((0.46 + 0.38) / 2)
    filled = {(line["n"], line["accuracy"]) for line in found["reliability"] if line["n"]}
    assert filled == {(2, 0.5), (2, 1.0)}
    assert len(found["reliability"]) == BINS == 15


def test_a_classifier_that_is_too_sure_has_a_greater_ece_than_a_calibrated_one() -> None:
    honest, boaster = (confidence.measure(confidence.of(*drawn(4000, s)), drawn(4000)[1]) for s in (1, 3))
    assert honest["ece_hi"] < 0.04
    assert boaster["ece_lo"] > honest["ece_hi"]
    for found in (honest, boaster):
        assert found["ece_lo"] <= found["ece"] <= found["ece_hi"]


def test_the_interval_of_a_calibrated_classifier_begins_at_nothing_and_holds_its_estimate() -> None:
    found = [
        confidence.measure(confidence.of(*drawn(300, 1.0, seed)), drawn(300, 1.0, seed)[1])
        for seed in range(60)
    ]
    assert sum(one["ece_lo"] == 0 for one in found) >= 55  # of 60, where 97.5 % are expected
    assert all(one["ece_lo"] <= one["ece"] <= one["ece_hi"] for one in found)
    assert all(one["ece"] > 0.01 for one in found), "no sample is calibrated to the point"


def test_drift_of_a_classifier_against_itself_is_nothing() -> None:
    logits, labels = drawn(300)
    kept = confidence.of(logits, labels)
    assert set(confidence.drift(kept, kept, labels).values()) == {0.0}


def test_drift_sees_more_confidence_and_a_worse_calibration() -> None:
    (logits, labels), (sharper, _) = drawn(3000), drawn(3000, 2)
    found = confidence.drift(confidence.of(sharper, labels), confidence.of(logits, labels), labels)
    for name in ("ece", "confidence", "nll"):
        assert 0 < found[f"{name}_delta_lo"] < found[f"{name}_delta"] < found[f"{name}_delta_hi"]
    assert found["confidence_moved"] >= found["confidence_delta"]


def test_what_is_saved_is_read_again_also_nothing(tmp_path: Path) -> None:
    kept = confidence.of(*drawn(20))
    confidence.save(tmp_path / "some.npz", kept)
    confidence.save(tmp_path / "none.npz", None)
    read = confidence.load(tmp_path / "some.npz")
    assert read is not None
    assert all((vars(read)[name] == values).all() for name, values in vars(kept).items())
    assert confidence.load(tmp_path / "none.npz") is None
