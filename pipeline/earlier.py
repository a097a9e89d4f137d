"""Results of an earlier run whose entries are used again, so that a new variant is measured alone.

Such a result holds, under ``inputs``, one digest per entry over everything that the entry depends on: the
variant's files, the images, the parameters and the code. An entry whose digest is the same today is what
measuring it again would give.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline import provenance
from pipeline.running import dvc_parent

Entry = TypeVar("Entry")


def digest(*places: Path) -> str:
    """SHA-256 over files, and over all files in folders, with their names. What is missing counts, too."""
    content = hashlib.sha256()
    for place in places:
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if not file.is_dir():
                state = provenance.sha256(file) if file.is_file() else "missing"
                content.update(f"{file}\0{state}\n".encode("utf-8", "surrogateescape"))
    return content.hexdigest()


def read(file: Path) -> dict[str, Any]:
    """An earlier result; an empty one where there is none that can be read.

    The digests tell code by the fingerprints of `check`, which are those of the code only within a pipeline.
    A stage that was started without DVC therefore finds no earlier result.
    """
    if dvc_parent.STAGE not in os.environ:
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def kept(result: Mapping[str, Any], inputs: Mapping[str, str]) -> set[str]:
    """Names of the entries of an earlier result whose inputs are those of today."""
    before = result.get("inputs")
    return {name for name in inputs if isinstance(before, dict) and before.get(name) == inputs[name]}


def join(names: Iterable[str], *sources: Mapping[str, Entry] | None) -> dict[str, Entry]:
    """One entry per name, in the order of the names, from the first source that has it."""
    return {name: next(source[name] for source in sources if source and name in source) for name in names}


def summary(measured: Collection[str], used_again: Collection[str]) -> str:
    """What was measured and what was used again, in one line."""
    again = f"; as before: {', '.join(used_again)}" if used_again else ""
    return f"measured: {', '.join(measured) or 'nothing'}{again}"
