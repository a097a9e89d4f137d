"""The process that a stage runs in: its arguments, its errors, and its end."""

import errno
import fcntl
import inspect
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import psutil
import yaml

from pipeline import paths, resources
from pipeline.errors import DistilleryError
from pipeline.escaping import for_terminal, without_passwords
from pipeline.resources import ResourceError
from pipeline.running import inputs, lock_file, siblings
from teachers.errors import TeacherError

STARTED_BY_DVC = "DVC_STAGE"
"""Environment variable that DVC sets for the commands of stages."""

POLL_SECONDS = 0.5
"""Seconds between two looks at whether another process is alive."""

SHUTDOWN_SECONDS = 15.0
"""Seconds that a process alongside this one may take to end."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it."""

TAKEOVER_SECONDS = 10.0
"""Seconds in which a process that does the same work may end; a stage without its DVC takes less than one."""

BUILDERS = ("distill", "load", "prune", "quantize")
"""Scripts of the stage ``build``, which write the same folder."""

SHARED = ("distill", "label", "prune", "quantize", "teach")
"""Scripts whose work several processes can share; of any other one, the first process does all."""


class BusyError(DistilleryError):
    """Another process does the same work at the moment; the message names it."""


@contextmanager
def stage() -> Iterator[None]:
    """Run a stage: check its arguments, keep others from the same work, and print user errors as single
    lines.

    Where several processes share the work, the first one holds the lock and prints; the others print errors
    that they alone have.
    """
    if not siblings.is_first():
        with _quietly():
            check_arguments()
            yield
        return
    check_arguments()
    with one_line_errors():
        lock_file.keep_copy()
        with (
            alone(paths.LOCKS / f"{_work()}.lock"),
            inputs.unchanged(os.environ.get(STARTED_BY_DVC), _end_at_once),
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
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
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
    return "-".join(["build" if script in BUILDERS else script, *sys.argv[1:]])


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


class StageParser(ArgumentParser):
    """A parser whose errors are single lines, and whose help has an example."""

    known: Sequence[str] = ()
    """Names of the variants that the stage takes."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        allowed = f"; allowed: {', '.join(self.known)}" if self.known else ""
        self.exit(2, f"error: {message}{allowed} (--help describes the arguments)\n")


def check_arguments() -> None:
    """Check the command line of the stage that runs as the main program.

    Its function ``main`` says which arguments it takes, and its docstrings are the help. With ``--help`` or
    with other arguments, the process ends here, before any work starts.
    """
    program = sys.modules["__main__"]
    parser = StageParser(
        prog=f"python -m {program.__spec__.name}" if program.__spec__ else None,
        formatter_class=RawDescriptionHelpFormatter,
        description=f"{program.__doc__}\n{inspect.getdoc(program.main)}",
    )
    parameters = inspect.signature(program.main).parameters
    known = _variants(parser.prog.rpartition(".")[2]) if "variant" in parameters else []
    for name in parameters:
        parser.add_argument(name, help=f"one of {', '.join(known)}" if known else f"name of the {name}")
    parser.epilog = f"example:\n  {' '.join([parser.prog, *known[:1]])}"
    parser.known = known
    parser.parse_args()


def _variants(script: str) -> list[str]:
    """Names of the variants that `params.yaml` declares and, if a script builds variants, that it builds.

    None if the file cannot be read: what is wrong with it is said by whoever reads it for its values.
    """
    try:
        variants = yaml.safe_load(paths.PARAMETERS.read_text())["variants"]
        return [name for name, of in variants.items() if script not in BUILDERS or of["op"] == script]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return []


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can correct into one line per problem and exit status 1.

    They are the errors of this project, and whatever a library raises because the machine lacks room, memory
    or permission. From here on, characters that the terminal lacks are printed as escapes, such as those in
    names of files. Ctrl-C ends in one line too, with exit status 130.
    """
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
        explanation = resources.explain(error, stage=stage_name())
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
        env={name: value for name, value in os.environ.items() if name != STARTED_BY_DVC},
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


def end_with_dvc(exit_process: Callable[[], None] = lambda: os._exit(1)) -> None:
    """End this process, which DVC has started, when that DVC ends; at once if it has ended already.

    Otherwise, the stage of a killed ``dvc repro`` would go on beside the stage that is started next.
    """
    dvc = _dvc()
    if dvc is None:
        sys.stderr.write("error: the DVC that started this stage has ended\n")
        exit_process()
        return

    def watch() -> None:
        while _alive(dvc):
            time.sleep(POLL_SECONDS)
        exit_process()

    threading.Thread(target=watch, daemon=True).start()


def _dvc() -> psutil.Process | None:
    """The nearest ancestor that is DVC, by its command or because it holds the outputs of a stage."""
    holders = _holders(lock_file.HOLDERS)
    try:
        ancestors = psutil.Process().parents()
    except psutil.Error:  # one of them has ended in between
        ancestors = psutil.Process().parents()
    return next((process for process in ancestors if process.pid in holders or _runs(process, "dvc")), None)


def _holders(file: Path) -> set[int]:
    """Numbers of the processes that write outputs of stages, by DVC's own notes."""
    try:
        return {holder["pid"] for holder in json.loads(file.read_text())["write"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _runs(process: psutil.Process, program: str) -> bool:
    """Whether a process runs a program, itself or through Python: ``python -m dvc``."""
    try:
        return any(Path(part).name == program for part in process.cmdline()[:3])
    except psutil.Error:
        return False
