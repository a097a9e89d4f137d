"""The one way to write a file: whole or not at all, under a temporary name until it is whole."""

import os
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


def write(path: Path, content: str | bytes) -> None:
    """Write a file, text in UTF-8, or replace it: whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array in NumPy's own format, or replace it: whole or not at all."""
    with replacing(path) as fresh, fresh.open("wb") as file:
        np.save(file, array)
