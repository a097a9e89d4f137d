"""Image files: how they are listed and decoded."""

import glob
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from pipeline.data import trees

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


def find(places: Iterable[str], report: Callable[[str], None] | None = None) -> Iterator[Path]:
    """Yield the image files at each place, in order: a file, a folder's images at any depth, or a pattern's.

    A place without images is yielded as it is, so that whoever reads it can report that nothing is there.

    Args:
        places: files, folders and patterns.
        report: receives one sentence per reason for which something below a folder or a pattern is left out.
    """
    for place in places:
        path = Path(place)
        if _is_folder(path):
            files = list_images(path, report)
        elif os.path.lexists(path):
            files = [path]
        else:
            # `Path.glob` does not take absolute patterns.
            matches = (Path(match) for match in glob.glob(place, recursive=True))  # noqa: PTH207
            inside: set[Path] = set()
            others: list[Path] = []
            for match in matches:
                if _is_folder(match):
                    # Two stars match the folders as well, whose files are then found on their own.
                    inside.update(list_images(match, None if "**" in place else report))
                elif match.suffix.lower() in SUFFIXES:
                    inside.add(match)
                else:
                    others.append(match)
            files = sorted(inside)
            _report(report, place, "is no image by its suffix", "are no images by their suffix", others)
        yield from files or [path]


def list_images(folder: Path, report: Callable[[str], None] | None = None) -> list[Path]:
    """List the images below a folder at any depth, in order; links are followed, and loops end.

    Args:
        folder: the folder.
        report: receives one sentence per reason for which something is left out.
    """
    tree = trees.walk(folder)
    others = [file for file in tree.files if file.suffix.lower() not in SUFFIXES]
    _report(report, str(folder), "is no image by its suffix", "are no images by their suffix", others)
    reasons: dict[str, list[Path]] = {}
    for item in tree.skipped:
        reasons.setdefault(item.reason, []).append(item.path)
    for reason, skipped in reasons.items():
        _report(report, str(folder), f"is left out ({reason})", f"are left out ({reason})", skipped)
    return [file for file in tree.files if file.suffix.lower() in SUFFIXES]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long
        return False


def _report(
    report: Callable[[str], None] | None, place: str, one: str, several: str, files: Sequence[Path]
) -> None:
    if report is None or not files:
        return
    names = ", ".join(trees.printable(file.name) for file in files[: trees.MOST_NAMES])
    more = f" and {len(files) - trees.MOST_NAMES:,} more" if len(files) > trees.MOST_NAMES else ""
    report(f"{trees.printable(place)}: {names}{more} {one if len(files) == 1 else several}")
