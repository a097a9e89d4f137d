"""The teacher: a classifier, its input contract, and how it is fitted to the classes of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from teachers import heads, labels
from teachers.contract import InputContract
from teachers.errors import TeacherError, one_line
from teachers.labels import LabelsError

HOW_TO_NAME = "Set teacher.labels to the names in the order of its logits (a list or a file)"
HOW_TO_ORDER = f"{HOW_TO_NAME}, or to data (the order of the data) or natural (numbers within names by value)"


@dataclass(frozen=True)
class Teacher:
    """A classifier with everything that is needed to get its answers."""

    module: nn.Module
    """Network from normalised images to logits."""
    outputs: int
    """Number of logits per image."""
    input: InputContract | None
    """Input contract; None if it is not known from the weights, so that the user must give it."""
    heads: tuple[str, ...]
    """Module paths of the last layers, which adaptation replaces; none if the network cannot be changed."""
    origin: str
    """Architecture and weights in words, for cards."""
    labels: tuple[str, ...] | None = None
    """Class names in the order of the logits; None if they are not known."""
    arguments: Mapping[str, Any] | None = None
    """Keyword arguments that rebuild a network of a student's architecture; None for any other network."""


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

    If the teacher has class names, they are matched by ``labels.match``. Without names there must be as many
    logits as classes, and there must be one usual order of the classes: of names with numbers there are two.

    Raises:
        TeacherError: the teacher does not know these classes, or it is not certain which logit is whose.
    """
    if teacher.labels:
        try:
            return labels.match(classes, teacher.labels)
        except LabelsError as error:
            raise TeacherError(
                f"{teacher.origin} has {teacher.outputs} logits; {error}. {_remedy(teacher, classes)}"
            ) from error
    if teacher.outputs != len(classes):
        raise TeacherError(
            f"{teacher.origin} has {teacher.outputs} logits without names; the data have {len(classes)} "
            f"classes. {_remedy(teacher, classes)}"
        )
    by_text, by_number = tuple(sorted(classes)), labels.natural(classes)
    if by_text != by_number:
        raise TeacherError(
            f"{teacher.origin} has {teacher.outputs} logits without names, and the classes of the data have "
            f"two usual orders: {labels.listing(by_text)} and natural, {labels.listing(by_number)}. "
            f"{HOW_TO_ORDER}"
        )
    return tuple(range(len(classes)))


def _remedy(teacher: Teacher, classes: Sequence[str]) -> str:
    """What to do about a teacher whose logits are not known to be those of the classes."""
    if teacher.arguments is None:
        adapt = "adapt it with teacher.head or teacher.full"
        return f"{HOW_TO_NAME}, or {adapt}" if teacher.outputs >= len(classes) else f"To learn them, {adapt}"
    # A network that is taken as it is, without any training.
    if teacher.outputs < len(classes):
        return "It cannot know all of them; take images of the classes that it was trained on"
    return HOW_TO_NAME if teacher.outputs > len(classes) else HOW_TO_ORDER


def name_logits(teacher: Teacher, names: str | Sequence[str], classes: Sequence[str]) -> Teacher:
    """Return the teacher with the names of its logits as the user gives them.

    Args:
        teacher: the teacher as it was loaded.
        names: names in the order of the logits; or ``data`` for the classes in the order of the data, or
            ``natural`` for the classes sorted so that numbers within them count by value; or a file with one
            name per line, or with a JSON list.
        classes: classes of the data.

    Raises:
        TeacherError: the file cannot be read, or there are not as many names as logits.
    """
    if names == "data":
        given = tuple(classes)
    elif names == "natural":
        given = labels.natural(classes)
    else:
        given = labels.read(Path(names)) if isinstance(names, str) else tuple(names)
    if len(given) != teacher.outputs:
        raise TeacherError(
            f"teacher.labels: {len(given)} names ({labels.listing(given)}) for {teacher.outputs} logits of "
            f"{teacher.origin}; allowed: as many names as logits"
        )
    return replace(teacher, labels=given)


def replace_heads(teacher: Teacher, classes: int) -> None:
    """Replace the last layers by new ones for ``classes``, initialised with zeros.

    Raises:
        TeacherError: the teacher has no last layer that can be replaced.
    """
    if not teacher.heads:
        raise TeacherError(f"{teacher.origin} cannot be adapted; teacher.head and teacher.full must be null")
    heads.replace(teacher.module, teacher.heads, classes)


def describe(
    module: nn.Module, contract: InputContract, origin: str, names: tuple[str, ...] | None = None
) -> Teacher:
    """Return a teacher of a network, whose last layers are found by trying it once at its own size.

    Raises:
        TeacherError: the network does not answer an image of this size with one row of logits.
    """
    try:
        paths = heads.find(module, contract.size)
    except Exception as error:  # a network can fail in any way
        raise TeacherError(f"{origin} fails at its first image: {one_line(error)}") from error
    if not paths:
        raise TeacherError(
            f"{origin}: its last layers cannot be found; allowed: linear layers or convolutions whose "
            "outputs are the logits"
        )
    return Teacher(module, heads.count_outputs(module, paths), contract, paths, origin, names)
