"""Show a training in MLflow while it goes on, in a process beside the stage that trains.

It reads the checkpoint that the training writes after each epoch, and ends soon after its standard input
ends: `track` logs whatever is then missing, so the stage need not wait for a slow server.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline import parameters, paths
from pipeline.parameters import Parameters
from pipeline.running import command_line

CHECKPOINT = "last.safetensors"

LAST_WORDS_SECONDS = 3.0
"""Seconds after the end of the training in which its last epochs can still be logged."""


def main(variant: str) -> None:
    """Follow a variant or `teacher` until standard input ends; it ends with the line `done` on success."""
    os.nice(10)
    p = parameters.load()
    if variant in p.variants and p.declared()[variant][2].get("method") in ("ptq", "fp16"):
        return  # These have no epochs.
    # Read by MLflow when it is imported. A server that does not answer is asked again soon enough.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from pipeline.tracking import live, records  # seconds of work, at low priority and only where needed

    lines: list[str] = []
    ended = threading.Event()

    def listen() -> None:
        lines.extend(sys.stdin)
        ended.set()
        time.sleep(LAST_WORDS_SECONDS)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    folders = _folders(p, variant)
    live.follow(
        records.RunRecord(variant, records.parameters(p.recipe(variant)), records.source_tags()),
        lambda: _history(folders),
        ended,
        records.TrackingServer(p.tracking.uri, p.tracking.experiment, paths.home()),
        finished=lambda: lines == ["done\n"],
    )


def _folders(p: Parameters, name: str) -> list[Path]:
    """Folders of the checkpoints of each part of a training, in order."""
    if name != "teacher":
        return [paths.checkpoints(name)]
    return [
        paths.checkpoints(f"teacher-{number if p.teacher.ensemble else ''}{part}")
        for number, member in enumerate(p.teacher.members)
        for part, training in member.parts().items()
        if training is not None
    ]


def _history(folders: list[Path]) -> list[dict[str, Any]]:
    """The epochs so far, read from the headers of the checkpoints, which takes no PyTorch."""
    lines, newest = [], 0
    for folder in folders:
        file = folder / CHECKPOINT
        try:
            written = file.stat().st_mtime_ns
            if written < newest:
                break  # It belongs to an earlier training.
            newest = written
            with safe_open(file, framework="numpy") as stored:
                lines += json.loads(stored.metadata()["history"])
        except (FileNotFoundError, SafetensorError):
            break
    return lines


if __name__ == "__main__":
    command_line.check()
    main(sys.argv[1])
