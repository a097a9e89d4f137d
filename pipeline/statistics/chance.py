"""Whether a classifier's score is above chance: above that of the same predictions for shuffled images."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

from pipeline.statistics.average_precision import mean_average_precision

CONFIDENCE = 0.99
"""One-sided confidence level at which a score is above chance."""

QUANTILE = NormalDist().inv_cdf(CONFIDENCE)
"""Standard normal quantile of that level."""

LEAST_SKILL = 0.25
"""Skill that must be detectable before a score that is not above chance counts as at chance."""

LEAST_RECALL = 0.5
"""Recall of the other classes' images that must be excluded before a constant answer counts as at chance."""

SHUFFLES = 50
"""Number of shuffles from which the chance of a mean average precision is estimated."""

ORDERS = 2000
"""Number of shuffles by which an accuracy is judged that seems to be below chance. Of few images, accuracies
are not normally distributed."""

BLOCK = 2**22
"""Number of pairs of classes that are computed at once."""


@dataclass(frozen=True)
class Chance:
    """A score beside the scores that the same predictions reach for shuffled images.

    Unlike one over the number of classes, this takes into account how often each class occurs and is
    predicted: a classifier that always answers with the most frequent class is at chance.
    """

    score: float
    """Score of the classifier, a fraction of 1."""
    expected: float
    """Mean score for shuffled images."""
    deviation: float
    """Standard deviation of the score for shuffled images."""
    reference: float
    """Standard deviation for predictions that are as frequent as the labels are."""
    missed: int | None = None
    """Number of images that a constant answer misses; None for answers that differ."""
    is_missed: bool = False
    """Whether the score is shown to be below chance, at 99 % confidence: the answers know something about the
    images, and are wrong because of it."""

    @property
    def is_exceeded(self) -> bool:
        """Whether the score is shown to be above chance, at 99 % confidence."""
        return self.score - self.expected > QUANTILE * self.deviation

    @property
    def is_reached(self) -> bool:
        """Whether the classifier is at chance or below: its score is not above chance, although there are
        enough images to show a skill of 0.25, where 0 is chance and 1 is a perfect classifier; or it is shown
        to be below chance.

        A constant answer is at chance if it misses so many images that a recall of 0.5 is excluded at 99 %
        confidence: seven. Of few images, a good classifier may give the same answer to all. Where all images
        are of one class, nothing can be told.
        """
        if self.is_exceeded or not self.reference > 0:
            return False
        if self.is_missed:
            return True
        if self.missed is not None:
            return (1 - LEAST_RECALL) ** self.missed < 1 - CONFIDENCE
        least = 1.0 if self.deviation == 0 else LEAST_SKILL
        return QUANTILE * max(self.deviation, self.reference) < least * (1 - self.expected)


def of_classes(predictions: Int[np.ndarray, " images"], labels: Int[np.ndarray, " images"]) -> Chance:
    """Chance of an accuracy; its distance from the score is Cohen's kappa, not yet divided by its maximum.

    Mean and variance over all shuffles are exact (Hoeffding 1951, https://doi.org/10.1214/aoms/1177729545).

    Args:
        predictions: predicted class of each image.
        labels: true class of each image.
    """
    classes = max(int(predictions.max()), int(labels.max())) + 1
    predicted, true = (np.bincount(each, minlength=classes) for each in (predictions, labels))
    expected, deviation = _agreement(predicted, true)
    right = int((predictions == labels).sum())
    missed = len(labels) - right if predicted.max() == len(labels) else None
    score, reference = right / len(labels), _agreement(true, true)[1]
    below = expected - score > QUANTILE * deviation > 0 and _seldom_as_low(predictions, labels, right)
    return Chance(score, expected, deviation, reference, missed, below)


def _seldom_as_low(
    predictions: Int[np.ndarray, " images"], labels: Int[np.ndarray, " images"], right: int
) -> bool:
    """Whether fewer than one in a hundred seeded shuffles have as few right answers."""
    random = np.random.default_rng(0)
    as_low = sum(int((random.permutation(predictions) == labels).sum()) <= right for _ in range(ORDERS))
    return as_low < (1 - CONFIDENCE) * ORDERS


def _agreement(
    predicted: Int[np.ndarray, " classes"], true: Int[np.ndarray, " classes"]
) -> tuple[float, float]:
    """Mean and standard deviation of the accuracy over all shuffles, from the numbers of images per class."""
    images = int(true.sum())
    expected = float(predicted @ true) / images**2
    total = 0.0
    for rows in np.array_split(np.arange(len(true)), -(-(len(true) ** 2) // BLOCK)):
        # Rows are true classes, columns predicted ones; a pair of them occurs true * predicted times among
        # all pairs of images.
        equal = rows[:, None] == np.arange(len(true))
        centred = equal - predicted[rows, None] / images - true / images + expected
        total += float((true[rows, None] * predicted * centred**2).sum())
    variance = total / max(1, images - 1)
    return expected, float(np.sqrt(variance)) / images


def of_attributes(
    scores: Float[np.ndarray, "images attributes"], targets: Float[np.ndarray, "images attributes"]
) -> Chance:
    """Chance of a mean average precision, from 50 seeded shuffles of the images.

    Args:
        scores: score of each attribute; the higher, the more certain.
        targets: share of each attribute, from 0 to 1.
    """
    random = np.random.default_rng(0)
    orders = [random.permutation(len(targets)) for _ in range(SHUFFLES)]
    shuffled = [mean_average_precision(scores, targets[order]) for order in orders]
    noise = random.normal(size=scores.shape)
    unrelated = [mean_average_precision(noise, targets[order]) for order in orders]
    score = mean_average_precision(scores, targets)
    deviation, reference = (float(np.std(values, ddof=1)) for values in (shuffled, unrelated))
    expected = float(np.mean(shuffled))
    below = bool(expected - score > QUANTILE * deviation > 0)
    return Chance(score, expected, deviation, reference, is_missed=below)
