"""Whether a classifier is as sure as it is right: calibration, and drift against a parent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from pipeline.statistics.intervals import RESAMPLES, interval, mean_by_bootstrap, resampled_sums

BINS = 15
"""Of equal width, over the greatest probability (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""


@dataclass(frozen=True)
class Confidence:
    """What is kept of a classifier's probabilities, image by image."""

    predictions: Int[np.ndarray, " images"]
    confidence: Float[np.ndarray, " images"]
    """The greatest probability."""
    nll: Float[np.ndarray, " images"]
    """Negative logarithm of the true class's probability, in nats."""
    squared: Float[np.ndarray, " images"]
    """Squared distance of the probabilities from the truth: 0 to 2 (Brier 1950)."""


def of(logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]) -> Confidence:
    """Softmax of the logits, seen from the truth."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    probabilities, each = np.exp(logarithms), np.arange(len(labels))
    own = probabilities[each, labels]
    return Confidence(
        predictions=logits.argmax(axis=1).astype(np.int32),
        confidence=probabilities.max(axis=1).astype(np.float32),
        nll=-logarithms[each, labels].astype(np.float32),
        squared=((probabilities**2).sum(axis=1) - 2 * own + 1).astype(np.float32),
    )


def save(path: Path, kept: Confidence | None) -> None:
    """Write a compressed NumPy archive; an empty one where nothing is kept, as of attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, **({} if kept is None else vars(kept)))


def load(path: Path) -> Confidence | None:
    """What ``save`` wrote."""
    with np.load(path) as arrays:
        return Confidence(**arrays) if arrays.files else None


def measure(kept: Confidence, labels: Int[np.ndarray, " images"]) -> dict[str, Any]:
    """Expected calibration error with its interval, likelihood, Brier score, and the reliability diagram."""
    right, confident = kept.predictions == labels, kept.confidence
    error, lo, hi = _error_interval(_excess(confident, right), confident)
    bins = _bins(confident)
    return {
        "bins": BINS,
        "ece": error,
        "ece_lo": lo,
        "ece_hi": hi,
        "nll": float(kept.nll.mean(dtype=np.float64)),
        "brier": float(kept.squared.mean(dtype=np.float64)),
        "confidence": float(confident.mean(dtype=np.float64)),
        "reliability": [
            {
                "lo": number / BINS,
                "hi": (number + 1) / BINS,
                "n": int(inside.sum()),
                "confidence": float(confident[inside].mean()) if inside.any() else None,
                "accuracy": float(right[inside].mean()) if inside.any() else None,
            }
            for number in range(BINS)
            for inside in [bins == number]
        ],
    }


def drift(new: Confidence, old: Confidence, labels: Int[np.ndarray, " images"]) -> dict[str, Any]:
    """How a variant's probabilities moved against its parent's, on the same images, with paired intervals."""
    excess = [_excess(kept.confidence, kept.predictions == labels) for kept in (new, old)]
    both = resampled_sums(np.concatenate(excess, axis=1))
    resampled = _error(both[:, :BINS]) - _error(both[:, BINS:])
    ece = _error(excess[0].sum(axis=0)) - _error(excess[1].sum(axis=0))
    moved = new.confidence.astype(np.float64) - old.confidence
    result: dict[str, Any] = {"confidence_moved": float(np.abs(moved).mean())}
    figures = {
        "ece": (float(ece / len(labels)), *_mirrored(float(ece / len(labels)), resampled / len(labels))),
        "confidence": mean_by_bootstrap(moved),
        "nll": mean_by_bootstrap(new.nll.astype(np.float64) - old.nll),
    }
    for name, (delta, lo, hi) in figures.items():
        result |= {f"{name}_delta": delta, f"{name}_delta_lo": lo, f"{name}_delta_hi": hi}
    return result


def _bins(confident: Float[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
    """The bin of each image; a bin holds its upper end."""
    return np.clip(np.ceil(confident * BINS).astype(int) - 1, 0, BINS - 1)


def _excess(
    confident: Float[np.ndarray, " images"], right: Bool[np.ndarray, " images"]
) -> Float64[np.ndarray, "images bins"]:
    """Confidence minus being right, in the column of the image's bin."""
    excess = np.zeros((len(confident), BINS))
    excess[np.arange(len(confident)), _bins(confident)] = confident.astype(np.float64) - right
    return excess


def _error(sums: Float64[np.ndarray, "*samples bins"]) -> Any:
    """Expected calibration error times the number of images."""
    return np.abs(sums).sum(axis=-1)


def _error_interval(
    excess: Float64[np.ndarray, "images bins"], confident: Float[np.ndarray, " images"]
) -> tuple[float, float, float]:
    """A calibration error and its 95 % interval, from 0 where a calibrated classifier could show it too.

    Even a calibrated classifier's error is never 0 on a sample: what it would be is drawn from its own
    confidences (consistency resampling: Bröcker and Smith 2007, https://doi.org/10.1175/WAF993.1).
    """
    estimate = float(_error(excess.sum(axis=0)) / len(excess))
    lo, hi = _mirrored(estimate, _error(resampled_sums(excess)) / len(excess))
    by_chance = np.quantile(_calibrated_errors(confident), 0.975)
    return estimate, 0.0 if estimate <= by_chance else max(0.0, lo), max(estimate, hi)


def _calibrated_errors(confident: Float[np.ndarray, " images"]) -> Float64[np.ndarray, " resamples"]:
    """Errors by chance alone: every image is right with the probability that the classifier gives itself."""
    random, bins = np.random.default_rng(0), _bins(confident)
    surest = confident.astype(np.float64)
    sums = (
        np.bincount(bins, weights=surest - (random.random(len(bins)) < surest), minlength=BINS)
        for _ in range(RESAMPLES)
    )
    return _error(np.stack(list(sums))) / len(bins)


def _mirrored(estimate: float, resampled: Float64[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The basic bootstrap interval: resampling makes absolute values grow, and percentiles with them."""
    lo, hi = interval(resampled)
    return 2 * estimate - hi, 2 * estimate - lo
