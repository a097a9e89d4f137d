"""The one way to write a file: whole or not at all, under a temporary name until it is whole."""

import fcntl
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from pipeline import resources

BUFFER = 2**20
"""Bytes of a file that are in memory at once."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of ``path`` when the block ends without an error.

    The content is on the disk before the name changes, so that a kill or a power cut leaves either the
    previous file or the new one. The temporary name holds the process number: two processes never share it.
    Missing folders are created.

    Args:
        path: the file to write or to replace.

    Raises:
        ResourceError: there is no room for the file, or this user may not write it.
    """
    fresh = resources.temporary(path)
    with resources.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield fresh
            with fresh.open("rb") as written:
                os.fsync(written.fileno())
            fresh.replace(path)
        finally:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock while the block runs; another process waits for it. It ends with the process.

    The file stays: were it removed, two processes could hold locks on two files of one name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write(path: Path, content: str | bytes) -> None:
    """Write a file, text in UTF-8, or replace it: whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


def seal(path: Path) -> None:
    """Append the SHA-256 of a file to it, 32 bytes."""
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.write(digest)


def intact(path: Path, consequence: str) -> bool:
    """Whether there is a file that is as ``seal`` left it. Anything else in its place is set aside.

    Args:
        path: the file.
        consequence: what happens without it.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - digest.digest_size
            while left > 0 and (part := file.read(min(left, BUFFER))):
                digest.update(part)
                left -= len(part)
            sealed = left == 0 and file.read() == digest.digest()
    except FileNotFoundError:
        return False
    except OSError as error:
        set_aside(path, str(error), consequence)
        return False
    if not sealed:
        set_aside(path, "its content does not match its checksum", consequence)
    return sealed


def set_aside(path: Path, reason: str, consequence: str) -> None:
    """Rename a damaged file, or what lies in its place, and say so in one line on standard error.

    Args:
        path: the file; ``.damaged`` is added to its name, in place of an earlier damaged one.
        reason: what is wrong with it.
        consequence: what happens without it.
    """
    aside = path.with_name(f"{path.name}.damaged")
    number = 1
    while aside.is_dir():  # a folder is not replaced
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    if path.is_dir() and not path.is_symlink():
        aside.unlink(missing_ok=True)
    path.replace(aside)
    print(
        f"note: {path} is damaged ({reason}) and was renamed to {aside.name}; {consequence}", file=sys.stderr
    )


def write_array(path: Path, array: np.ndarray, *, sealed: bool = False) -> None:
    """Write an array in NumPy's own format, or replace it: whole or not at all; ``sealed`` as by ``seal``."""
    with replacing(path) as fresh:
        with fresh.open("wb") as file:
            np.save(file, array)
        if sealed:
            seal(fresh)


@contextmanager
def growing_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends rows to an array file, of which nothing stays in memory.

    The file equals that of ``write_array`` byte for byte, and is written whole or not at all.

    Args:
        path: the file to write or to replace.
        shape: the shape of the whole array.
        dtype: the type of its elements.

    Raises:
        ValueError: the rows were more or fewer than ``shape`` says.
    """
    with replacing(path) as fresh, fresh.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        expected = file.tell() + math.prod(shape) * dtype.itemsize

        def append(rows: np.ndarray) -> None:
            file.write(np.ascontiguousarray(rows, dtype).data)

        yield append
        if file.tell() != expected:
            raise ValueError(f"{path}: {file.tell()} bytes were written, and {shape} has {expected}")
