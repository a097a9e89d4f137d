"""The plan as a file below `configs/`, which a person can read and edit, and `params.yaml`, made from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import files, paths
from pipeline.parameters import composition

NAME = "run"
FILE = paths.CONFIGS / f"{NAME}.yaml"
"""Composed by `python -m pipeline params run`."""


def write(groups: Mapping[str, str], values: Mapping[str, Any], remarks: Sequence[str]) -> None:
    """Write the file, and `params.yaml` composed from it.

    Args:
        groups: member of each group of `configs/`.
        values: nested values that take precedence over the groups.
        remarks: lines for the head of the file.
    """
    lines = [*(f"# {remark}" for remark in remarks), "defaults:", "  - config"]
    lines += [f"  - override /{group}: {member}" for group, member in groups.items()]
    files.write(FILE, "\n".join([*lines, "  - _self_", "", composition.dump(dict(values))]))
    composition.write([NAME])
