"""Settings of the LiteRT files."""

from typing import Literal

from pydantic import model_validator

from pipeline import paths
from pipeline.settings import OptionalPath, Settings


class LiteRtSettings(Settings):
    """Whether the variants are also written as LiteRT (TensorFlow Lite) files: `litert=all` and `litert=none`
    set both keys."""

    stages: tuple[Literal["all"], ...] = ()
    """`[all]` if DVC has a stage for all variants' files; `[]` if it has none."""
    results: OptionalPath = None
    """`artifacts/litert`, the folder of that stage, for what reports it and ships it; `configs/none` without
    the stage."""

    @model_validator(mode="after")
    def _agree(self) -> "LiteRtSettings":
        expected = paths.LITERT if self.stages else None
        if self.stages not in ((), ("all",)) or self.results != expected:
            raise ValueError(
                f"stages = {list(self.stages)} and results = {self.results or paths.NONE}; `litert=all` sets "
                f"[all] and {paths.LITERT}, `litert=none` sets [] and {paths.NONE}"
            )
        return self
