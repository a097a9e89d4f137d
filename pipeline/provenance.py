"""Where a result comes from: hashes, code, the commit, and package versions."""

import ast
import hashlib
import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

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


def sha256(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
