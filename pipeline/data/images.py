"""Image files: how they are listed and decoded."""

import glob
import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from pipeline import pixels
from pipeline.errors import DistilleryError

JPEG_SIDE = 65_500
"""Most pixels that a JPEG's side can have."""
SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
}
"""Suffixes of the files in a folder that are taken for images."""


class ImageFileError(DistilleryError):
    """A file cannot be read as an image; the message names the file and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.reason = reason
        """What is wrong, without the name, such as "it is empty"."""

    def __str__(self) -> str:
        name, reason = self.args
        if reason.startswith("it "):
            return f"{name} {reason.removeprefix('it ')}"
        return f"{name} cannot be read as an image: {reason}"


@contextmanager
def opened(
    encoded: bytes | Path, at_least: int | None = None, name: str = "the image"
) -> Iterator[Image.Image]:
    """Yield an image as RGB of 8 bits, upright, on white where it is transparent (see ``pipeline.pixels``).

    Threads inside this block hold a bounded number of pixels together; a thread may be inside one only. The
    image is closed at the end of the block.

    Args:
        encoded: an image file or its content.
        at_least: with it, a large JPEG is decoded at a half, a quarter or an eighth of its size, which takes
            less time and memory; no side gets fewer pixels than that.
        name: what the content is called in an error; a file is called by its path.

    Raises:
        ImageFileError: the file is missing, not a regular file, too large, or damaged in any way.
    """
    name, content = _read(encoded, name)
    try:
        with pixels.opened(content, at_least) as image:
            yield image
    except pixels.UnreadableImageError as error:
        raise ImageFileError(name, str(error)) from error


def decode(encoded: bytes | Path, at_least: int | None = None, name: str = "the image") -> Image.Image:
    """Return what ``opened`` yields, for as long as it is needed."""
    name, content = _read(encoded, name)
    try:
        return pixels.decode(content, at_least)
    except pixels.UnreadableImageError as error:
        raise ImageFileError(name, str(error)) from error


def read_bytes(path: Path) -> bytes:
    """Read an image file, which must be a regular file of at most ``pixels.BYTES`` bytes.

    Raises:
        ImageFileError: the file cannot be read, or is a folder, a pipe, a socket or a device.
    """
    try:
        # Looked at before, since a device may react when it is opened; a pipe without a writer would block.
        _check_regular(path, path.stat())
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            _check_regular(path, os.fstat(file.fileno()))
            return file.read(pixels.BYTES + 1) or b""
    except FileNotFoundError as error:
        raise ImageFileError(printable(path), "it does not exist") from error
    except OSError as error:
        raise ImageFileError(printable(path), error.strerror or str(error)) from error
    except ValueError as error:  # a zero byte in the name
        raise ImageFileError(printable(path), str(error)) from error


def printable(path: Path) -> str:
    """Return a path on one line, in characters that any terminal prints."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def reduce(encoded: bytes, side: int) -> bytes:
    """Reduce an encoded image to a JPEG whose shorter side has ``side`` pixels, upright.

    An image that is small enough already, or would be too long for a JPEG, is returned as it is.

    Raises:
        ImageFileError: the image cannot be decoded.
    """
    try:
        size = pixels.measure(encoded)
        if min(size) <= side or max(size) * side > min(size) * JPEG_SIDE:
            return encoded
        with pixels.opened(encoded, at_least=2 * side) as image:
            width, height = (round(length * side / min(image.size)) for length in image.size)
            reduced = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    except pixels.UnreadableImageError as error:
        raise ImageFileError("the image", str(error)) from error
    buffer = io.BytesIO()
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


def _read(encoded: bytes | Path, name: str) -> tuple[str, bytes]:
    if isinstance(encoded, Path):
        return printable(encoded), read_bytes(encoded)
    return name, encoded


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageFileError(printable(path), "it is a folder without images")
    if not stat.S_ISREG(status.st_mode):
        raise ImageFileError(printable(path), "it is not a regular file but a pipe, a socket or a device")
    if status.st_size > pixels.BYTES:
        raise ImageFileError(
            printable(path), f"it has {status.st_size:,} bytes; at most {pixels.BYTES:,} are read"
        )
