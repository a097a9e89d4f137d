"""The prepared form of a data set: one memory-mapped Arrow table per split, whose images stay encoded.

Hugging Face `datasets` writes and reads it: random access to images of any size, sharded files,
and the same files can be streamed.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError
from jaxtyping import Bool, Float32, Int64, UInt64
from PIL import Image

from pipeline import files, resources
from pipeline.data.images import decode, reduce
from pipeline.data.listing import Listing, SourceFile
from pipeline.data.reading import UNLABELLED, in_order
from pipeline.data.splits import SPLITS, Splits, fingerprint
from pipeline.running import progress
from pipeline.tasks import SINGLE_LABEL, TASKS, Task

REPORT = "report.json"
VERIFIED = "verified"
NAMED = 3
"""Number of images that a message names."""
datasets.disable_progress_bars()


@dataclass(frozen=True)
class ImageSet:
    """One split, read lazily from disk."""

    table: datasets.Dataset
    classes: tuple[str, ...]
    """Names of the classes, or of the attributes."""
    task: Task = SINGLE_LABEL
    folders: tuple[str, ...] = ()
    """Names of the class folders in the order of the classes, if some classes have other names."""

    def __len__(self) -> int:
        return len(self.table)

    def image(self, index: int) -> Image.Image:
        """Decode one image as RGB, upright."""
        return decode(self.table[index]["image"]["bytes"])

    def name(self, indices: Sequence[int] | Int64[np.ndarray, " some"]) -> str:
        """The sources of the first of some images, for a message."""
        names = [self.table[int(index)]["source"] for index in indices[:NAMED]]
        return ", ".join(names) + (", ..." if len(indices) > NAMED else "")

    @cached_property
    def labels(self) -> Int64[np.ndarray, " images"] | Float32[np.ndarray, "images attributes"]:
        """Class index of every image, or the share from 0 to 1 of each attribute that it has.

        Images without a label have -1 or NaN.
        """
        kind = np.int64 if self.task is SINGLE_LABEL else np.float32
        return np.asarray(self.table["label"], dtype=kind)

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
        known = VERIFIED in self.table.column_names
        return np.flatnonzero(self.table[VERIFIED]) if known else np.empty(0, np.int64)

    @cached_property
    def keys(self) -> UInt64[np.ndarray, " images"]:
        """First 64 bits of every image's content hash, which seed its views."""
        return np.asarray([int(value[:16], 16) for value in self.table["sha256"]], dtype=np.uint64)

    @cached_property
    def hashes(self) -> list[str]:
        """Content hash of every image as it is in the source, also if a reduced one is stored."""
        return list(self.table["sha256"])


def write(
    folder: Path,
    listing: Listing,
    splits: Splits,
    facts: dict[str, Any],
    *,
    train_side: int | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the three splits, the unlabelled images and ``report.json``; return the report.

    Args:
        folder: folder to write to.
        listing: everything that the source holds.
        splits: the images of each split.
        facts: source, path and license, recorded as they are.
        train_side: number of pixels to which the shorter side of training images is reduced; images of val
            and test stay as they are. None reduces none.
        notes: what a person should know about the splits, recorded with the notes of the listing.

    Raises:
        SourceError: an image vanished or changed since it was listed.
    """
    features = datasets.Features(
        image=datasets.Image(decode=False),
        label=datasets.ClassLabel(names=list(listing.classes))
        if listing.task == SINGLE_LABEL.name
        else datasets.List(datasets.Value("float32"), length=len(listing.classes)),
        sha256=datasets.Value("string"),
        source=datasets.Value("string"),
    )
    with_verified = datasets.Features(features | {VERIFIED: datasets.Value("bool")})
    identity = fingerprint(splits)
    if train_side is not None:
        identity = hashlib.sha256(f"{identity} {train_side}".encode()).hexdigest()
    classes = listing.classes
    (folder / REPORT).unlink(missing_ok=True)  # Incomplete data have no report.
    for name, images in splits.items():
        # The cache is beside the target and not in the user's home, where a stale one could be used again. It
        # takes as much room as the split, for as long as the split is written.
        training = name in ("train", UNLABELLED)
        with resources.scratch(folder.parent) as cache, resources.writing(folder / name):
            try:
                table = datasets.Dataset.from_generator(
                    partial(_rows, name, images, train_side if training else None),
                    features=with_verified if training and splits.verified else features,
                    cache_dir=str(cache),
                    fingerprint=f"{identity[:16]}-{name}",
                )
            except DatasetGenerationError as error:
                raise error.__cause__ or error from None
            if (folder / name).exists():
                shutil.rmtree(folder / name)
            table.save_to_disk(folder / name)
            del table  # Its memory is the cache's.
    report = {
        **facts,
        "data_sha256": identity,
        "task": listing.task,
        "classes": list(classes),
        "counts": {name: _counts(classes, images) for name, images in splits.items() if name in SPLITS},
        "images": {name: len(images) for name, images in splits.items()},
        "train_side": train_side,
        "rejected": [
            {"source": item.source, "reason": item.reason} for item in [*listing.rejected, *splits.rejected]
        ],
        "leaked_between_splits": splits.leaked,
        "repeated_within_split": splits.repeated,
    }
    if listing.folders:
        report["folders"] = dict(zip(listing.folders, classes, strict=True))
    if any(image.training_label is not None for image in splits.train):
        report["relabelled"] = splits.relabelled
    if splits.verified:
        report[VERIFIED] = splits.verified
    if every_note := [*listing.notes, *notes]:
        report["notes"] = every_note
    files.write(folder / REPORT, json.dumps(report, indent=2) + "\n")
    return report


def read(folder: Path, split: str) -> ImageSet:
    """Read a split of the prepared data."""
    report = read_report(folder)
    table = datasets.Dataset.load_from_disk(folder / split)
    folders = tuple(report.get("folders", ()))
    return ImageSet(table, tuple(report["classes"]), TASKS[report["task"]], folders)


def read_training_images(folder: Path) -> ImageSet:
    """The images that a student is trained on: the training split, then the unlabelled images if there are
    any."""
    train = read(folder, "train")
    if UNLABELLED not in read_report(folder)["images"]:
        return train
    more = read(folder, UNLABELLED)
    return ImageSet(datasets.concatenate_datasets([train.table, more.table]), train.classes, train.task)


def read_report(folder: Path) -> dict[str, Any]:
    """Read the counts, hashes and rejected files of the prepared data."""
    return json.loads((folder / REPORT).read_text())


def _counts(classes: Sequence[str], images: Sequence[SourceFile]) -> dict[str, int]:
    """Number of images per class, or with each attribute."""
    counts = Counter(
        index
        for image in images
        for index in (
            [image.label]
            if isinstance(image.label, int)
            else [number for number, share in enumerate(image.label) if share >= 0.5]
        )
    )
    return {classes[index]: count for index, count in sorted(counts.items())}


def _rows(name: str, images: Sequence[SourceFile], side: int | None) -> Iterator[dict[str, Any]]:
    def encode(image: SourceFile) -> bytes:
        return image.read() if side is None else reduce(image.read(), side)

    with progress.bar(f"store {name}", len(images)) as bar:
        for image, encoded in zip(images, in_order(encode, images), strict=True):
            yield {
                "image": {"bytes": encoded, "path": None},
                "label": image.label,
                "sha256": image.sha256,
                "source": image.source,
                VERIFIED: image.verified,
            }
            bar.update()
