"""The base of every group of settings. A library declares its own; `pipeline.parameters` composes them."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen group of validated settings; a key that is not declared is refused.

    The docstring below a field describes it in ``docs/parameters.md``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
