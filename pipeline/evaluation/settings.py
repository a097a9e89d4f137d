"""Settings of the evaluation on the test images and of the acceptance of variants."""

from typing import Annotated

from pydantic import Field

from pipeline.settings import Fraction, OptionalPath, Settings


class EvaluationSettings(Settings):
    """What is compared besides the score."""

    metadata: OptionalPath = None
    """CSV file with a column `file_name` and any further columns, by each of which the test images are
    grouped; `configs/none` for none."""
    parity: Annotated[int, Field(ge=0, le=100_000)] | None = 64
    """Number of validation images, stratified by class, on which every form of the network from the PyTorch
    module to the shipped file is compared; null takes all, 0 skips the comparison."""


class StepLimits(Settings):
    """Greatest losses that one kind of step may cause."""

    max_drop: Fraction
    """Maximum loss of score against the parent, as a fraction of 1. The whole confidence interval must be
    within it."""
    max_class_drop: Fraction
    """Maximum loss of any class against the parent, as a fraction of 1. A class counts whose loss is shown,
    corrected for the number of classes, and estimated to be greater."""


class GateSettings(Settings):
    """When a variant is accepted, by the step that makes it."""

    load: StepLimits = StepLimits(max_drop=0.04, max_class_drop=0.1)
    """Limits of the file of a network that is taken as it is, against that network."""
    distill: StepLimits = StepLimits(max_drop=0.04, max_class_drop=0.1)
    """Limits of students that are distilled from the teacher."""
    prune: StepLimits = StepLimits(max_drop=0.02, max_class_drop=0.05)
    """Limits of pruned variants."""
    quantize: StepLimits = StepLimits(max_drop=0.01, max_class_drop=0.03)
    """Limits of quantised variants."""
