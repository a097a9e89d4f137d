"""Labels of training images that the teacher contradicts: confident learning.

Northcutt et al. 2021, https://arxiv.org/abs/1911.00068. A label is suspicious if the teacher gives another
class a greater probability than the label's, and at least as great a one as it gives that class on average
on the images that are labelled so. Classes of which the teacher is rarely sure therefore have a lower
threshold than others.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int64, UInt64

from pipeline import files
from pipeline.data import views
from pipeline.data.store import ImageSet
from pipeline.data.views import ViewSpace
from pipeline.escaping import for_csv
from pipeline.statistics.average_precision import PRESENT
from pipeline.tasks import SINGLE_LABEL

METHOD = {"name": "confident learning", "source": "https://arxiv.org/abs/1911.00068"}

COLUMNS = ("file_name", "label", "suggestion", "label_probability", "suggestion_probability")
"""Columns of the list; ``file_name`` and ``label`` are those of ``data.labels``."""
ATTRIBUTE = "attribute"
"""Column of the list for images with attributes, whose labels are 0 and 1."""

TOLERANCE = 1e-6
"""Difference from a threshold that rounding explains. Without it, a class of which the teacher is equally
sure on all images could not be suggested."""
BLOCK = 2**22
"""Number of probabilities that are computed at once."""

Ask = Callable[[Int64[np.ndarray, " batch"], int], Float16[np.ndarray, "batch classes"]]
"""Function from image indices and a view number to the stored logits."""


@dataclass(frozen=True)
class Suspects:
    """Suspicious labels, those first whose suggestion is most probable against the label."""

    images: Int64[np.ndarray, " suspects"]
    """Index of the image."""
    labels: Int64[np.ndarray, " suspects"]
    """The given label: a class, or 0 or 1 for an attribute."""
    suggestions: Int64[np.ndarray, " suspects"]
    """The label that the teacher suggests."""
    label_probabilities: Float32[np.ndarray, " suspects"]
    """The teacher's probability of the given label."""
    suggestion_probabilities: Float32[np.ndarray, " suspects"]
    """The teacher's probability of its suggestion."""
    attributes: Int64[np.ndarray, " suspects"] | None = None
    """The attribute that the label is about; None for classes."""

    def __len__(self) -> int:
        return len(self.images)

    def at(self, rows: np.ndarray) -> "Suspects":
        """Some of them, in the order of ``rows``, which are indices or a mask."""
        return Suspects(
            self.images[rows],
            self.labels[rows],
            self.suggestions[rows],
            self.label_probabilities[rows],
            self.suggestion_probabilities[rows],
            None if self.attributes is None else self.attributes[rows],
        )


@dataclass(frozen=True)
class Findings:
    """What the search among the training images found."""

    suspects: Suspects
    judged: int
    """Number of labelled images with answers to views that show them alone."""
    not_judged: int
    """Number of labelled images that are mixed with others in each of their views."""


def search(images: ImageSet, ask: Ask, space: ViewSpace, number: int) -> Findings:
    """Find the suspicious labels of training images from the stored answers of the teacher.

    The probabilities of an image are the mean over the views that show it alone. Verified labels are not
    suspicious, whatever the teacher says; they count for the thresholds.

    Args:
        images: the images that have answers, of which some may have no label.
        ask: the stored answers.
        space: distribution of the views that were answered.
        number: number of views per image.
    """
    plain = plain_views(space, images.keys, number)
    judged = np.flatnonzero(images.has_label & plain.any(axis=1))
    single = images.task is SINGLE_LABEL
    probabilities = mean_probabilities(ask, judged, plain[judged], exclusive=single)
    labels = images.labels[judged]
    found = find(probabilities, labels) if single else find_attributes(probabilities, labels)
    chosen = replace(found, images=judged[found.images])
    chosen = chosen.at(~np.isin(chosen.images, images.verified))
    return Findings(chosen, len(judged), int(images.has_label.sum()) - len(judged))


def plain_views(
    space: ViewSpace, keys: UInt64[np.ndarray, " images"], number: int
) -> Bool[np.ndarray, "images views"]:
    """Tell which of the first ``number`` views of each image show no other image."""
    plain = np.ones((len(keys), number), dtype=bool)
    if space.mixes:
        for image, key in enumerate(keys.tolist()):
            for view in range(number):
                plain[image, view] = views.draw_mixture(space, key, view, len(keys)) is None
    return plain


