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
from types import TracebackType
from typing import NoReturn

import psutil

from pipeline import resources
from pipeline.errors import DistilleryError
from pipeline.resources import ResourceError
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
    """Turn errors that a user can correct into one line per problem and exit status 1.

    They are the errors of this project, and whatever a library raises because the machine lacks room, memory
    or permission.
    """
    try:
        yield
        sys.stdout.flush()
    except (DistilleryError, TeacherError) as error:
        message = str(error)
        if not isinstance(error, ResourceError) and resources.is_exhausted(error.__cause__):
            message += f"; {resources.explain(error, stage=stage_name())}"
    except Exception as error:
        explanation = resources.explain(error, stage=stage_name())
        if explanation is None:
            raise
        message = explanation
    else:
        return
    with suppress(OSError):
        _end_progress_bars()
        sys.stderr.write("".join(f"error: {line}\n" for line in message.splitlines()))
    try:
        sys.stdout.flush()
    except OSError:
        # What a full disk has not taken is tried once more when Python ends, which would add lines.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(1)


def explain_uncaught_errors() -> None:
    """Print an error that ends this process, for which the machine is to blame, as one line.

    Unlike in ``one_line_errors``, that includes errors while modules are imported.
    """

    def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        explanation = resources.explain(error)
        if explanation is None:
            sys.__excepthook__(kind, error, trace)
        else:
            _end_progress_bars()
            sys.stderr.write(f"error: {explanation}\n")
            sys.stderr.flush()
            os._exit(1)  # What libraries do at the end of a process fails without memory, in many lines.

    sys.excepthook = explain


def _end_progress_bars() -> None:
    """End the line of each progress bar, so that what follows has a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def stage_name() -> str | None:
    """Name of the stage that runs as the main program."""
    program = getattr(sys.modules["__main__"], "__spec__", None)
    package, _, name = program.name.rpartition(".") if program else ("", "", "")
    return name if package == "pipeline.stages" else None


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
