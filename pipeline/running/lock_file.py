"""The file dvc.lock: a copy beside it, and its mending after a kill while DVC wrote it.

DVC writes dvc.lock in place after every stage. A kill at that moment leaves the beginning of the file: either
no valid YAML, and DVC refuses every later run, or valid YAML without the stages behind the cut. An entry says
which outputs a stage has made from which inputs, which stays true: older entries in place of lost ones can
make a stage run again, and never give a wrong result.
"""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline import files, paths
from pipeline.errors import DistilleryError

TEMPORARY = Path(".dvc") / "tmp"
COPY = TEMPORARY / "dvc.lock.copy"
"""The last dvc.lock that was complete."""
DAMAGED = TEMPORARY / "dvc.lock.damaged"
"""The last dvc.lock that was not."""
HOLDERS = TEMPORARY / "rwlock"
"""DVC's notes of the processes that read and write the files of stages, in JSON."""
WAIT_SECONDS = 5.0
"""Seconds in which a DVC that is at work may release its lock; it holds it between stages only."""

ENTRY = re.compile(r"^(?=  [^\s#-])", re.MULTILINE)
"""Beginning of an entry of a stage; DVC indents by two."""
CONFLICT = re.compile(r"^(<<<<<<<|=======|>>>>>>>)", re.MULTILINE)


class LockFileError(DistilleryError):
    """The file dvc.lock cannot be used, and must be corrected by its owner."""


def keep_copy() -> None:
    """Copy dvc.lock if it is complete, as far as the previous copy shows."""
    text = _read(paths.LOCK)
    copy = _read(COPY)
    if text is None or text == copy or not TEMPORARY.is_dir():
        return
    if _whole(text, _entries(copy or "")) or text == _committed():
        files.write(COPY, text)


def mend(variants: Collection[str]) -> None:
    """Mend dvc.lock and DVC's notes if a kill has cut them, and say so in one line each.

    Nothing is written while DVC runs a command that reads or writes them.

    Args:
        variants: names of the variants, which ``foreach`` stages are made for.

    Raises:
        LockFileError: dvc.lock has the marks of an unresolved merge.
    """
    if "DVC_STAGE" in os.environ or not TEMPORARY.is_dir():
        return  # DVC has read the file already, or has never run here.
    with _held(TEMPORARY / "rwlock.lock") as held:
        if held and HOLDERS.exists():
            _mend_holders()
    with _held(TEMPORARY / "lock") as held:
        if held:
            _mend(variants)


def _mend(variants: Collection[str]) -> None:
    text = _read(paths.LOCK)
    if text is None:
        COPY.unlink(missing_ok=True)  # It was removed on purpose: a kill leaves at least an empty file.
        return
    if CONFLICT.search(text):
        raise LockFileError(
            f"{paths.LOCK} has the marks of an unresolved merge: resolve it, or take one side whole with "
            f"`git checkout --ours {paths.LOCK}`; stages that differ run again"
        )
    copy = _read(COPY)
    kept = _entries(copy or "")
    expected = _stages(variants)
    if _whole(text, {name: entry for name, entry in kept.items() if name in expected}) and _parses(text):
        keep_copy()
        return
    committed = _committed()
    if text == committed and _parses(text):
        return
    source = COPY if kept else "git"
    older = kept or _entries(committed or "")
    newer = {name: entry for name, entry in _entries(text).items() if _complete(name, entry, older)}
    merged = {name: entry for name, entry in older.items() if name in expected} | newer
    files.write(DAMAGED, text)
    if merged:
        files.write(paths.LOCK, "schema: '2.0'\nstages:\n" + "".join(merged.values()))
        origin = f"the entries of {len(merged.keys() - newer)} stages are taken from {source}"
        if len(merged) == len(newer):
            origin = f"{len(newer)} stages are in it"
        _say(f"{paths.LOCK} was cut, by a kill while DVC wrote it, and is mended: {origin}")
        keep_copy()
    else:
        paths.LOCK.unlink()
        _say(
            f"{paths.LOCK} was cut, by a kill while DVC wrote it, and is removed: DVC brings back from its "
            "cache what was run before"
        )