def mean_probabilities(
    ask: Ask,
    images: Int64[np.ndarray, " some"],
    plain: Bool[np.ndarray, "some views"],
    *,
    exclusive: bool,
) -> Float32[np.ndarray, "some classes"]:
    """Compute the mean of the teacher's probabilities over some views of each image.

    Args:
        ask: the stored answers.
        images: indices of the images.
        plain: the views that count, at least one per image.
        exclusive: whether the probabilities of an image add up to 1, as those of classes do.
    """
    sums = np.zeros((len(images), ask(images[:1], 0).shape[1]), dtype=np.float32)
    for view in range(plain.shape[1]):
        for rows in _blocks(np.flatnonzero(plain[:, view]), sums.shape[1]):
            logits = torch.from_numpy(ask(images[rows], view)).float()
            sums[rows] += (logits.softmax(dim=1) if exclusive else logits.sigmoid()).numpy()
    # In place: of many images and classes, two such arrays may not fit into memory.
    sums /= plain.sum(axis=1, dtype=np.float32)[:, None]
    return sums


def find(
    probabilities: Float[np.ndarray, "images classes"], labels: Int64[np.ndarray, " images"]
) -> Suspects:
    """Find the labels that the probabilities contradict."""
    count, classes = probabilities.shape
    own = probabilities[np.arange(count), labels]
    sizes = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=own, minlength=classes)
    # A class without images has no threshold that could be reached.
    thresholds = np.where(sizes > 0, sums / np.maximum(sizes, 1) - TOLERANCE, np.inf)
    suggestions, best = np.zeros(count, np.int64), np.full(count, -np.inf, np.float32)
    for rows in _blocks(np.arange(count), classes):
        reached = np.where(probabilities[rows] >= thresholds, probabilities[rows], -np.inf)
        reached[np.arange(len(rows)), labels[rows]] = -np.inf
        suggestions[rows], best[rows] = reached.argmax(axis=1), reached.max(axis=1)
    suspicious = np.flatnonzero(best > own)
    # The normalised margin of Northcutt et al.
    order = suspicious[np.argsort((own - best)[suspicious], kind="stable")]
    return Suspects(order, labels[order], suggestions[order], own[order], best[order])


def find_attributes(
    probabilities: Float[np.ndarray, "images attributes"], shares: Float32[np.ndarray, "images attributes"]
) -> Suspects:
    """Find the labels that the probabilities contradict, for each attribute as for two classes."""
    parts = []
    for attribute, (chance, share) in enumerate(zip(probabilities.T, shares.T, strict=True)):
        found = find(np.stack([1 - chance, chance], axis=1), (share >= PRESENT).astype(np.int64))
        parts.append({**vars(found), "attributes": np.full(len(found), attribute)})
    both = Suspects(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    margin = both.label_probabilities - both.suggestion_probabilities
    return both.at(np.argsort(margin, kind="stable"))


def describe(suspects: Suspects, sources: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """Give the suspicious labels in words, by the columns of the list.

    Args:
        suspects: the suspicious labels.
        sources: place of each image in the data.
        names: names of the classes or attributes.
    """
    lines = []
    for position, image in enumerate(suspects.images.tolist()):
        label, suggestion = int(suspects.labels[position]), int(suspects.suggestions[position])
        about = None if suspects.attributes is None else names[int(suspects.attributes[position])]
        lines.append(
            {
                "file_name": sources[image],
                **({} if about is None else {ATTRIBUTE: about}),
                "label": names[label] if about is None else str(label),
                "suggestion": names[suggestion] if about is None else str(suggestion),
                "label_probability": float(suspects.label_probabilities[position]),
                "suggestion_probability": float(suspects.suggestion_probabilities[position]),
            }
        )
    return lines


def describe_others(suspects: Suspects, images: ImageSet) -> list[dict[str, Any]]:
    """Give the labels of all other labelled images, which have one class each."""
    suspicious = set(suspects.images.tolist())
    return [
        {"file_name": source, "label": images.classes[label]}
        for image, (source, label) in enumerate(zip(images.sources, images.labels.tolist(), strict=True))
        if image not in suspicious and images.has_label[image]
    ]


def write(path: Path, lines: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]] = ()) -> None:
    """Write the list as a CSV table that spreadsheets open and ``data.labels`` takes.

    Args:
        path: the table.
        lines: the suspicious labels, by column.
        others: images whose labels are not suspicious, by column, with fewer columns.
    """
    columns = list(dict.fromkeys([*(name for line in lines[:1] for name in line), *COLUMNS]))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    for line in (*lines, *others):
        writer.writerow({name: _cell(value) for name, value in line.items()})
    # With this mark, spreadsheets read names in UTF-8 as such.
    files.write(path, text.getvalue().encode("utf-8-sig"))


def _cell(value: str | float) -> str:
    return for_csv(value) if isinstance(value, str) else f"{value:.4f}"


def _blocks(values: Int64[np.ndarray, " values"], width: int) -> Sequence[Int64[np.ndarray, " block"]]:
    """The values in blocks for which ``BLOCK`` numbers are enough at ``width`` numbers per value."""
    return np.array_split(values, max(1, -(-len(values) * width // BLOCK)))
