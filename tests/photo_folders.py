"""Folders of small images for tests, and what is said of them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import sources, splits
from pipeline.data.listing import Listing, SourceError


def paint(root: Path, *places: str, count: int = 2) -> None:
    """Put different small images into folders, or write the one that a place names."""
    for place in places:
        for number in range(count):
            file = root / place if Path(place).suffix == ".png" else root / place / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            seed = list(os.fsencode(file.relative_to(root)))
            pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)


def both(*folders: str) -> list[str]:
    """Two classes in each folder."""
    return [f"{folder}/{name}" for folder in folders for name in ("gato", "perro")]


def refusal(root: Path, *places: str) -> str:
    """The one line with which a folder of these places is refused."""
    paint(root, *places)
    with pytest.raises(SourceError) as caught:
        sources.read("folder", root)
    [line] = str(caught.value).splitlines()
    return line


def sizes(contents: Listing) -> dict[str | None, int]:
    """The number of images by split."""
    found = [image.split for image in contents.labelled]
    return {split: found.count(split) for split in sorted(set(found), key=str)}


def check(root: Path, **options: str) -> list[str]:
    """Read and split a folder as `prepare` does, and return what it notes."""
    anew = options.pop("splits", "original") == "new"
    contents = sources.read("folder", root, options.get("layout", "auto"))  # type: ignore[arg-type]
    assigned = splits.assign(
        contents.labelled, contents.unlabelled, train=None, val=0.3, test=0.3, seed=0, anew=anew
    )
    return [*contents.notes, *splits.check(contents, assigned, anew=anew)]


def rename(folder: Path, count: int, suffix: str) -> None:
    """Give the first files of a folder another suffix."""
    for file in sorted(folder.iterdir())[:count]:
        file.rename(file.with_suffix(suffix))
