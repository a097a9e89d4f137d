"""The process that a stage or a command runs in: its errors, its end, and a process alongside it."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from pipeline import paths, resources
from pipeline.errors import DistilleryError
from pipeline.escaping import for_terminal, without_passwords
from pipeline.resources import ResourceError
from pipeline.running import command_line, dvc_parent, inputs, lock_file, locks, siblings
from teachers.errors import TeacherError

SHUTDOWN_SECONDS = 15.0
"""Seconds that a process alongside this one may take to end."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it."""

SHARED = ("distill", "label", "prune", "quantize", "teach")
"""Scripts whose work several processes can share; of any other one, the first process does all."""


@contextmanager
def stage() -> Iterator[None]:
    """Run a stage: check its arguments, keep others from the same work, and print user errors as single
    lines.

    Where several processes share the work, the first one holds the lock and prints; the others print errors
    that they alone have.
    """
    with one_line_errors():
        siblings.check_environment()
    if not siblings.is_first():
        with _quietly():
            command_line.check()
            yield
        return
    command_line.check()
    with one_line_errors():
        lock_file.keep_copy()
        with (
            locks.alone(paths.LOCKS / f"{_work()}.lock"),
            inputs.unchanged(os.environ.get(dvc_parent.STAGE), _end_at_once),
        ):
            yield
        siblings.leave(failed=False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Run the block in a process other than the first one; where there is nothing to share, end at once."""
    if stage_name() not in (None, *SHARED):
        raise SystemExit(0)
    siblings.end_with_first()
    with one_line_errors():
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
        siblings.leave(failed=False)


def _end_at_once(error: DistilleryError) -> None:
    """Print an error and end this process, from any thread. What a kill would leave is left."""
    with suppress(OSError):
        _end_progress_bars()
        sys.stderr.write(f"error: {for_terminal(error)}\n")
        sys.stderr.flush()
    os._exit(1)


def _work() -> str:
    """Name of what the stage that runs as the main program writes."""
    program = sys.modules["__main__"].__spec__
    script = program.name.rpartition(".")[2] if program else Path(sys.argv[0]).stem
    return "-".join(["build" if script in command_line.BUILDERS else script, *sys.argv[1:]])


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can correct into one line per problem and exit status 1.

    They are the errors of this project, and whatever a library raises because the machine lacks room, memory
    or permission. From here on, characters that the terminal lacks are printed as escapes, such as those in
    names of files. Ctrl-C ends in one line too, with exit status 130.
    """
    replace_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        end_interrupted()
    except (DistilleryError, TeacherError) as error:
        siblings.give_way()
        problems = [str(problem) for problem in error.args]
        if not isinstance(error, ResourceError) and resources.is_exhausted(error.__cause__):
            problems[-1] += f"; {resources.explain(error, stage=stage_name())}"
    except Exception as error:
        siblings.give_way(perhaps_theirs=True)
        explanation = resources.explain(error, _full_output(), stage=stage_name())
        if explanation is None and siblings.are_joined():
            traceback.print_exception(error)  # before it says its last word, which ends all
            siblings.leave(failed=True)
            raise SystemExit(1) from None
        if explanation is None:
            raise
        problems = [explanation]
    else:
        return
    print_errors(*problems)
    siblings.leave(failed=True)
    try:
        sys.stdout.flush()
    except OSError:
        # What a full disk has not taken is tried once more when Python ends, which would add lines.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(1)


def _full_output() -> Path | None:
    """The file that standard output goes to, if it does not take what was printed."""
    try:
        sys.stdout.flush()
    except OSError:
        return Path("/dev/stdout").resolve()
    return None


def replace_closed_streams() -> None:
    """Let output go nowhere that was closed before this process began, as by ``>&-`` in a shell.

    Python has None for such a stream.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - it outlives this block


def print_errors(*problems: str) -> None:
    """Print one line per problem on standard error."""
    with suppress(OSError):
        _end_progress_bars()
        stream = sys.stderr if siblings.is_first() else sys.__stderr__ or sys.stderr
        stream.write("".join(f"error: {for_terminal(without_passwords(problem))}\n" for problem in problems))


def end_interrupted() -> NoReturn:
    """End this process after Ctrl-C with one line, which says what is left of its work.

    Only the process that a person has started says so, not those that render images for it or share its work.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would interrupt the end in many lines
    if multiprocessing.parent_process() is None:
        siblings.give_way()
    if multiprocessing.parent_process() is None and siblings.is_first():
        left = (
            "finished stages and the finished epochs of a training are kept; the same command goes on from "
            "there"
            if stage_name()
            else "what was finished is kept, and the same command can be given again"
        )
        with suppress(OSError):
            _end_progress_bars()
            sys.stderr.write(f"interrupted: {left}\n")
        siblings.leave(failed=True)
    with suppress(OSError):
        sys.stdout.flush()
    raise SystemExit(INTERRUPTED)


def explain_uncaught_errors() -> None:
    """Print an error that ends this process, for which the machine is to blame, as one line; Ctrl-C as well.

    Unlike in ``one_line_errors``, that includes errors while modules are imported.
    """

    def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            with suppress(SystemExit):
                end_interrupted()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        if issubclass(kind, ConnectionError) and multiprocessing.parent_process() is not None:
            return  # The process that this one renders images for has ended while it took some.
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
    `done` if the block succeeded. Of several processes that share a stage, only the first one runs it.
    """
    if not siblings.is_first():
        yield
        return
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        # It ends with this process and not with DVC, so that it can say how the stage has ended.
        env={name: value for name, value in os.environ.items() if name != dvc_parent.STAGE},
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
