"""The teacher: a classifier, its input contract, and how it is fitted to the classes of the data."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from teachers.contract import InputContract
from teachers.errors import TeacherError
from teachers.labels import normalise


@dataclass(frozen=True)
class Teacher:
    """A classifier with everything that is needed to get its answers."""

    module: nn.Module
    """Network from normalised images to logits."""
    outputs: int
    """Number of logits per image."""
    input: InputContract | None
    """Input contract; None if it is not known from the weights, so that the user must give it."""
    head: str | None
    """Module path of the last linear layer, which adaptation replaces; None if the network cannot be
    changed."""
    origin: str
    """Architecture and weights in words, for cards."""
    labels: tuple[str, ...] | None = None
    """Class names in the order of the logits; None if they are not known."""


class Columns(nn.Module):
    """A classifier's logits for some of its classes."""

    def __init__(self, classifier: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.classifier = classifier
        self.columns = list(columns)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(x)[:, self.columns]


def columns(teacher: Teacher, classes: Sequence[str]) -> tuple[int, ...]:
    """Find the logits of the classes of the data, for a teacher that knows these classes already.

    If the teacher has class names, they are matched: whole or up to the first comma, ignoring case, with
    blanks for underscores and hyphens. Without names there must be as many logits as classes.

    Raises:
        TeacherError: the teacher does not know these classes.
    """
    known: dict[str, int] = {}
    for index, label in reversed(list(enumerate(teacher.labels or ()))):
        known |= {normalise(label.split(",")[0]): index, normalise(label): index}
    unknown = [name for name in classes if normalise(name) not in known]
    if teacher.labels == tuple(classes) or (not teacher.labels and teacher.outputs == len(classes)):
        return tuple(range(len(classes)))
    if teacher.labels and not unknown:
        return tuple(known[normalise(name)] for name in classes)
    names = f"no {unknown[0]!r} among {', '.join(teacher.labels[:5])}, ..." if teacher.labels else "no names"
    raise TeacherError(
        f"{teacher.origin} knows {teacher.outputs} classes with {names}; the data have {len(classes)}. "
        "Set teacher.head or teacher.full to adapt it"
    )


def replace_head(teacher: Teacher, classes: int) -> None:
    """Replace the classifier by a new linear layer for ``classes``, initialised with zeros.

    Raises:
        TeacherError: the teacher has no head, or it is not a linear layer.
    """
    if teacher.head is None:
        raise TeacherError(f"{teacher.origin} cannot be adapted; teacher.head and teacher.full must be null")
    parent_path, _, name = teacher.head.rpartition(".")
    parent = teacher.module.get_submodule(parent_path)
    old = getattr(parent, name)
    if not isinstance(old, nn.Linear):
        raise TeacherError(
            f"{teacher.origin}: the head `{teacher.head}` (={type(old).__name__}) must be a linear layer"
        )
    new = nn.Linear(old.in_features, classes)
    nn.init.zeros_(new.weight)
    nn.init.zeros_(new.bias)
    setattr(parent, name, new)


def last_linear(module: nn.Module) -> str | None:
    """Return the module path of the last linear layer; None if there is none."""
    paths = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    return paths[-1] if paths else None
