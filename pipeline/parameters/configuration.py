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


def written_by() -> str | None:
    """The command that made the plan; None if there is no plan, or a person has removed its first line."""
    if not FILE.is_file():
        return None
    start, end = WRITTEN.split("{}")
    with FILE.open() as file:
        line = file.readline().rstrip("\n")
    has_command = line.startswith(start) and line.endswith(end)
    return line.removeprefix(start).removesuffix(end) if has_command else None


def keep_previous() -> Path | None:
    """Put the file aside before another takes its place; None if there is none."""
    if not FILE.is_file():
        return None
    FILE.replace(PREVIOUS)
    return PREVIOUS
