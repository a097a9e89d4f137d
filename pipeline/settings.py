"""The base of every group of settings. A library declares its own; `pipeline.parameters` composes them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

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

    @field_validator("*", mode="before")
    @classmethod
    def _no_empty_path(cls, value: Any, info: Any) -> Any:
        """Python takes an empty path for the working folder."""
        name = info.field_name
        empty = isinstance(value, str) and not value.strip()
        if name and empty and Path in _plain_types(cls.model_fields[name].annotation):
            raise ValueError("the path is empty; is a variable of the shell not set?")
        return value


Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share of a whole, from 0 to 1."""
ImageSize = Annotated[int, Field(ge=32, le=1024)]
"""Height and width of a square image, in pixels."""
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
"""Number of images per step."""
Count = Annotated[int, Field(ge=1, le=100_000)]
"""Number of images that are held in memory or drawn."""
Name = Annotated[str, Field(min_length=1)]
"""A name or a path of a file that is not optional."""
OptionalPath = Annotated[
    Path | None, BeforeValidator(lambda value: None if value == str(paths.NONE) else value)
]
"""A path, or ``configs/none`` where there is none: DVC, which depends on the path, takes no null."""


Item = TypeVar("Item")


def _distinct(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if twice := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"the value {twice[0]} is repeated")
    return values


Distinct = Annotated[tuple[Item, ...], Field(min_length=1, max_length=32), AfterValidator(_distinct)]
"""A list of up to 32 different values."""


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
