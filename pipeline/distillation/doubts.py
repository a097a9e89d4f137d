"""Doubts about a teacher, from its answers on the validation images: before anything is built on it."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from scipy import special
from scipy.optimize import linear_sum_assignment

from pipeline.data.store import ImageSet
from pipeline.statistics.average_precision import PRESENT
from pipeline.statistics.chance import Chance
from pipeline.statistics.intervals import CONFIDENCE, paired_interval
from pipeline.tasks import SINGLE_LABEL
from teachers import labels
from teachers.errors import TeacherError

LISTED = 3
"""Number of images, or of classes, that a message names."""
GAIN = 0.2
"""Least gain of another order of the logits that counts, as a share of the images of the classes that it
moves or as a difference of the area under the ROC curve. An adapted teacher that confuses two classes gains
less."""
REVERSED = 0.3
"""Greatest area under the ROC curve of an attribute that counts as answered the wrong way round."""


class Order(NamedTuple):
    """Another order of the logits that fits the validation images better."""

    columns: Int[np.ndarray, " classes"]
    """The logit that fits each class."""
    moved: tuple[int, ...]
    """The classes whose logit is another one."""


def check_finite(
    logits: Float[torch.Tensor, "images classes"], images: ImageSet, split: str, origin: str
) -> None:
    """Check that all answers are finite.

    Raises:
        TeacherError: some are not; the message names the first of these images.
    """
    bad = np.flatnonzero(~logits.isfinite().all(1).numpy())
    if len(bad):
        raise TeacherError(
            f"{origin}: its answers to {len(bad)} of {len(logits)} images of {split} are not finite: "
            f"{images.name(bad)}; use other weights or another teacher.input"
        )


def check(
    logits: Float[torch.Tensor, "images classes"], images: ImageSet, origin: str, *, accept: bool
) -> None:
    """Check that there is no doubt about a teacher, or print the doubts if it is accepted nevertheless.

    Args:
        logits: its finite answers to the validation images, in the order of the classes of the data.
        images: the validation images.
        origin: key of its settings and its description, for messages.
        accept: whether a doubt is printed only.

    Raises:
        TeacherError: there is a doubt; one line per doubt.
    """
    chance = _chance(images.task.predictions(logits.numpy()), images)
    found = _find(logits, images, chance)
    if accept:
        sys.stderr.write("".join(f"warning: {origin}: {doubt}\n" for doubt in found))
    elif found:
        lines = [f"{origin}: {doubt}; teacher.doubtful = accept goes on nevertheless" for doubt in found]
        raise TeacherError(*lines)
    if chance is not None and not chance.is_exceeded and not chance.is_reached:
        sys.stderr.write(
            f"warning: {origin}: {_score(chance, images)}: too few images to tell the two apart\n"
        )


def check_views(
    predictions: np.ndarray,
    images: ImageSet,
    origin: str,
    val: Mapping[str, Any],
    *,
    accept: bool,
) -> None:
    """Check the answers to views of the images that students learn from, or print the doubt if accepted.

    Args:
        predictions: ``task.predictions`` of the answers to one view of each image.
        images: the images, of which some may have no label.
        origin: the teacher in words.
        val: number of validation images and the score on them, from the teacher's card.
        accept: whether the doubt is printed only.

    Raises:
        TeacherError: the score is at chance or below.
    """
    chance = _chance(predictions, images)
    if chance is None or not chance.is_reached:
        return
    doubt = (
        f"{origin}: {images.task.words} is {chance.score:.1%} on the first views of the "
        f"{int(images.has_label.sum())} labelled images that students learn from, and {chance.expected:.1%} "
        f"with answers to other images, so it is {'below' if chance.is_missed else 'not above'} chance, and "
        f"{val[images.task.metric]:.1%} on the {val['n']} images of val"
    )
    if not accept:
        raise TeacherError(f"{doubt}; teacher.doubtful = accept goes on nevertheless")
    sys.stderr.write(f"warning: {doubt}\n")


def find(logits: Float[torch.Tensor, "images classes"], images: ImageSet) -> list[str]:
    """Find the reasons to doubt a teacher: an order of its logits that fits better, or answers at chance.

    Args:
        logits: its finite answers to the validation images, in the order of the classes of the data.
        images: the validation images.

    Returns:
        One sentence per doubt; none if the teacher is good, or if there are too few images to tell.
    """
    return _find(logits, images, _chance(images.task.predictions(logits.numpy()), images))


def _find(
    logits: Float[torch.Tensor, "images classes"], images: ImageSet, chance: Chance | None
) -> list[str]:
    if chance is None:
        return []
    labelled = images.has_label
    scores, truth = logits.double().numpy()[labelled], images.labels[labelled]
    if images.task is SINGLE_LABEL:
        found = _class_doubts(scores.argmax(1), truth, images.classes)
    else:
        found = _attribute_doubts(scores, truth >= PRESENT, images.classes)
    if chance.is_missed and not found:
        found.append(
            f"{_score(chance, images)}, which is below chance: its answers may have the wrong sign, or "
            "may be for other classes; see teacher.input, teacher.outputs and teacher.labels"
        )
    elif chance.is_reached and not chance.is_missed:
        found.append(f"{_score(chance, images)}, which is not above chance")
    return found


def _chance(predictions: np.ndarray, images: ImageSet) -> Chance | None:
    """The score beside that of answers to other images; None without labelled images."""
    labelled = images.has_label
    if not labelled.any():
        return None
    return images.task.chance(predictions[labelled], images.labels[labelled])


def _score(chance: Chance, images: ImageSet) -> str:
    return (
        f"{images.task.words} is {chance.score:.1%} on the {int(images.has_label.sum())} labelled images of "
        f"val, and {chance.expected:.1%} with answers to other images"
    )


def _class_doubts(
    predictions: Int64[np.ndarray, " images"], truth: Int64[np.ndarray, " images"], classes: Sequence[str]
) -> list[str]:
    images, found = len(truth), []
    if order := _better_order(predictions, truth, len(classes)):
        correct = int((predictions == truth).sum())
        fitting = int((predictions == order.columns[truth]).sum())
        found.append(
            f"{correct} of {images} val images are right with the logits in the stated order, and {fitting} "
            f"with {_describe(order, classes)}"
        )
    return found


def _confusion(
    predictions: Int64[np.ndarray, " images"], truth: Int64[np.ndarray, " images"], classes: int
) -> Int64[np.ndarray, "classes classes"]:
    """Number of images by true class (rows) and predicted class (columns)."""
    return np.bincount(truth * classes + predictions, minlength=classes**2).reshape(classes, classes)


def _better_order(
    predictions: Int64[np.ndarray, " images"], truth: Int64[np.ndarray, " images"], classes: int
) -> Order | None:
    """The best order of the logits, if it is better beyond what chance explains.

    The best of all orders is better than the stated one on the images that it was found on, whatever the
    teacher. So each half of the images judges the order that is best on the other half, on the images of the
    classes that this order moves.
    """
    halves = _halves(truth)
    gained = lost = images = 0
    for fitted in (halves, ~halves):
        order = _best_order(_confusion(predictions[fitted], truth[fitted], classes))
        judged = ~fitted & (order != np.arange(classes))[truth]
        stated, other = predictions == truth, predictions == order[truth]
        gained += int((judged & other & ~stated).sum())
        lost += int((judged & stated & ~other).sum())
        images += int(judged.sum())
    if not images or paired_interval(gained, lost, images)[0] <= GAIN:
        return None
    columns = _best_order(_confusion(predictions, truth, classes))
    return _order(columns)


def _halves(truth: Int64[np.ndarray, " images"]) -> Bool[np.ndarray, " images"]:
    """Every second image of each class."""
    half = np.zeros(len(truth), bool)
    for label in np.unique(truth):
        half[np.flatnonzero(truth == label)[::2]] = True
    return half


def _best_order(
    fit: Float[np.ndarray, "classes classes"] | Int64[np.ndarray, "classes classes"],
) -> np.ndarray:
    """The logit of each class with which the sum of ``fit`` is greatest (Kuhn 1955); of equal ones, its
    own."""
    # Of many classes, further matrices of this size may not fit into memory.
    fit = fit.astype(float)
    fit[np.diag_indices(len(fit))] += 1e-3
    return linear_sum_assignment(fit, maximize=True)[1]


def _order(columns: Int[np.ndarray, " classes"]) -> Order | None:
    moved = tuple(np.flatnonzero(columns != np.arange(len(columns))).tolist())
    return Order(columns, moved) if moved else None


def _describe(order: Order, classes: Sequence[str]) -> str:
    """Another order in words, with the way to set it."""
    # The class whose images each logit answers.
    names = [classes[int(index)] for index in np.argsort(order.columns)]
    usual = {
        "natural": labels.natural(classes),
        "alphabetical": tuple(sorted(classes)),
        "alphabetical, in any case": tuple(sorted(classes, key=str.casefold)),
        "reverse": tuple(reversed(classes)),
    }
    for words, candidate in usual.items():
        if candidate != tuple(classes) and all(
            candidate[order.columns[index]] == classes[index] for index in order.moved
        ):
            key = "natural" if words == "natural" else "its names in that order"
            return f"the {words} order ({labels.listing(candidate)}); set teacher.labels to {key}"
    pairs = [f"the logit of {classes[order.columns[i]]!r} fits {classes[i]!r}" for i in order.moved[:LISTED]]
    return (
        f"another one: {', '.join(pairs)}{', ...' if len(order.moved) > LISTED else ''}; set teacher.labels "
        f"to the names in the order of its logits, perhaps {labels.listing(names)}"
    )


def _attribute_doubts(
    scores: Float[np.ndarray, "images attributes"],
    present: Bool[np.ndarray, "images attributes"],
    names: Sequence[str],
) -> list[str]:
    found = []
    areas = _areas(scores, present)
    if order := _better_attribute_order(scores, present):
        stated = float(areas[order.moved, order.moved].mean())
        fitting = float(areas[order.moved, order.columns[list(order.moved)]].mean())
        found.append(
            f"of {len(order.moved)} attributes, the mean area under the ROC curve on val is {stated:.2f} "
            f"with the logits in the stated order, and {fitting:.2f} with {_describe(order, names)}"
        )
    deviations = _deviations(present)
    critical = -float(special.ndtri((1 - CONFIDENCE) / 2 / len(names)))
    own = areas.diagonal()
    wrong_way = np.flatnonzero((own < REVERSED) & (own < 0.5 - critical * deviations))
    if len(wrong_way) and not found:
        listed = ", ".join(f"{names[index]!r} ({own[index]:.2f})" for index in wrong_way[:LISTED])
        found.append(
            f"its logits are the wrong way round for {len(wrong_way)} attributes, by the area under the ROC "
            f"curve on val: {listed}"
        )
    return found


def _areas(
    scores: Float[np.ndarray, "images attributes"], present: Bool[np.ndarray, "images attributes"]
) -> Float[np.ndarray, "attributes attributes"]:
    """Area under the ROC curve of each attribute (rows) with each logit (columns); 0.5 where all images or
    none have the attribute (Mann and Whitney 1947)."""
    from scipy import stats  # slow to import, and needed for attributes alone

    ranks = stats.rankdata(scores, axis=0)
    positive = present.sum(0)[:, None]
    pairs = positive * (len(present) - positive)
    above = present.T.astype(float) @ ranks - positive * (positive + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), 0.5)


def _deviations(present: Bool[np.ndarray, "images attributes"]) -> Float[np.ndarray, " attributes"]:
    """Standard deviation of the area under the ROC curve of answers at chance, by attribute."""
    positive = present.sum(0)
    pairs = positive * (len(present) - positive)
    return np.where(pairs > 0, np.sqrt((len(present) + 1) / (12 * np.maximum(pairs, 1))), np.inf)


def _better_attribute_order(
    scores: Float[np.ndarray, "images attributes"], present: Bool[np.ndarray, "images attributes"]
) -> Order | None:
    """The best order of the logits, if it is better beyond what chance explains.

    On either half of the images, the order that is best on the other half must gain at least ``GAIN``, and
    more than two standard deviations.
    """
    half = np.arange(len(scores)) % 2 == 0
    for fitted in (half, ~half):
        order = _order(_best_order(_areas(scores[fitted], present[fitted])))
        if order is None:
            return None
        moved = list(order.moved)
        areas = _areas(scores[~fitted], present[~fitted])
        gain = float((areas[moved, order.columns[moved]] - areas[moved, moved]).mean())
        spread = float(np.sqrt(2 * (_deviations(present[~fitted])[moved] ** 2).sum()) / len(moved))
        if gain < GAIN or gain < 2 * spread:
            return None
    return _order(_best_order(_areas(scores, present)))
