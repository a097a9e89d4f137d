"""Reading the files of a source: each one is an image that can be decoded, or is rejected with its reason."""

import glob
import hashlib
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pipeline.data import images, names, trees
from pipeline.data.images import SUFFIXES, ImageFileError
from pipeline.data.listing import Rejected, SourceError, SourceFile, content_hash
from pipeline.running import progress

UNLABELLED = "unlabelled"
"""Name of the split of images without labels, and of their folder."""

OTHER_FORMATS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC, in which Apple's devices store photographs"),
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"),
        "a camera's raw data",
    ),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "Netpbm"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "a film"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys((".eps", ".ps"), "PostScript"),
    ".jxl": "JPEG XL",
    ".pdf": "PDF",
    ".psd": "Photoshop",
    ".svg": "a drawing in SVG",
    ".tga": "Targa",
}
"""Name of the format by the suffix of pictures that are not read; they must be converted."""

DRAWINGS = ("a film", "PDF", "PostScript", "a drawing in SVG")
"""Formats of files that often lie beside photographs and are none."""

CONTENTS = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("WebP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("BMP", re.compile(rb"BM.{4}\0{4}", re.DOTALL)),
    ("AVIF", re.compile(rb".{4}ftypavi[fs]", re.DOTALL)),
    ("HEIC", re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)),
)
"""Name and first bytes of the formats of photographs."""

MOST_THREADS = 8
"""Number of threads that read images, at most."""

T = TypeVar("T")
R = TypeVar("R")

Labelled = tuple[str | None, int | tuple[float, ...], Path]
"""Split, label and file."""


