"""Where a result comes from: hashes, the commit, and package versions."""

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
