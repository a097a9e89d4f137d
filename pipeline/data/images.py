"""Image files: found where a user points, and decoded."""

import glob
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageOps

JPEG_SIDE = 65_500
"""Most pixels of a JPEG's side."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""What is taken for an image in a folder."""


def decode(encoded: bytes | Path, at_least: int | None = None) -> Image.Image:
    """An RGB image, turned upright as its EXIF orientation says.

    With ``at_least`` a large JPEG is decoded in a half, quarter or eighth of its size, which takes less time;
    no side has fewer pixels than that.

    Raises:
        ValueError: its grey values have more than 8 bits, which Pillow would cut off.
    """
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"grey values of more than 8 bits (mode {image.mode}); convert them to 8")
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        return ImageOps.exif_transpose(image).convert("RGB")


def reduce(encoded: bytes, side: int) -> bytes:
    """An image whose shorter side has at most ``side`` pixels: itself, or a JPEG of that many, upright.

    What would be too long for a JPEG stays as it is.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if min(image.size) <= side or max(image.size) * side > min(image.size) * JPEG_SIDE:
            return encoded
    image = decode(encoded, at_least=2 * side)
    width, height = (round(length * side / min(image.size)) for length in image.size)
    buffer = io.BytesIO()
    reduced = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    reduced.save(buffer, "JPEG", quality=95, subsampling=0, comment=b"")  # an inherited one may be too long
    return buffer.getvalue()


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
