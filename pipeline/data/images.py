"""Image files: how they are listed and decoded."""

import glob
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from pipeline import pixels
from pipeline.data import trees
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
    """A file cannot be read; the message names the file and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        subject = f"{name} cannot be read as an image:"
        super().__init__(f"{name} {reason[3:]}" if reason.startswith("it ") else f"{subject} {reason}")
        self.name = name
        self.reason = reason
        """What is wrong, without the name, such as "it is empty"."""

    def __reduce__(self) -> tuple[type["ImageFileError"], tuple[str, str]]:
        return ImageFileError, (self.name, self.reason)


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


def decode(
    encoded: bytes | Path, at_least: int | None = None, name: str = "the image", *, grey: bool = False
) -> Image.Image:
    """Return what ``opened`` yields, for as long as it is needed; with ``grey``, see ``pixels.decode``."""
    name, content = _read(encoded, name)
    try:
        return pixels.decode(content, at_least, grey=grey)
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
        raise ImageFileError(trees.printable(path), "it does not exist") from error
    except OSError as error:
        raise ImageFileError(trees.printable(path), error.strerror or str(error)) from error
    except ValueError as error:  # a zero byte in the name
        raise ImageFileError(trees.printable(path), str(error)) from error


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


def _read(encoded: bytes | Path, name: str) -> tuple[str, bytes]:
    if isinstance(encoded, Path):
        return trees.printable(encoded), read_bytes(encoded)
    return name, encoded


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageFileError(trees.printable(path), "it is a folder without images")
    if not stat.S_ISREG(status.st_mode):
        raise ImageFileError(trees.printable(path), "it is a pipe, a socket or a device")
    if status.st_size > pixels.BYTES:
        raise ImageFileError(
            trees.printable(path), f"it has {status.st_size:,} bytes; at most {pixels.BYTES:,} are read"
        )
