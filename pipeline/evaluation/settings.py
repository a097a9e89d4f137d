"""Settings of the evaluation on the test images and of the acceptance of variants."""

from typing import Annotated

from pydantic import Field

from pipeline.settings import Fraction, OptionalPath, Settings


class EvaluationSettings(Settings):
    """What is compared besides the score."""

    metadata: OptionalPath = None
    """CSV file with a column `file_name` and any further columns, by each of which the test images are
    grouped; `configs/none` for none."""
    parity: Annotated[int, Field(ge=0)] | None = 64
    """Number of validation images, stratified by class, on which every form of the network from the PyTorch
    module to the shipped file is compared; null takes all, 0 skips the comparison."""


class GateSettings(Settings):
    """When a variant is accepted."""

    max_drop: Fraction = 0.04
    """Maximum loss of score against the parent, as a fraction of 1. The whole confidence interval must be
    within it."""
