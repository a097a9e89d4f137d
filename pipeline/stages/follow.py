"""Show a training in MLflow while it runs: a process next to the stage that trains.

It reads the checkpoints that the training writes after each epoch, and ends when its standard input is
closed.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline import parameters, paths, provenance
from pipeline.parameters import Parameters

# A server that does not answer is asked again soon; no request waits for long.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

from pipeline.tracking import runs

CHECKPOINT = "last.safetensors"


def main(name: str) -> None:
    """Follow the teacher or a variant until standard input is closed; its last line is `done` after a
    success."""
    os.nice(10)
    p = parameters.load()
    if name in p.variants and p.declared()[name][2].get("method") == "ptq":
        return  # Nothing is trained.
    messages: list[str] = []
    closed = threading.Event()

    def listen() -> None:
        messages.extend(sys.stdin)
        closed.set()

    threading.Thread(target=listen, daemon=True).start()
    folders = _folders(p, name)
    runs.follow(
        runs.Training(name, p.recipe(name), provenance.source_tags()),
        lambda: _history(folders),
        closed,
        runs.Book(p.tracking.uri, p.tracking.experiment, paths.home()),
        finished=lambda: messages == ["done\n"],
    )


def _folders(p: Parameters, name: str) -> list[Path]:
    """The folders of the checkpoints of all parts of a training, in order."""
    if name != "teacher":
        return [paths.checkpoints(name)]
    return [
        paths.checkpoints(f"teacher-{number if p.teacher.ensemble else ''}{part}")
        for number, member in enumerate(p.teacher.members)
        for part, training in member.parts().items()
        if training is not None
    ]


def _history(folders: list[Path]) -> list[dict[str, Any]]:
    """The finished epochs, from the headers of the checkpoints, read without PyTorch."""
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
    main(sys.argv[1])
