"""The DVC that has started this process."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pipeline.running import lock_file

STAGE = "DVC_STAGE"
"""Environment variable that DVC sets for the commands of stages."""

POLL_SECONDS = 0.5
"""Seconds between two looks at whether another process is alive."""


def end_with(exit_process: Callable[[], None] = lambda: os._exit(1)) -> None:
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
