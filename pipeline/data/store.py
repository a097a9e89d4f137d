"""The prepared form of a data set: one memory-mapped Arrow table per split, whose images stay encoded.

Any image of any size is read without the others. The files may be sharded, and Hugging Face `datasets` reads
and streams them, too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt64
from PIL import Image

from pipeline.data import arrow
from pipeline.data.arrow import Rows
from pipeline.data.images import decode
from pipeline.data.reading import UNLABELLED
from pipeline.tasks import SINGLE_LABEL, TASKS, Task

REPORT = "report.json"
VERIFIED = "verified"
NAMED = 3
"""Number of images that a message names."""


@dataclass(frozen=True)
class ImageSet:
    """One split, read lazily from disk."""

    rows: Rows
    classes: tuple[str, ...]
    """Names of the classes, or of the attributes."""
    task: Task = SINGLE_LABEL
    folders: tuple[str, ...] = ()
    """Names of the class folders in the order of the classes, if some classes have other names."""

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int, *, grey: bool = False) -> Image.Image:
        """Decode one image as RGB, upright; with ``grey``, a grey one stays in one channel."""
        return decode(self.rows.encoded(index), grey=grey)

    def select(self, indices: Sequence[int] | Int64[np.ndarray, " some"]) -> "ImageSet":
        """Some of the images, in memory."""
        return replace(self, rows=self.rows.select(indices))

    def name(self, indices: Sequence[int] | Int64[np.ndarray, " some"]) -> str:
        """The sources of the first of some images, for a message."""
        names = [self.rows.value("source", int(index)) for index in indices[:NAMED]]
        return ", ".join(names) + (", ..." if len(indices) > NAMED else "")

    @cached_property
    def labels(self) -> Int64[np.ndarray, " images"] | Float32[np.ndarray, "images attributes"]:
        """Class index of every image, or the share from 0 to 1 of each attribute that it has.

        Images without a label have -1 or NaN.
        """
        kind = np.int64 if self.task is SINGLE_LABEL else np.float32
        return np.asarray(self.rows.column("label"), dtype=kind)

    @cached_property
    def has_label(self) -> Bool[np.ndarray, " images"]:
        """Whether each image has a label."""
        lacking = self.labels < 0 if self.task is SINGLE_LABEL else np.isnan(self.labels).any(axis=1)
        return np.logical_not(lacking)

    @cached_property
    def fully_labelled(self) -> bool:
        """Whether all images have labels."""
        return bool(self.has_label.all())

    @cached_property
    def verified(self) -> Int64[np.ndarray, " some"]:
        """Indices of the images whose labels are known to be right, ascending."""
        known = self.rows.has(VERIFIED)
        return np.flatnonzero(self.rows.column(VERIFIED)) if known else np.empty(0, np.int64)

    @cached_property
    def keys(self) -> UInt64[np.ndarray, " images"]:
        """First 64 bits of every image's content hash, which seed its views."""
        return np.asarray([int(value[:16], 16) for value in self.rows.column("sha256")], dtype=np.uint64)

    @cached_property
    def hashes(self) -> list[str]:
        """Content hash of every image as it is in the source, also if a reduced one is stored."""
        return self.rows.column("sha256")

    @cached_property
    def sources(self) -> list[str]:
        """Where every image comes from, such as the path of its file."""
        return self.rows.column("source")


def read(folder: Path, split: str) -> ImageSet:
    """Read a split of the prepared data."""
    report = read_report(folder)
    folders = tuple(report.get("folders", ()))
    return ImageSet(arrow.read(folder / split), tuple(report["classes"]), TASKS[report["task"]], folders)


def read_training_images(folder: Path) -> ImageSet:
    """The images that a student is trained on: the training split, then the unlabelled images if there are
    any."""
    train = read(folder, "train")
    if UNLABELLED not in read_report(folder)["images"]:
        return train
    more = read(folder, UNLABELLED)
    return ImageSet(train.rows.followed_by(more.rows), train.classes, train.task)


def read_report(folder: Path) -> dict[str, Any]:
    """Read the counts, hashes and rejected files of the prepared data."""
    return json.loads((folder / REPORT).read_text())
