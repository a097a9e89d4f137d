"""Where a result comes from: hashes, code, the commit, and package versions."""

import ast
import hashlib
import json
import os
import subprocess
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.resources import ResourceError

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "nni",
    "onnx",
    "onnxruntime",
    "lightning-fabric",
    "numpy",
    "pillow",
)
"""Packages whose versions are recorded with a result."""

ALWAYS_READ = 2**30
"""Size of the greatest file, in bytes, that is read in full whenever it is checked: it takes a second."""
SETTLED_SECONDS = 2.0
"""Age of a change from which on another change has another time: file systems count in up to two seconds."""


def sha256(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unchanged(path: Path, expected: str) -> bool:
    """Whether the content of a file has an SHA-256.

    A file above ``ALWAYS_READ`` bytes is read once. Then ``.NAME.checked`` beside its folder records its
    place on the disk, its size, and the times of the last change of content and of anything else, which no
    program can set back. It is read again when one of them is another one.

    Raises:
        OSError: the file cannot be read.
    """
    state = _state(path)
    if state["size"] <= ALWAYS_READ:
        return sha256(path) == expected
    record = path.parent.with_name(f".{path.parent.name}-{path.name}.checked")
    known = json.dumps({"sha256": expected, **state}).encode()
    with suppress(OSError):
        if record.read_bytes() == known:
            return True
    if sha256(path) != expected:
        return False
    settled = time.time_ns() - max(state["changed"], state["modified"]) > SETTLED_SECONDS * 1e9
    if settled and _state(path) == state:
        with suppress(OSError, ResourceError):  # It is read again next time.
            files.write(record, known)
    return True


def _state(path: Path) -> dict[str, int]:
    """What a change of a file changes."""
    status: os.stat_result = path.stat()
    return {
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "modified": status.st_mtime_ns,
        "changed": status.st_ctime_ns,
    }


def identity(**facts: Any) -> str:
    """SHA-256 of plain values, whatever the order of the keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def git_commit() -> str:
    """The checked-out commit, with ``-dirty`` if tracked files differ from it; ``unknown`` without Git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Installed version of each package that results depend on."""
    return {package: version(package) for package in PACKAGES}


def plain_code(source: str) -> str:
    """A module's syntax tree as text, without comments, docstrings and positions.

    The text is the same for every Python version, unless the meaning of the code differs.
    """
    return _dump(ast.parse(source))


def _dump(value: object) -> str:
    if isinstance(value, ast.JoinedStr):
        # Python 3.12.1 adds empty constants to some f-strings.
        value = ast.JoinedStr([part for part in value.values if getattr(part, "value", None) != ""])
    if isinstance(value, ast.AST):
        fields = [(name, _dump(part)) for name, part in ast.iter_fields(value)]
        return f"{type(value).__name__}({','.join(f'{name}={text}' for name, text in fields if text)})"
    if isinstance(value, list):
        return "".join(f"[{_dump(part)}]" for part in value if not _is_docstring(part))
    # Newer Python versions have fields that older ones lack; they are None or empty where they say nothing.
    return "" if value is None else repr(value)


def _is_docstring(node: object) -> bool:
    """Whether a statement is a bare string: a docstring of a module, class, function or field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
