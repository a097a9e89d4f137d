"""Variants, and the settings of the operations that make them."""

import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field

from pipeline.distillation.settings import DistillationSettings, FineTuning, StudentTraining
from pipeline.pruning.settings import PruningSettings
from pipeline.quantization.settings import QuantizationSettings
from pipeline.settings import Settings

LONGEST_NAME = 64
"""Greatest number of characters of a variant's name, which is part of the names of files."""

LEAST_EPOCHS = 0.0001
"""Least number of epochs of a training, of which there may be none."""

RESERVED = ("none", "teacher")
"""Names that variants cannot have. The checkpoints of teachers lie in folders that begin with `teacher-`."""


def _check_name(name: str) -> str:
    if re.fullmatch("[a-z0-9][a-z0-9-]*", name) is None or len(name) > LONGEST_NAME:
        raise ValueError(
            "not a valid name of a variant; allowed: a-z, 0-9 and -, the first not -, "
            f"up to {LONGEST_NAME} characters"
        )
    if name in RESERVED or name.startswith("teacher-"):
        raise ValueError("this name is reserved; choose another")
    return name


VariantName = Annotated[str, AfterValidator(_check_name)]
"""Name of a variant: of a file, of a stage (DVC takes a dot for the end of a key) and of an MLflow run."""


class Distill(DistillationSettings, StudentTraining):
    """Distillation: a student is trained on the outputs of the teacher. With a variant as its parent, that
    variant is trained once more: on images whose labels are verified, or with another objective."""


def _check_epochs(epochs: float) -> float:
    if 0 < epochs < LEAST_EPOCHS:
        raise ValueError(f"must be 0, or at least {LEAST_EPOCHS}")
    return epochs


class Load(Settings):
    """Nothing is trained: the network of the teacher, which has the architecture of a student
    (`teacher.source: student`), is a variant as it is. It has no keys."""


class Prune(PruningSettings, FineTuning):
    """Pruning: channels of the parent are removed, and the rest is fitted to it and fine-tuned."""

    epochs: Annotated[float, Field(ge=0, le=100_000), AfterValidator(_check_epochs)]
    """Number of passes over the training images of the fine-tuning. With 0 nothing is trained, and the layers
    stay as they were fitted to the outputs of the parent's, by least squares."""


class Quantize(QuantizationSettings, FineTuning):
    """Quantisation to eight-bit integers; with `qat` the training settings apply."""


OPERATIONS: dict[str, type[Settings]] = {
    "load": Load,
    "distill": Distill,
    "prune": Prune,
    "quantize": Quantize,
}
"""Operation of a variant to the class of its settings."""
Operation = TypeVar("Operation", bound=Settings)


class Variant(Settings):
    """A variant: its parent, one operation, and all settings that differ from the section of the
    operation."""

    model_config = ConfigDict(extra="allow")

    parent: str
    """`teacher`, or the name of another variant."""
    op: Literal["load", "distill", "prune", "quantize"]
    """The operation that makes the variant from its parent."""