def is_picture(file: Path) -> bool:
    """Return whether the suffix is that of a picture, also of one whose format is not read."""
    return file.suffix.lower() in SUFFIXES or file.suffix.lower() in OTHER_FORMATS


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int = MOST_THREADS) -> Iterator[R]:
    """Yield the results of a function, computed by several threads, in the order of the items.

    Twice as many results as threads are computed ahead at most, so that memory is bounded.
    """
    threads = min(threads, (os.cpu_count() or 1) + 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_files(root: Path, files: Sequence[Labelled]) -> tuple[list[SourceFile], list[Rejected]]:
    """Decode all files once, to hash their pixels.

    Args:
        root: folder relative to which the files are called.
        files: split, label and path of each.

    Returns:
        The images that can be decoded, and the other files with their reasons, both in the given order.
    """
    reading = in_order(lambda item: _read_file(root, *item), files)
    results = []
    with progress.bar("read", len(files)) as bar:
        for result in reading:
            results.append(result)
            bar.update()
    return (
        [item for item in results if isinstance(item, SourceFile)],
        [item for item in results if isinstance(item, Rejected)],
    )


def read_unlabelled(
    root: Path, tree: trees.Tree, attributes: int | None = None
) -> tuple[list[SourceFile], list[Rejected]]:
    """Read the images without labels in the folder `unlabelled` of a source.

    Args:
        root: folder that holds `unlabelled`.
        tree: everything below the source.
        attributes: number of attributes that an image may have; None if images have one class each.
    """
    unknown = -1 if attributes is None else (math.nan,) * attributes
    return read_files(tree.root, [(None, unknown, file) for file in tree.files if is_unlabelled(root, file)])


def is_unlabelled(root: Path, file: Path) -> bool:
    """Return whether a file is in the folder `unlabelled`, or one called like it, of a source."""
    return file.is_relative_to(root) and names.is_unlabelled(file.relative_to(root).parts[0])


def reject_skipped(tree: trees.Tree) -> list[Rejected]:
    """List what was not taken for a file when the folder was listed: hidden files, loops, pipes."""
    return [
        Rejected(
            place(tree.root, item.path),
            item.reason,
            "damaged" if item.kind == "unreadable" and item.path.suffix.lower() in SUFFIXES else item.kind,
        )
        for item in tree.skipped
    ]


def reject_unused(
    tree: trees.Tree, used: Iterable[Path], reason: Callable[[Path], Rejected]
) -> list[Rejected]:
    """List every file below the folder that was neither used nor is in `unlabelled`.

    Args:
        tree: everything below the source.
        used: files that were read.
        reason: function that gives the rejection of an image file; other files are no images.
    """
    used = set(used)
    return [
        reason(file) if file.suffix.lower() in SUFFIXES else reject_suffix(tree.root, file)
        for file in tree.files
        if file not in used
    ]


def reject_picture(root: Path, file: Path) -> Rejected:
    """Give the rejection of a file that was meant to be used and has not the suffix of an image.

    It is a lost picture if its format or its first bytes are those of photographs, unless the same one is
    beside it in a format that is read.
    """
    rejected = reject_suffix(root, file)
    if not os.path.lexists(file):
        beside = sorted(other.name for other in file.parent.glob(f"{glob.escape(file.name)}.*"))
        hint = f"; {trees.printable(beside[0])} is: the table must name the suffix" if beside else ""
        return Rejected(rejected.source, f"there is no such file{hint}", "missing")
    suffix = file.suffix.lower()
    reason, is_photograph = rejected.reason, OTHER_FORMATS.get(suffix, DRAWINGS[0]) not in DRAWINGS
    if suffix not in OTHER_FORMATS and (content := _content(file)):
        reason, is_photograph = f"{reason}, but its content is {content}; rename it", True
    stem = file.with_suffix("")
    bases = [stem, *(stem.with_name(stem.name + other) for other in SUFFIXES)]
    others = [base.with_suffix(case(base.suffix)) for base in bases for case in (str.lower, str.upper)]
    if not is_photograph or any(other.suffix.lower() in SUFFIXES and other.exists() for other in others):
        return Rejected(rejected.source, reason, "no image")
    return Rejected(rejected.source, reason, "format")


def _content(file: Path) -> str | None:
    """Return the format of photographs that a file's first bytes are of."""
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
    except OSError:
        return None
    return next((name for name, first in CONTENTS if first.match(head)), None)


def reject_suffix(root: Path, file: Path) -> Rejected:
    """Give the rejection of a file that is no image by its suffix."""
    suffix = file.suffix.lower()
    reason = f"not an image: suffix {trees.printable(file.suffix) or 'missing'}"
    if suffix in OTHER_FORMATS:
        reason = f"not read: {file.suffix} is {OTHER_FORMATS[suffix]}; convert it to JPEG or PNG"
    return Rejected(place(root, file), reason, "no image")


def place(root: Path, file: Path) -> str:
    """Return the place of a file in the source, as printable text."""
    return trees.printable(file.relative_to(root))


def _read_file(
    root: Path, split: str | None, label: int | tuple[float, ...], file: Path
) -> SourceFile | Rejected:
    source = place(root, file)
    if file.suffix.lower() not in SUFFIXES:
        return reject_picture(root, file)
    try:
        encoded = images.read_bytes(file)
        with images.opened(encoded) as image:
            pixels = content_hash(image)
    except ImageFileError as error:
        if not file.exists():
            return Rejected(source, "there is no such file", "missing")
        return Rejected(source, f"cannot be decoded: {error.reason}", "damaged")
    digest = hashlib.blake2b(encoded).digest()
    return SourceFile(split, label, source, pixels, lambda: _read_again(file, source, digest))


def _read_again(file: Path, source: str, digest: bytes) -> bytes:
    """Read an encoded image, which must be the one that was hashed."""
    try:
        encoded = images.read_bytes(file)
    except ImageFileError as error:
        raise SourceError(
            f"{source} could not be read a second time ({error.reason}); prepare again when nothing "
            "changes the folder"
        ) from error
    if hashlib.blake2b(encoded).digest() != digest:
        raise SourceError(
            f"{source} changed while it was read; prepare again when nothing changes the folder"
        )
    return encoded
