"""Trainings that follow one another, told as one."""

from collections.abc import Iterable, Mapping
from typing import Any


def continued(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Epochs, and steps where there are some, that go on counting where one part follows another.

    A part tells of each whole epoch and of its end, so only its first line is of an epoch of at most 1.
    """
    lines: list[dict[str, Any]] = []
    before: Mapping[str, Any] = {}
    for line in history:
        if line["epoch"] <= 1 and lines:
            before = lines[-1]
        counted = {key: before.get(key, 0) + line[key] for key in ("step", "epoch") if key in line}
        lines.append({**line, **counted})
    return lines
