"""Writing the prepared form of a data set, with Hugging Face `datasets`."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from pipeline import files, resources
from pipeline.data.images import reduce
from pipeline.data.listing import Listing, SourceFile
from pipeline.data.reading import UNLABELLED, in_order
from pipeline.data.splits import SPLITS, Splits, fingerprint
from pipeline.data.store import REPORT, VERIFIED
from pipeline.running import progress
from pipeline.tasks import SINGLE_LABEL

datasets.disable_progress_bars()


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
    files.write(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


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
