"""The base of every group of settings. A library declares its own; `pipeline.parameters` composes them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from pipeline import paths


class Settings(BaseModel):
    """A frozen group of validated settings; a key that is not declared is refused.

    The docstring below a field describes it in ``docs/parameters.md``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_as_a_number(cls, value: Any, info: Any) -> Any:
        """Python takes `true` for 1; here it is refused where no truth value is meant."""
        items = value if isinstance(value, list | tuple) else (value,)
        name = info.field_name
        if name and any(isinstance(item, bool) for item in items):
            kinds = set(_plain_types(cls.model_fields[name].annotation))
            if kinds & {int, float} and bool not in kinds:
                raise ValueError("must be a number, not a truth value")
        return value


Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share of a whole, from 0 to 1."""
ImageSize = Annotated[int, Field(ge=32, le=1024)]
"""Height and width of a square image, in pixels."""
OptionalPath = Annotated[
    Path | None, BeforeValidator(lambda value: None if value == str(paths.NONE) else value)
]
"""A path, or ``configs/none`` where there is none: DVC, which depends on the path, takes no null."""


def _plain_types(annotation: Any) -> Iterator[Any]:
    """The types of which an annotation is composed."""
    yield annotation
    for part in get_args(annotation):
        yield from _plain_types(part)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, mappings merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
