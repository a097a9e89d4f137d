"""What a classifier returns: logits, or probabilities, of which the logits are computed here."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from teachers.errors import TeacherError

Form = Literal["logits", "softmax", "sigmoid"]
"""Form of a classifier's outputs: logits, probabilities of which one row adds up to 1, or one probability per
class or attribute by itself."""

LEAST_PROBABILITY = 1e-12
"""Least probability of a class whose logarithm is taken."""
LEAST_DOUBT = 1e-7
"""Least distance of an attribute's probability from 0 and 1; float32 rounds what is nearer to 1 to 1."""
TOLERANCE = 2e-3
"""Greatest distance of a sum of probabilities from 1; with float16 inside, a sum of 1000 is off by 0.001."""
SPREAD = 0.25
"""Distance from 0 and from 1 within which some outputs lie, if those between 0 and 1 are probabilities."""

INVERSES: dict[Form, Callable[[Tensor], Tensor]] = {
    "logits": lambda outputs: outputs,
    "softmax": lambda outputs: outputs.clamp_min(LEAST_PROBABILITY).log(),
    "sigmoid": lambda outputs: torch.logit(outputs, eps=LEAST_DOUBT),
}
"""Function from outputs to logits, by the form of the outputs."""


class Logits(nn.Module):
    """The logits of a classifier that returns probabilities."""

    def __init__(self, classifier: nn.Module, form: Form) -> None:
        super().__init__()
        self.classifier = classifier
        self.form: Form = form

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return INVERSES[self.form](self.classifier(x).float())


def as_logits(classifier: nn.Module, form: Form) -> nn.Module:
    """Return the classifier itself if its outputs are logits, or a module that computes them."""
    return classifier if form == "logits" else Logits(classifier, form)


def judge(outputs: Float[Tensor, "images classes"], *, exclusive: bool, by_file: Form = "logits") -> Form:
    """Judge in which form a classifier returns its answers.

    Logarithms of probabilities count as logits.

    Args:
        outputs: finite outputs for many different images.
        exclusive: whether each image has exactly one class.
        by_file: form that the last operator of the file has, if it is a softmax or a sigmoid.

    Raises:
        TeacherError: the values can be probabilities and can be logits.
    """
    low, high = float(outputs.min()), float(outputs.max())
    sums = outputs.double().sum(1)
    if by_file != "logits":
        return declared(outputs, exclusive=exclusive, by_file=by_file)
    if low < -TOLERANCE or low == high:
        return "logits"
    if outputs.shape[1] > 1 and bool(((sums - 1).abs() <= TOLERANCE).all()):
        if exclusive:
            return "softmax"
        raise _ambiguous("its outputs for each image add up to 1, as the probabilities of classes do")
    if high <= 1 + TOLERANCE:
        if not exclusive and low < SPREAD and high > 1 - SPREAD:
            return "sigmoid"
        raise _ambiguous(f"all its outputs lie between {low:.3g} and {high:.3g}")
    total = float(sums.mean())
    if len(sums) > 1 and bool(((sums - total).abs() <= TOLERANCE * total).all()):
        raise _ambiguous(f"its outputs are never negative, and those for each image add up to {total:.4g}")
    return "logits"


def declared(outputs: Float[Tensor, "images classes"], *, exclusive: bool, by_file: Form = "logits") -> Form:
    """Return the form of outputs that are probabilities, as their file or the user says.

    Args:
        outputs: finite outputs for many different images.
        exclusive: whether each image has exactly one class.
        by_file: form that the last operator of the file has, if it is a softmax or a sigmoid.

    Raises:
        TeacherError: a value lies outside of 0 to 1.
    """
    low, high = float(outputs.min()), float(outputs.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise TeacherError(
            f"its outputs lie between {low:.3g} and {high:.3g}, so they are not probabilities; set "
            "teacher.outputs to logits if that is what they are"
        )
    if by_file == "softmax" and not exclusive:
        raise _ambiguous("its file ends in a softmax over all attributes")
    if by_file != "logits":
        return by_file
    return "softmax" if exclusive and bool((outputs.sum(1) <= 1 + TOLERANCE).all()) else "sigmoid"


def _ambiguous(reason: str) -> TeacherError:
    return TeacherError(
        f"{reason}; set teacher.outputs to probabilities, or to logits if that is what they are"
    )
