"""Image files: found where a user points, and decoded."""

import glob
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""What is taken for an image in a folder."""


def decode(encoded: bytes | Path) -> Image.Image:
    """An RGB image, turned upright as its EXIF orientation says."""
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def find(places: Iterable[str]) -> Iterator[Path]:
    """The files at each place, in order: a file, a folder's images at any depth, or what a pattern matches.

    A place without any is given back as it is, so that whoever reads it can say that nothing is there.
    """
    for place in places:
        path = Path(place)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            found = [path]
        else:
            # `Path.glob` takes no absolute pattern.
            found = sorted(Path(match) for match in glob.glob(place, recursive=True))  # noqa: PTH207
        yield from found or [path]
