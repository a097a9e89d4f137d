"""Histories of trainings: one line per epoch, with the time that it took in a file of its own.

Timings differ from run to run. Kept apart, they do not change the hash of a model whose training gave the
same result again, so that DVC does not rerun what depends on it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"
TIMINGS = ("seconds", "images_per_second")
"""Keys of a line that differ from run to run."""
POSITION = ("part", "epoch", "step")
"""Keys that say which epoch a line is about."""


def write(folder: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """Write ``history.jsonl`` without timings: one line per epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / HISTORY, ({k: v for k, v in line.items() if k not in TIMINGS} for line in history))


def write_timings(file: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """Write the timings: one line per epoch with its part, epoch and step, seconds and images per second."""
    file.parent.mkdir(parents=True, exist_ok=True)
    keys = (*POSITION, *TIMINGS)
    _write_lines(file, ({key: line[key] for key in keys if key in line} for line in history))


def read(folder: Path, timings: Path | None = None) -> list[dict[str, Any]]:
    """The lines of ``history.jsonl``, none for a variant that needed no training.

    With the file ``timings``, each line has its timings too.
    """
    lines = _read_lines(folder / HISTORY)
    if timings is None:
        return lines
    return [line | measured for line, measured in zip(lines, read_timings(timings), strict=True)]


def read_timings(file: Path) -> list[dict[str, Any]]:
    """The timings of a training: one line per epoch, none if nothing was trained."""
    return _read_lines(file)


def continued(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Number the epochs, and the steps if there are any, of trainings that follow one another as one
    training.

    A training has a line for each whole epoch and one for its end, so only its first line is of an epoch of
    at most 1.
    """
    lines: list[dict[str, Any]] = []
    before: Mapping[str, Any] = {}
    for line in history:
        if line["epoch"] <= 1 and lines:
            before = lines[-1]
        counts = {key: before.get(key, 0) + line[key] for key in ("step", "epoch") if key in line}
        lines.append({**line, **counts})
    return lines


def _write_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
