"""The base of every group of settings. A library declares its own; `pipeline.parameters` composes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline import paths


class Settings(BaseModel):
    """A frozen group of validated settings; a key that is not declared is refused.

    The docstring below a field describes it in ``docs/parameters.md``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share of a whole, from 0 to 1."""
ImageSize = Annotated[int, Field(ge=32, le=1024)]
"""Height and width of a square image, in pixels."""
OptionalPath = Annotated[
    Path | None, BeforeValidator(lambda value: None if value == str(paths.NONE) else value)
]
"""A path, or ``configs/none`` where there is none: DVC, which depends on the path, takes no null."""


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, mappings merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
