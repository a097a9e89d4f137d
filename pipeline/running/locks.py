"""A lock that one process holds at a time."""

import errno
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import DistilleryError

TAKEOVER_SECONDS = 10.0
"""Seconds in which a process that does the same work may end; a stage without its DVC takes less than one."""


class BusyError(DistilleryError):
    """Another process does the same work, or works in this folder, at the moment; the message names it."""


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold a lock while the block runs. The kernel releases it when this process ends, however it ends.

    On a file system without locks, nothing is held.

    Args:
        file: the lock, which stays behind and holds the number and the command of the last process.

    Raises:
        BusyError: another process holds the lock, and does not end soon.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + TAKEOVER_SECONDS
    with file.open("a+") as lock:
        while not _locked(lock.fileno()):
            if time.monotonic() > deadline:
                number, _, command = " ".join(file.read_text().split()).partition(" ")
                raise BusyError(
                    f"process {number or 'unknown'} ({command or 'another command'}) does the same work at "
                    f"the moment: let it finish, or end it; it holds {file}"
                )
            time.sleep(0.1)
        with suppress(OSError):  # a full disk: the lock holds without its text
            lock.truncate(0)
            lock.write(f"{os.getpid()} {' '.join(sys.orig_argv)}")
            lock.flush()
        yield


def _locked(descriptor: int) -> bool:
    try:
        # Unlike those of flock, these locks are not inherited by the processes that render images, which
        # live on for some seconds when their parent is killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
