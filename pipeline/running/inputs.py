"""The parameters and files that a stage depends on, and whether they change while DVC runs it.

DVC hashes what a stage depends on after its command has ended. A value that was edited meanwhile is recorded
as if the command had used it, and the next ``dvc repro`` skips the stage, whose results are those of the
earlier value.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipeline import paths
from pipeline.errors import DistilleryError

WATCH_SECONDS = 2.0
"""Seconds between two looks at the parameters. A change counts if the second look confirms it, since an
editor may be writing."""

SHOWN = 3
"""Number of changes that a message names."""

IGNORED = re.compile(r"\..*|__pycache__|node_modules|Thumbs\.db|desktop\.ini|.*~")
"""Names of files and folders that DVC ignores (`.dvcignore`)."""

MISSING = "missing"


class ChangedInputError(DistilleryError):
    """Something that the stage depends on changed while the stage ran."""


@contextmanager
def unchanged(stage: str | None, end: Callable[[ChangedInputError], object]) -> Iterator[None]:
    """Run the body of a stage of `dvc.yaml`, whose inputs must stay as they are.

    Args:
        stage: name of the stage as DVC knows it, such as ``export@fp32``; None checks nothing.
        end: function that is called in another thread, at once when a parameter of the stage has changed. Its
            work is in vain then, and what it keeps while it runs is kept.

    Raises:
        ChangedInputError: after the body, if a parameter or file has changed.
    """
    declared = _declared(stage) if stage else None
    if declared is None:
        yield
        return
    keys, places = declared
    before = _values(keys)
    files = _files(places)
    over = threading.Event()

    def watch() -> None:
        seen = None
        while not over.wait(WATCH_SECONDS):
            changes = _changes(before, _values(keys))
            if changes and changes == seen and not over.is_set():
                end(_error(changes))
                return
            seen = changes

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
    changes = _changes(before, _values(keys))
    if changes:
        time.sleep(WATCH_SECONDS)  # an editor may be writing
        changes = _changes(before, _values(keys))
    changes += [f"{name} {words}" for name, words in _changed_files(files, _files(places))]
    if changes:
        raise _error(changes)


def _error(changes: list[str]) -> ChangedInputError:
    more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return ChangedInputError(
        f"{'; '.join(changes[:SHOWN])}{more}: this changed while the stage ran, so that its results do not "
        "count. Repeat the command to run it with what is there now, or put back what was there before: then "
        "a training goes on after its last finished epoch"
    )


def _declared(stage: str) -> tuple[list[str], list[Path]] | None:
    """Keys of the parameters and places of the files that a stage depends on; None if that is not known."""
    values = _read(paths.PARAMETERS)
    stages = (_read(paths.PIPELINE) or {}).get("stages")
    name, _, key = stage.rpartition(":")[2].partition("@")
    try:
        entry = stages[name]  # pyright: ignore[reportOptionalSubscript] - a TypeError like any other damage
        scope: dict[str, Any] = dict(values or {})
        if "foreach" in entry:
            items = _filled(entry["foreach"], scope)
            scope |= {"key": key, "item": items[key] if isinstance(items, dict) else key}
            entry = entry["do"]
        keys = [part if isinstance(part, str) else "" for part in entry.get("params", [])]
        return (
            [str(_filled(part, scope)) for part in keys],
            [Path(_filled(part, scope)) for part in entry.get("deps", [])],
        )
    except (LookupError, TypeError, AttributeError):
        return None


def _filled(text: str, scope: Mapping[str, Any]) -> Any:
    """A text of dvc.yaml with the values that it names; the value itself if it names one alone."""

    def value(key: str) -> Any:
        place: Any = scope
        for part in key.split("."):
            place = place[part]
        return place

    if whole := re.fullmatch(r"\$\{([^}]+)\}", text):
        return value(whole[1])
    return re.sub(r"\$\{([^}]+)\}", lambda found: str(value(found[1])), text)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = yaml.load(file.read_bytes(), yaml.CSafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def _values(keys: list[str]) -> dict[str, str]:
    """Parameters in text by dotted key, as deep as they go; empty if the file cannot be read."""
    values = _read(paths.PARAMETERS)
    found: dict[str, str] = {}
    if values is None:
        return found

    def add(key: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                add(f"{key}.{name}" if key else str(name), inner)
        else:
            found[key] = str(value)

    for key in keys:
        try:
            add(key, _filled(f"${{{key}}}", values) if key else values)
        except (LookupError, TypeError):
            found[key] = MISSING
    return found


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parameters that have changed, in words."""
    if not before:
        return []
    if not now:
        return [f"{paths.PARAMETERS}: it cannot be read any more"]
    return [
        f"{paths.PARAMETERS}: {key} was {_short(before.get(key))} and is {_short(now.get(key))}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def _short(text: str | None) -> str:
    text = MISSING if text is None else text
    return text if len(text) <= 40 else f"{text[:37]}..."


def _files(places: list[Path]) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file, as DVC looks at them."""
    found: dict[str, tuple[int, int]] = {}

    def add(file: Path) -> None:
        try:
            state = file.stat()
        except OSError:
            return
        found[str(file)] = state.st_size, state.st_mtime_ns

    for place in places:
        if not place.is_dir():
            add(place)
            continue
        for folder, folders, names in os.walk(place):
            folders[:] = [name for name in folders if not IGNORED.fullmatch(name)]
            for name in names:
                if not IGNORED.fullmatch(name):
                    add(Path(folder, name))
    return found


def _changed_files(
    before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            words = "is new" if name not in before else "is gone" if name not in now else "has changed"
            yield name, words
