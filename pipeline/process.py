"""The process that a stage runs in: its arguments, its errors, and its end."""

import inspect
import os
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psutil

from pipeline.errors import DistilleryError
from pipeline.escaping import for_terminal
from teachers.errors import TeacherError

POLL_SECONDS = 0.5
"""Seconds between two looks at whether another process is alive."""

SHUTDOWN_SECONDS = 15.0
"""Seconds that a process alongside this one may take to end."""


@contextmanager
def stage() -> Iterator[None]:
    """Run a stage: check its arguments, end it when DVC ends, and print user errors as single lines."""
    check_arguments()
    exit_with("dvc")
    with one_line_errors():
        yield


class StageParser(ArgumentParser):
    """A parser whose errors are single lines."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(2, f"error: {message} (--help describes the arguments)\n")


def check_arguments() -> None:
    """Check the command line of the stage that runs as the main program.

    Its function ``main`` says which arguments it takes, and its docstrings are the help. With ``--help`` or
    with other arguments, the process ends here, before any work starts.
    """
    program = sys.modules["__main__"]
    parser = StageParser(
        prog=f"python -m {program.__spec__.name}" if program.__spec__ else None,
        description=f"{program.__doc__}\n{inspect.getdoc(program.main)}",
    )
    for name in inspect.signature(program.main).parameters:
        parser.add_argument(name, help=f"name of the {name}")
    parser.parse_args()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can correct into one line per problem and exit status 1."""
    try:
        yield
    except (DistilleryError, TeacherError) as error:
        sys.stderr.write("".join(f"error: {for_terminal(problem)}\n" for problem in error.args))
        raise SystemExit(1) from None


@contextmanager
def run_alongside(module: str, *arguments: str) -> Iterator[None]:
    """Run another module while the block runs. The block does not depend on its success.

    The standard input of the other process ends when the block or this process ends. It then holds the line
    `done` if the block succeeded.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        # Ctrl-C reaches this process only, which then ends the other one.
        start_new_session=True,
    ) as companion:
        message = ""
        try:
            yield
            message = "done\n"
        finally:
            try:
                with suppress(BrokenPipeError):
                    companion.communicate(message, timeout=SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                companion.kill()


def exit_with(program: str, exit_process: Callable[[], None] = lambda: os._exit(1)) -> None:
    """End this process when its nearest ancestor that runs ``program`` ends.

    Otherwise, the stage of a killed ``dvc repro`` would go on beside the stage that is started next.
    """
    ancestor = next((p for p in psutil.Process().parents() if _runs(p, program)), None)
    if ancestor is None:
        return

    def watch() -> None:
        while _alive(ancestor):
            time.sleep(POLL_SECONDS)
        exit_process()

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
