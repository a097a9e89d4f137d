"""The one way to write a file: whole or not at all, under a temporary name until it is whole."""

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from pipeline import resources


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
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        set_aside(path, str(error), consequence)
        return False
    size = hashlib.sha256().digest_size
    if hashlib.sha256(memoryview(content)[:-size]).digest() != content[-size:]:
        set_aside(path, "its content does not match its checksum", consequence)
        return False
    return True


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
