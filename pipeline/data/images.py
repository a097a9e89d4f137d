"""Image files: how they are listed and decoded."""

import glob
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageOps

JPEG_SIDE = 65_500
"""Most pixels that a JPEG's side can have."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""Suffixes of the files in a folder that are taken for images."""


def decode(encoded: bytes | Path, at_least: int | None = None) -> Image.Image:
    """Decode an image as RGB, turned upright by its EXIF orientation.

    With ``at_least`` a large JPEG is decoded at a half, a quarter or an eighth of its size, which takes less
    time; no side gets fewer pixels than that.

    Raises:
        ValueError: the grey values have more than 8 bits, which Pillow would cut off.
    """
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"grey values of more than 8 bits (mode {image.mode}); convert them to 8")
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        return ImageOps.exif_transpose(image).convert("RGB")


def reduce(encoded: bytes, side: int) -> bytes:
    """Reduce an encoded image to a JPEG whose shorter side has ``side`` pixels, upright.

    An image that is small enough already, or would be too long for a JPEG, is returned as it is.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if min(image.size) <= side or max(image.size) * side > min(image.size) * JPEG_SIDE:
            return encoded
    image = decode(encoded, at_least=2 * side)
    width, height = (round(length * side / min(image.size)) for length in image.size)
    buffer = io.BytesIO()
    reduced = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    reduced.save(
        buffer, "JPEG", quality=95, subsampling=0, comment=b""
    )  # an inherited comment may be too long
    return buffer.getvalue()


def find(places: Iterable[str]) -> Iterator[Path]:
    """Yield the image files at each place, in order: a file, a folder's images at any depth, or a pattern's.

    A place without images is yielded as it is, so that whoever reads it can report that nothing is there.
    """
    for place in places:
        path = Path(place)
        if path.is_dir():
            files = list_images(path)
        elif path.exists():
            files = [path]
        else:
            # `Path.glob` does not take absolute patterns.
            matches = (Path(match) for match in glob.glob(place, recursive=True))  # noqa: PTH207
            inside = (
                file for match in matches for file in (list_images(match) if match.is_dir() else [match])
            )
            files = sorted({file for file in inside if file.suffix.lower() in SUFFIXES})
        yield from files or [path]


def list_images(folder: Path) -> list[Path]:
    """List the images below a folder at any depth, in order."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
