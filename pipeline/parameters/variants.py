"""Variants, and the settings of the operations that make them."""

from typing import Annotated, Literal, TypeVar

from pydantic import ConfigDict, Field

from pipeline.distillation.settings import DistillationSettings, StudentTraining
from pipeline.pruning.settings import PruningSettings
from pipeline.quantization.settings import QuantizationSettings
from pipeline.settings import Settings

VariantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
"""Name of a variant. A dot is not allowed: DVC takes it for the end of a key."""


class Distill(DistillationSettings, StudentTraining):
    """Distillation: a student is trained on the outputs of the teacher."""


class Prune(PruningSettings, StudentTraining):
    """Pruning: channels of the parent are removed, and the rest is fine-tuned."""


class Quantize(QuantizationSettings, StudentTraining):
    """Quantisation to eight-bit integers; with `qat` the training settings apply."""


OPERATIONS: dict[str, type[StudentTraining]] = {"distill": Distill, "prune": Prune, "quantize": Quantize}
"""Operation of a variant to the class of its settings."""
Operation = TypeVar("Operation", bound=StudentTraining)


class Variant(Settings):
    """A variant: its parent, one operation, and all settings that differ from the section of the
    operation."""

    model_config = ConfigDict(extra="allow")

    parent: str
    """`teacher`, or the name of another variant."""
    op: Literal["distill", "prune", "quantize"]
    """The operation that makes the variant from its parent."""
