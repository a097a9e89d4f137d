"""Where a result comes from: hashes, commit, versions."""

import hashlib
import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

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


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(**facts: Any) -> str:
    """Hash over plain values, equal for equal values in any order of keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def git_commit() -> str:
    """The checked-out commit, with ``-dirty`` where tracked files differ from it; else ``unknown``."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def source_tags() -> dict[str, str]:
    """Where MLflow's pages say that a run came from."""
    return {
        "mlflow.source.name": "dvc repro",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git_commit(),
    }


def dvc_outputs(lock: Path) -> dict[str, dict[str, str]]:
    """What `dvc.lock` says of each stage's outputs: path to hash."""
    stages = yaml.safe_load(lock.read_text())["stages"]
    return {
        name: {out["path"]: out["md5"] for out in stage.get("outs", ())} for name, stage in stages.items()
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    return {package: version(package) for package in PACKAGES}
