"""The process that a stage runs in: errors in one line, and no life after its parent's death."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.errors import DistilleryError
from teachers.errors import TeacherError

POLL_SECONDS = 0.5
FAREWELL_SECONDS = 15.0
"""How long a process beside this one may take to end."""


@contextmanager
def stage() -> Iterator[None]:
    """Run a stage under `dvc repro`: it ends with DVC, and errors of the user are lines, not tracebacks."""
    end_with("dvc")
    with one_line_errors():
        yield


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can correct into one line per problem and exit status 1."""
    try:
        yield
    except (DistilleryError, TeacherError) as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        raise SystemExit(1) from None


@contextmanager
def beside(module: str, *arguments: str) -> Iterator[None]:
    """Run another module while the block runs, whose result does not depend on it.

    Its standard input ends with the block, or with this process; `done` on it says that all went well.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        # Ctrl-C is for this process, which tells the other one.
        start_new_session=True,
    ) as other:
        said = ""
        try:
            yield
            said = "done\n"
        finally:
            try:
                with suppress(BrokenPipeError):
                    other.communicate(said, timeout=FAREWELL_SECONDS)
            except subprocess.TimeoutExpired:
                other.kill()


def end_with(program: str, then: Callable[[], None] = lambda: os._exit(1)) -> None:
    """End this process when the nearest ancestor that runs ``program`` is gone.

    A killed ``dvc repro`` would leave its stage training on, beside the one that is started next.
    """
    ancestor = next((p for p in psutil.Process().parents() if _runs(p, program)), None)
    if ancestor is None:
        return

    def watch() -> None:
        while _alive(ancestor):
            time.sleep(POLL_SECONDS)
        then()

    threading.Thread(target=watch, daemon=True).start()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _runs(process: psutil.Process, program: str) -> bool:
    try:
        return any(Path(part).name == program for part in process.cmdline()[:2])
    except psutil.Error:
        return False
