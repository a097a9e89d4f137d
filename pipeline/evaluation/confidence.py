"""Calibration: whether the confidence of a classifier matches its accuracy, and its drift from a parent's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy.special import log_softmax

from pipeline import files
from pipeline.statistics import bootstrap

BINS = 15
"""Number of bins of equal width over the confidence (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""


@dataclass(frozen=True)
class Confidence:
    """A classifier's probabilities in short: four numbers per image."""

    predictions: Int[np.ndarray, " images"]
    """Class with the greatest probability."""
    confidence: Float[np.ndarray, " images"]
    """The greatest probability."""
    nll: Float[np.ndarray, " images"]
    """Negative logarithm of the true class's probability, in nats."""
    squared: Float[np.ndarray, " images"]
    """Squared distance of the probabilities from the truth, from 0 to 2 (Brier 1950)."""


def from_logits(
    logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> Confidence:
    """Summarise the probabilities that belong to logits, given the true classes."""
    logarithms = log_softmax(logits.astype(np.float64), axis=1)
    probabilities, each = np.exp(logarithms), np.arange(len(labels))
    of_truth = probabilities[each, labels]
    return Confidence(
        predictions=logits.argmax(axis=1).astype(np.int32),
        confidence=probabilities.max(axis=1).astype(np.float32),
        nll=-logarithms[each, labels].astype(np.float32),
        squared=((probabilities**2).sum(axis=1) - 2 * of_truth + 1).astype(np.float32),
    )


def save(path: Path, confidence: Confidence | None) -> None:
    """Write a compressed NumPy archive, which is empty for None."""
    with files.replacing(path) as fresh, fresh.open("wb") as file:
        np.savez_compressed(file, **({} if confidence is None else vars(confidence)))


def load(path: Path) -> Confidence | None:
    """Read what ``save`` wrote."""
    with np.load(path) as arrays:
        return Confidence(**arrays) if arrays.files else None


def measure(confidence: Confidence, labels: Int[np.ndarray, " images"]) -> dict[str, Any]:
    """Measure the calibration of a classifier.

    Returns:
        The expected calibration error ``ece`` with the ends of its 95 % interval, the mean negative
        log-likelihood ``nll`` in nats, the ``brier`` score, the mean ``confidence``, and the ``reliability``
        diagram: ``n``, mean ``confidence`` and ``accuracy`` of each bin.
    """
    correct, confident = confidence.predictions == labels, confidence.confidence
    error, lo, hi = _error_interval(_excess(confident, correct), confident)
    bins = _bins(confident)
    return {
        "bins": BINS,
        "ece": error,
        "ece_lo": lo,
        "ece_hi": hi,
        "nll": float(confidence.nll.mean(dtype=np.float64)),
        "brier": float(confidence.squared.mean(dtype=np.float64)),
        "confidence": float(confident.mean(dtype=np.float64)),
        "reliability": [
            {
                "lo": number / BINS,
                "hi": (number + 1) / BINS,
                "n": int(mask.sum()),
                "confidence": float(confident[mask].mean()) if mask.any() else None,
                "accuracy": float(correct[mask].mean()) if mask.any() else None,
            }
            for number in range(BINS)
            for mask in [bins == number]
        ],
    }


def drift(variant: Confidence, parent: Confidence, labels: Int[np.ndarray, " images"]) -> dict[str, Any]:
    """Measure how a variant's probabilities differ from its parent's on the same images.

    Returns:
        The mean absolute change of confidence ``confidence_moved``, and the differences ``ece_delta``,
        ``confidence_delta`` and ``nll_delta``, each with the ends of its paired 95 % interval.
    """
    excess = [_excess(one.confidence, one.predictions == labels) for one in (variant, parent)]
    sums = bootstrap.resampled_sums(np.concatenate(excess, axis=1))
    resampled = _error(sums[:, :BINS]) - _error(sums[:, BINS:])
    ece = float((_error(excess[0].sum(axis=0)) - _error(excess[1].sum(axis=0))) / len(labels))
    moved = variant.confidence.astype(np.float64) - parent.confidence
    result: dict[str, Any] = {"confidence_moved": float(np.abs(moved).mean())}
    figures = {
        "ece": (ece, *bootstrap.basic_interval(ece, resampled / len(labels))),
        "confidence": bootstrap.mean_with_interval(moved),
        "nll": bootstrap.mean_with_interval(variant.nll.astype(np.float64) - parent.nll),
    }
    for name, (delta, lo, hi) in figures.items():
        result |= {f"{name}_delta": delta, f"{name}_delta_lo": lo, f"{name}_delta_hi": hi}
    return result


def _bins(confident: Float[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
    """The bin of each image; the upper end of a bin belongs to it."""
    return np.clip(np.ceil(confident * BINS).astype(int) - 1, 0, BINS - 1)


def _excess(
    confident: Float[np.ndarray, " images"], correct: Bool[np.ndarray, " images"]
) -> Float64[np.ndarray, "images bins"]:
    """Confidence minus correctness (0 or 1), in the column of the image's bin."""
    excess = np.zeros((len(confident), BINS))
    excess[np.arange(len(confident)), _bins(confident)] = confident.astype(np.float64) - correct
    return excess


def _error(sums: Float64[np.ndarray, "*samples bins"]) -> Any:
    """Expected calibration error times the number of images."""
    return np.abs(sums).sum(axis=-1)


def _error_interval(
    excess: Float64[np.ndarray, "images bins"], confident: Float[np.ndarray, " images"]
) -> tuple[float, float, float]:
    """A calibration error and its 95 % interval, which begins at 0 where chance alone explains the error.

    On a sample, the error of a calibrated classifier is greater than 0, too. How great it would be is drawn
    from the classifier's own confidences (consistency resampling: Bröcker and Smith 2007,
    https://doi.org/10.1175/WAF993.1).
    """
    estimate = float(_error(excess.sum(axis=0)) / len(excess))
    lo, hi = bootstrap.basic_interval(estimate, _error(bootstrap.resampled_sums(excess)) / len(excess))
    by_chance = np.quantile(_calibrated_errors(confident), 0.975)
    return estimate, 0.0 if estimate <= by_chance else max(0.0, lo), max(estimate, hi)


def _calibrated_errors(confident: Float[np.ndarray, " images"]) -> Float64[np.ndarray, " resamples"]:
    """Calibration errors by chance: each image is correct with the probability that the classifier states."""
    random, bins = np.random.default_rng(0), _bins(confident)
    probability = confident.astype(np.float64)
    sums = (
        np.bincount(bins, weights=probability - (random.random(len(bins)) < probability), minlength=BINS)
        for _ in range(bootstrap.RESAMPLES)
    )
    return _error(np.stack(list(sums))) / len(bins)
