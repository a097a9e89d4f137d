"""Training histories: one JSON line per epoch, beside the weights."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"


def write_history(folder: Path, history: Iterable[Mapping[str, Any]]) -> None:
    """Write ``history.jsonl``: one line per epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HISTORY).write_text("".join(json.dumps(line) + "\n" for line in history))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of ``history.jsonl``; there are none for a variant that was made without training."""
    return [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]


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