def _whole(text: str, reference: Mapping[str, str]) -> bool:
    """Whether a dvc.lock was written to its end, as far as an earlier one shows."""
    entries = _entries(text)
    if not entries or not _complete(*list(entries.items())[-1], reference):
        return False
    # DVC keeps the order of the entries and appends new ones, so a cut loses the last ones.
    shared = [name for name in entries if name in reference]
    return len(shared) == len(reference) or shared != list(reference)[: len(shared)]


def _entries(text: str) -> dict[str, str]:
    """Name of each stage to the text of its entry, in the order of the file."""
    entries = {}
    for entry in ENTRY.split(text)[1:]:
        name = entry.partition("\n")[0].strip().removesuffix(":").strip("'\"")
        entries[name] = entry
    return entries


def _complete(name: str, entry: str, reference: Mapping[str, str]) -> bool:
    """Whether the entry of a stage was written to its end, as far as an earlier entry shows."""
    if entry == reference.get(name):
        return True
    content = _content(entry)
    before = _content(reference.get(name, ""))
    return (
        entry.endswith("\n")
        and bool(content.get("cmd"))
        and None not in content.values()
        and all(_complete_item(item) for key in ("deps", "outs") for item in content.get(key, ()))
        and len(content.get("outs", ())) >= len(before.get("outs", ()))
    )


def _complete_item(item: Any) -> bool:
    """Whether a dependency or an output was written to its end: path, hash, size, and number of files."""
    return (
        isinstance(item, dict)
        and item.get("size") is not None
        and (not str(item.get("md5")).endswith(".dir") or item.get("nfiles") is not None)
    )


def _content(entry: str) -> dict[str, Any]:
    """What the entry of a stage says; empty if it is cut within a line."""
    try:
        (content,) = yaml.load(entry, yaml.CSafeLoader).values()
    except (yaml.YAMLError, AttributeError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _stages(variants: Collection[str]) -> set[str]:
    """Names of all stages of dvc.yaml."""
    stages = yaml.load(paths.PIPELINE.read_bytes(), yaml.CSafeLoader)["stages"]
    return {
        full
        for name, stage in stages.items()
        for full in ([f"{name}@{variant}" for variant in variants] if "foreach" in stage else [name])
    }


def _parses(text: str) -> bool:
    try:
        return isinstance(yaml.load(text, yaml.CSafeLoader)["stages"], dict)
    except (yaml.YAMLError, LookupError, TypeError):
        return False


def _read(file: Path) -> str | None:
    """The text of a file, without what is no UTF-8 in it; None if there is no such file."""
    try:
        return file.read_bytes().decode(errors="ignore")
    except FileNotFoundError:
        return None


def _committed() -> str | None:
    """The dvc.lock of the last commit; None if there is none."""
    try:
        shown = subprocess.run(
            ["git", "show", f"HEAD:./{paths.LOCK}"], capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.decode(errors="ignore")


def _mend_holders() -> None:
    """Remove what processes have noted that ended without removing it, of each of which DVC would warn."""
    text = HOLDERS.read_text(errors="replace")
    try:
        noted = json.loads(text)
        writers = {file: one for file, one in noted.get("write", {}).items() if _lives(one)}
        readers = {
            file: [one for one in several if _lives(one)] for file, several in noted.get("read", {}).items()
        }
    except (ValueError, AttributeError, TypeError, KeyError):
        HOLDERS.unlink()
        _say(f"{HOLDERS} was cut, by a kill while DVC wrote it, and is removed")
        return
    readers = {file: several for file, several in readers.items() if several}
    if (kept := {"write": writers, "read": readers}) != {"write": {}, "read": {}, **noted}:
        files.write(HOLDERS, json.dumps({key: value for key, value in kept.items() if value}))


def _lives(holder: Mapping[str, Any]) -> bool:
    return psutil.pid_exists(int(holder["pid"]))


@contextmanager
def _held(file: Path) -> Iterator[bool]:
    """Hold one of DVC's own locks; False if DVC does not release it soon."""
    deadline = time.monotonic() + WAIT_SECONDS
    with file.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.1)
            else:
                yield True
                return


def _say(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)
