"""The prepared form of a data set: one Arrow table a split, memory-mapped, images kept encoded.

Hugging Face `datasets` writes and reads it: random access to images of any size, sharded files,
and the same files can be streamed.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from jaxtyping import Int64, UInt64
from PIL import Image

from pipeline.data.sources import Candidate, Listing, decode
from pipeline.data.splits import Splits, fingerprint

REPORT = "report.json"

datasets.disable_progress_bars()


@dataclass(frozen=True)
class ImageSet:
    """One split, read lazily from disk."""

    table: datasets.Dataset
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table)

    def image(self, index: int) -> Image.Image:
        """The decoded RGB image, upright."""
        return decode(self.table[index]["image"]["bytes"])

    @cached_property
    def labels(self) -> Int64[np.ndarray, " images"]:
        """Class index of every image."""
        return np.asarray(self.table["label"], dtype=np.int64)

    @cached_property
    def keys(self) -> UInt64[np.ndarray, " images"]:
        """The first 64 bits of every image's content hash, which its views are drawn from."""
        return np.asarray([int(value[:16], 16) for value in self.table["sha256"]], dtype=np.uint64)

    @cached_property
    def hashes(self) -> list[str]:
        """Content hash of every image."""
        return list(self.table["sha256"])


def write(folder: Path, listing: Listing, splits: Splits, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the three splits and ``report.json``; returns the report.

    ``facts`` (source, path, license) are recorded as they are.
    """
    features = datasets.Features(
        image=datasets.Image(decode=False),
        label=datasets.ClassLabel(names=list(listing.classes)),
        sha256=datasets.Value("string"),
        source=datasets.Value("string"),
    )
    identity = fingerprint(splits)
    classes = listing.classes
    folder.mkdir(parents=True, exist_ok=True)
    # The cache lies beside the target and not in the user's home, where a stale one could be met again.
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        for name, images in splits.items():
            table = datasets.Dataset.from_generator(
                partial(_rows, images),
                features=features,
                cache_dir=cache,
                fingerprint=f"{identity[:16]}-{name}",
            )
            shutil.rmtree(folder / name, ignore_errors=True)
            table.save_to_disk(folder / name)
    report = {
        **facts,
        "data_sha256": identity,
        "classes": list(classes),
        "counts": {
            name: {classes[label]: count for label, count in sorted(Counter(i.label for i in images).items())}
            for name, images in splits.items()
        },
        "images": {name: len(images) for name, images in splits.items()},
        "rejected": [
            {"source": item.source, "reason": item.reason} for item in [*listing.rejected, *splits.rejected]
        ],
        "leaked_between_splits": splits.leaked,
        "repeated_within_split": splits.repeated,
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def read(folder: Path, split: str) -> ImageSet:
    """A split of the prepared data."""
    table = datasets.Dataset.load_from_disk(folder / split)
    return ImageSet(table, tuple(table.features["label"].names))


def read_report(folder: Path) -> dict[str, Any]:
    """Counts, hashes and rejected files of the prepared data."""
    return json.loads((folder / REPORT).read_text())


def _rows(images: Sequence[Candidate]) -> Iterator[dict[str, Any]]:
    for image in images:
        yield {
            "image": {"bytes": image.read(), "path": None},
            "label": image.label,
            "sha256": image.sha256,
            "source": image.source,
        }
