"""What a folder of photographs holds, before anything is prepared or trained."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import pixels
from pipeline.data import listing, preparation, tables
from pipeline.data.listing import SourceFile
from pipeline.data.settings import DataSettings
from pipeline.data.trees import printable

SAMPLE = 256
"""Number of images whose sizes are looked at."""
SMALL_VAL = 60
"""Number of validation images that a small data set gets, if that is no more than a fifth of its images."""


@dataclass(frozen=True)
class Survey:
    """The content of a folder, and the time that it took to read it."""

    data: DataSettings
    """Settings with which the folder was read."""
    classes: tuple[str, ...]
    """Names of the classes or attributes."""
    images: Mapping[str, int]
    """Number of images per split, those without labels among them."""
    per_class: tuple[tuple[str, int], ...]
    """Names and numbers of training images of the classes, most images first; empty for attributes."""
    sides: tuple[int, int]
    """Median width and height in pixels."""
    rejected: str
    """Numbers of the files that are not used, by reason; empty if all are."""
    notes: tuple[str, ...]
    """What a person should know about the folder, one sentence each."""
    seconds: float
    """Time in which the images were read, decoded and hashed."""
    sample: tuple[bytes, ...]
    """Some encoded training images."""
    sample_labels: tuple[Any, ...] = ()
    """Their labels."""
    test_is_drawn: bool = True
    """Whether the test images are drawn from all images, as ``data.test`` says."""

    @property
    def training(self) -> int:
        """Number of images that a student learns from."""
        return self.images["train"] + self.images.get("unlabelled", 0)

    def lines(self) -> list[str]:
        """The survey in sentences for a terminal."""
        total = sum(self.images.values())
        kinds = "attributes" if self.data.source == "attributes" else "classes"
        parts = ", ".join(f"{count:,} {name}" for name, count in self.images.items())
        result = [
            f"{printable(self.data.path)}: {len(self.classes):,} {kinds}, {total:,} images ({parts}), "
            f"typically {self.sides[0]} x {self.sides[1]} pixels"
        ]
        if self.per_class:
            (most, many), (least, few) = self.per_class[0], self.per_class[-1]
            if many == few:
                result.append(f"training images per class: {many:,}")
            else:
                result.append(
                    f"training images per class: {few:,} ({printable(least)}) to {many:,} ({printable(most)})"
                )
        if self.rejected:
            result.append(f"not used: {self.rejected}; artifacts/data/report.json will list them")
        return result + [f"note: {note}" for note in self.notes]


def look(
    data: DataSettings,
    seed: int,
    *,
    drawn: bool = False,
    share_of_test: Callable[[int], int | float] | None = None,
) -> Survey:
    """Read a folder as the stage `prepare` will, without writing anything.

    Args:
        data: settings of the data.
        seed: seed of the splits.
        drawn: whether ``data.val`` was given by a person. Otherwise a small data set gets a larger share.
        share_of_test: ``data.test`` for a number of labelled images, of which test images are drawn; None
            where a person has given it.

    Raises:
        SourceError: the folder cannot be used; the message says what it should hold.
    """
    began = time.perf_counter()
    contents = preparation.read(data)
    if not drawn:
        data = data.model_copy(update={"val": _share_of_val(len(contents.labelled))})
    test_is_drawn = data.splits != "val_as_test" and (
        data.splits == "new" or not any(file.split == "test" for file in contents.labelled)
    )
    if share_of_test is not None and test_is_drawn and contents.task == "single_label":
        data = data.model_copy(update={"test": share_of_test(len(contents.labelled))})
    assigned, notes = preparation.divide(contents, data, seed)
    notes = [*contents.notes, *notes]
    seconds = time.perf_counter() - began
    step = max(1, len(assigned.train) // SAMPLE)
    chosen = assigned.train[::step][:SAMPLE]
    sample = tuple(file.read() for file in chosen)
    widths, heights = zip(*map(pixels.measure, sample), strict=True)
    rejected = [*contents.rejected, *assigned.rejected]
    return Survey(
        data=data,
        classes=contents.classes,
        images={name: len(files) for name, files in assigned.items()},
        per_class=_per_class(contents.classes, assigned.train) if contents.task == "single_label" else (),
        sides=(round(float(np.median(widths))), round(float(np.median(heights)))),
        rejected=listing.count_kinds(rejected) if rejected else "",
        notes=tuple(notes),
        seconds=seconds,
        sample=sample,
        sample_labels=tuple(file.label for file in chosen),
        test_is_drawn=test_is_drawn,
    )


def source_of(folder: Path) -> str:
    """The key of ``sources.SOURCES`` that reads a folder: one with a table holds attributes."""
    named = (tables.METADATA, tables.CELEBA)
    inside = [folder, *(child for child in folder.iterdir() if child.is_dir())]
    return "attributes" if any((place / name).is_file() for place in inside for name in named) else "folder"


def _share_of_val(images: int) -> float:
    return min(0.2, max(0.1, SMALL_VAL / images)) if images else 0.1


def _per_class(classes: Sequence[str], training: Sequence[SourceFile]) -> tuple[tuple[str, int], ...]:
    counts = Counter(file.label for file in training)
    named = [(name, counts[label]) for label, name in enumerate(classes)]
    return tuple(sorted(named, key=lambda item: -item[1]))
