"""Show a training in MLflow while it goes on: a process beside the stage that trains.

It reads the checkpoints that the training leaves after each epoch, and ends when its standard input does.
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

# A server that does not answer is asked again soon, and no request waits for long.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

from pipeline.tracking import runs

CHECKPOINT = "last.safetensors"


def main(name: str) -> None:
    """Follow the teacher or a variant until standard input ends; its last line is `done` if all went well."""
    os.nice(10)
    p = parameters.load()
    if name in p.variants and p.declared()[name][2].get("method") == "ptq":
        return  # Nothing is trained.
    said: list[str] = []
    over = threading.Event()

    def listen() -> None:
        said.extend(sys.stdin)
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    folders = _folders(p, name)
    runs.follow(
        runs.Training(name, p.recipe(name), provenance.source_tags()),
        lambda: _history(folders),
        over,
        runs.Book(p.tracking.uri, p.tracking.experiment, paths.home()),
        finished=lambda: said == ["done\n"],
    )


def _folders(p: Parameters, name: str) -> list[Path]:
    """Where the parts of a training leave their checkpoints, in order."""
    if name != "teacher":
        return [paths.checkpoints(name)]
    members = [p.teacher, *p.teacher.ensemble]
    return [
        paths.checkpoints(f"teacher-{number if p.teacher.ensemble else ''}{part}")
        for number, member in enumerate(members)
        for part, training in member.parts().items()
        if training is not None
    ]


def _history(folders: list[Path]) -> list[dict[str, Any]]:
    """The epochs so far, as the checkpoints' headers tell them, read without PyTorch."""
    lines, newest = [], 0
    for folder in folders:
        file = folder / CHECKPOINT
        try:
            written = file.stat().st_mtime_ns
            if written < newest:
                break  # An earlier training left it.
            newest = written
            with safe_open(file, framework="numpy") as stored:
                lines += json.loads(stored.metadata()["history"])
        except (FileNotFoundError, SafetensorError):
            break
    return lines


if __name__ == "__main__":
    main(sys.argv[1])
