"""Image files: found where a user points, and decoded."""

import glob
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""What is taken for an image in a folder."""


def decode(encoded: bytes | Path) -> Image.Image:
    """An RGB image, turned upright as its EXIF orientation says.

    Raises:
        ValueError: its grey values have more than 8 bits, which Pillow would cut off.
    """
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"grey values of more than 8 bits (mode {image.mode}); convert them to 8")
        return ImageOps.exif_transpose(image).convert("RGB")


def find(places: Iterable[str]) -> Iterator[Path]:
    """The files at each place, in order: a file, a folder's images at any depth, or those of a pattern.

    A place without any is given back as it is, so that whoever reads it can say that nothing is there.
    """
    for place in places:
        path = Path(place)
        if path.is_dir():
            found = below(path)
        elif path.exists():
            found = [path]
        else:
            # `Path.glob` takes no absolute pattern.
            matches = (Path(match) for match in glob.glob(place, recursive=True))  # noqa: PTH207
            inside = (file for match in matches for file in (below(match) if match.is_dir() else [match]))
            found = sorted({file for file in inside if file.suffix.lower() in SUFFIXES})
        yield from found or [path]


def below(folder: Path) -> list[Path]:
    """A folder's images at any depth, in order."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
