"""What a teacher is."""

from dataclasses import dataclass

from torch import nn

from teachers.contract import InputContract


class TeacherError(Exception):
    """A teacher cannot be had; the message says what was expected and what was found."""


@dataclass(frozen=True)
class Teacher:
    """A classifier with everything that is needed to ask it."""

    module: nn.Module
    """Gives logits."""
    input: InputContract
    head: str
    """Module path of the last linear layer, which adaptation replaces."""
    origin: str
    """Architecture and weights in words, for cards."""


def replace_head(teacher: Teacher, classes: int) -> None:
    """Put a new, zero-initialised linear layer for ``classes`` in the place of the old classifier.

    Raises:
        TeacherError: the head is not a linear layer.
    """
    parent_path, _, name = teacher.head.rpartition(".")
    parent = teacher.module.get_submodule(parent_path)
    old = getattr(parent, name)
    if not isinstance(old, nn.Linear):
        raise TeacherError(
            f"{teacher.origin}: the head `{teacher.head}` is {type(old).__name__}; it must be a linear layer"
        )
    new = nn.Linear(old.in_features, classes)
    nn.init.zeros_(new.weight)
    nn.init.zeros_(new.bias)
    setattr(parent, name, new)
