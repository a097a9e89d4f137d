"""Histories of trainings: one line per epoch, with the time that it took in a file of its own.

Timings differ from run to run. They are kept outside of DVC's outputs, with what else was measured on this
machine: the hash of a model whose training gave the same result again stays the same, so that DVC does not
rerun what depends on it. Timings are found by the hash of their history, so a variant that came from another
machine has none.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from pipeline import cache, files
from pipeline.cache import CacheError

HISTORY = "history.jsonl"
TIMINGS = ("seconds", "images_per_second")
"""Keys of a line that differ from run to run."""
Timings = list[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]]
TIMINGS_FILE: TypeAdapter[Timings] = TypeAdapter(Timings)
Place = Callable[[str], Path]
"""Function from the SHA-256 of a ``history.jsonl`` to the file of its timings."""


def write(folder: Path, history: Sequence[Mapping[str, Any]], place: Place) -> None:
    """Write ``history.jsonl`` without timings, one line per epoch, and the timings where they belong.

    Timings that cannot be written are given up with a line that says so: the training itself is complete.
    """
    lines = ({key: value for key, value in line.items() if key not in TIMINGS} for line in history)
    files.write(folder / HISTORY, "".join(json.dumps(line) + "\n" for line in lines))
    timings = [{key: float(line[key]) for key in TIMINGS if key in line} for line in history]
    if any(timings):
        try:
            cache.write(place(_hash(folder)), TIMINGS_FILE, timings)
        except CacheError as error:
            print(f"the durations of this training are not recorded: {error}", file=sys.stderr)


def read(folder: Path, place: Place) -> list[dict[str, Any]]:
    """The lines of ``history.jsonl``, none for a variant that needed no training.

    Each line has its timings where the training was measured on this machine.
    """
    lines = [json.loads(line) for line in (folder / HISTORY).read_text(encoding="utf-8").splitlines()]
    timings = _timings(folder, place) if lines else None
    if timings is None or len(timings) != len(lines):
        return lines
    return [line | measured for line, measured in zip(lines, timings, strict=True)]


def seconds(history: Iterable[Mapping[str, Any]]) -> float | None:
    """The duration of a training; None if it was not measured on this machine, 0 if nothing was trained."""
    times = [line.get("seconds") for line in history]
    return None if None in times else float(sum(time for time in times if time is not None))


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


def _timings(folder: Path, place: Place) -> Timings | None:
    try:
        return cache.read(place(_hash(folder)), TIMINGS_FILE)
    except CacheError:
        return None


def _hash(folder: Path) -> str:
    return hashlib.sha256((folder / HISTORY).read_bytes()).hexdigest()
