"""What a teacher is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from teachers.contract import InputContract
from teachers.errors import TeacherError


@dataclass(frozen=True)
class Teacher:
    """A classifier with everything that is needed to ask it."""

    module: nn.Module
    """Gives logits."""
    outputs: int
    """Logits of an image."""
    input: InputContract | None
    """None where the weights do not say it, and the user must."""
    head: str | None
    """Module path of the last linear layer, which adaptation replaces; None for a black box."""
    origin: str
    """Architecture and weights in words, for cards."""
    labels: tuple[str, ...] | None = None
    """Class names in the order of the logits, where they are known."""


class Columns(nn.Module):
    """A classifier's logits for some of its classes."""

    def __init__(self, classifier: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.classifier = classifier
        self.columns = list(columns)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(x)[:, self.columns]


def columns(teacher: Teacher, classes: Sequence[str]) -> tuple[int, ...]:
    """Which logits answer for the classes of the data, of a teacher that knows them already.

    Names are matched where the teacher has names: whole or up to the first comma, in any case, with blanks
    for underscores and hyphens. Without names there must be as many logits as classes.

    Raises:
        TeacherError: it does not know these classes.
    """
    known: dict[str, int] = {}
    for index, label in reversed(list(enumerate(teacher.labels or ()))):
        known |= {_normal(label.split(",")[0]): index, _normal(label): index}
    strange = [name for name in classes if _normal(name) not in known]
    if teacher.labels == tuple(classes) or (not teacher.labels and teacher.outputs == len(classes)):
        return tuple(range(len(classes)))
    if teacher.labels and not strange:
        return tuple(known[_normal(name)] for name in classes)
    names = f"no {strange[0]!r} among {', '.join(teacher.labels[:5])}, ..." if teacher.labels else "no names"
    raise TeacherError(
        f"{teacher.origin} knows {teacher.outputs} classes with {names}; the data have {len(classes)}. "
        "Set teacher.head or teacher.full to adapt it"
    )


def replace_head(teacher: Teacher, classes: int) -> None:
    """Put a new, zero-initialised linear layer for ``classes`` in the place of the old classifier.

    Raises:
        TeacherError: there is no head, or it is not a linear layer.
    """
    if teacher.head is None:
        raise TeacherError(
            f"{teacher.origin} is a black box; it cannot be adapted, teacher.head and .full must be null"
        )
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


def last_linear(module: nn.Module) -> str | None:
    """Module path of the last linear layer."""
    paths = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    return paths[-1] if paths else None


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
