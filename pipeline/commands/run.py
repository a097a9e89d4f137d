"""The command `run`."""

import os
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pipeline import paths
from pipeline.commands import choose
from pipeline.errors import DistilleryError, did_you_mean
from pipeline.running.process import INTERRUPTED, one_line_errors

MINUTES = 30.0
"""Time that the whole pipeline may take, unless the person gives another one."""


def run(arguments: Namespace) -> None:
    """Plan the pipeline for a folder, or take the plan of before, and run it."""
    from pipeline.parameters import configuration
    from pipeline.upkeep import leftovers

    with one_line_errors():
        leftovers.check_parameters_unused()
        if arguments.folder is not None:
            check_folder(arguments.folder)
    words = [str(arguments.folder), *_options(arguments), *arguments.changes] if arguments.folder else []
    command = shlex.join(["python", "-m", "pipeline", "run", *words])
    with one_line_errors():
        plan_of = configuration.written_by()
        if arguments.folder is None or (not arguments.anew and plan_of == command):
            configuration.compose()
            if not arguments.planned:
                anew = "--anew plans anew" if arguments.folder else "`run FOLDER --anew` plans anew"
                made = f", the plan of `{plan_of}`" if plan_of else ""
                print(f"going on with {configuration.FILE}{made}; {anew}")
        else:
            _plan(arguments, command)
            if not arguments.plan:
                carry_out()
    if arguments.plan:
        say_how()
        return
    began = time.monotonic()
    python, path = Path(sys.executable), os.environ.get("PATH", "")
    # Stages are started as `python`, which is this one, whether its environment is active or not.
    surroundings = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{path}"}
    for words in (["pipeline.stages.check"], ["dvc", "repro"], ["pipeline", "save"]):
        status = _finish([str(python), "-m", *words], surroundings)
        if status:
            raise SystemExit(status)
    from pipeline import parameters

    minutes = (time.monotonic() - began) / 60
    choice = choose.of_workspace(parameters.load())
    print(
        f"finished after {minutes:.1f} minutes. {choice.reason}\n"
        f"{paths.REPORT / 'report.html'} compares all variants; "
        f"`python -m pipeline ship {choice.closest} FOLDER` writes one with all that its users need"
    )


def _finish(command: Sequence[str], surroundings: Mapping[str, str]) -> int:
    """Run a command to its end, and return its exit status.

    Ctrl-C reaches the command, too, which says what is kept and ends by itself: DVC, if it is killed instead,
    leaves notes of files that it was using.
    """
    interrupted = False
    with subprocess.Popen(command, env=surroundings) as process:
        while True:
            try:
                status = process.wait()
                return INTERRUPTED if interrupted else status
            except KeyboardInterrupt:
                interrupted = True


class FolderError(DistilleryError):
    """There is no such folder."""


def check_folder(folder: Path) -> None:
    """Check that there is such a folder.

    Raises:
        FolderError: there is none; the message names the one that was probably meant.
    """
    if folder.is_dir():
        return
    if folder.exists():
        raise FolderError(f"{folder} is not a folder; allowed: a folder of class folders")
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    hint = did_you_mean(folder.name, [one.name for one in beside if one.is_dir()], folder.with_name)
    raise FolderError(f"{folder} does not exist{hint}")


def _plan(arguments: Namespace, command: str) -> None:
    # PyTorch takes seconds to be imported.
    print(f"{arguments.folder}: reading the images, then measuring this machine", flush=True)
    from pipeline.planning import plan

    made = plan.make(arguments.folder, arguments.minutes, arguments.changes, arguments.start)
    keep(made.lines(), lambda: plan.write(made, command))


def keep(lines: Sequence[str], write: Callable[[], object]) -> None:
    """Print a plan, put the previous one aside, write the new one, and print where it is."""
    from pipeline.parameters import configuration

    for line in lines:
        print(line)
    if kept := configuration.keep_previous():
        print(f"the previous plan is kept as {kept}")
    write()
    print(
        f"the plan is {configuration.FILE}; {paths.PARAMETERS} is composed from it, and "
        "`dvc exp run -S KEY=VALUE` starts from it"
    )


def carry_out() -> NoReturn:
    """Go on with the plan in a new process: this one has loaded networks, whose memory the stages need."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", "run", "--planned"])


def say_how() -> None:
    """Print how to carry out the plan."""
    from pipeline.parameters import configuration

    print(f"`python -m pipeline run` carries out the plan in {configuration.FILE}")


def _options(arguments: Namespace) -> Sequence[str]:
    """The options that the plan depends on, as they are given on the command line."""
    options = ["--minutes", f"{arguments.minutes:g}"]
    return [*options, "--start", arguments.start] if arguments.start else options
