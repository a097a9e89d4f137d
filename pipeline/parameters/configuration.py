"""The plan as a file below `configs/`, which a person can read and edit, and `params.yaml`, made from it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import files, paths
from pipeline.errors import DistilleryError
from pipeline.parameters import checks, composition
from pipeline.parameters.sections import Parameters

NAME = "run"
FILE = paths.CONFIGS / f"{NAME}.yaml"
"""Composed by `python -m pipeline params run`."""
PREVIOUS = FILE.with_suffix(".yaml.previous")
"""The plan before the last one, with whatever a person has edited."""
WRITTEN = "# Written by `{}`."
"""First line of the file."""


class ConfigurationError(DistilleryError):
    """There is no plan yet."""


def write(groups: Mapping[str, str], values: Mapping[str, Any], command: str, remarks: Sequence[str]) -> None:
    """Write the file, and `params.yaml` composed from it.

    Args:
        groups: member of each group of `configs/`.
        values: nested values that take precedence over the groups.
        command: command that made the plan.
        remarks: further lines for the head of the file.
    """
    lines = [WRITTEN.format(command), *(f"# {remark}" for remark in remarks), "defaults:", "  - config"]
    lines += [f"  - override /{group}: {member}" for group, member in groups.items()]
    ordered = {name: values[name] for name in Parameters.model_fields if name in values}
    files.write(FILE, "\n".join([*lines, "  - _self_", "", composition.dump(ordered)]))
    compose()


def compose() -> None:
    """Compose `params.yaml` from the file, and make it the one that `dvc exp run -S` starts from.

    Raises:
        ConfigurationError: there is no such file.
        ParameterError: a value in it is not valid.
    """
    if not FILE.is_file():
        raise ConfigurationError(
            f"{FILE} does not exist; `python -m pipeline run FOLDER` plans for a folder of images and "
            "writes it"
        )
    composition.write([NAME])
    subprocess.run(
        [sys.executable, "-m", "dvc", "config", "--local", "hydra.config_name", NAME],
        check=False,
        capture_output=True,
    )


def planned() -> Parameters | None:
    """The parameters that the file stands for; None if there is no file."""
    return checks.check(composition.composed(NAME), str(FILE)) if FILE.is_file() else None


def is_written_by(command: str) -> bool:
    """Whether the file is the plan that a command made before."""
    if not FILE.is_file():
        return False
    with FILE.open() as file:
        return file.readline().rstrip("\n") == WRITTEN.format(command)


def keep_previous() -> Path | None:
    """Put the file aside before another takes its place; None if there is none."""
    if not FILE.is_file():
        return None
    FILE.replace(PREVIOUS)
    return PREVIOUS
