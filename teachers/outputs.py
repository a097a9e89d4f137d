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

FEWEST = 8
"""Fewest images by whose answers it is judged whether values that can be negative are probabilities that were
shifted and scaled. Logits seldom have the same sum for all of them, or reach the same bounds."""
BOUND = 0.005
"""Distance from a bound, as a share of the range of all outputs, within which an output counts as at it."""
AT_BOUNDS = 0.5
"""Share of the images with an output at either bound above which the outputs are bounded."""

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
        TeacherError: the values can be probabilities, also shifted and scaled ones, and can be logits.
    """
    low, high = float(outputs.min()), float(outputs.max())
    sums = outputs.double().sum(1)
    if by_file != "logits":
        return declared(outputs, exclusive=exclusive, by_file=by_file)
    if low == high:
        return "logits"
    if low < -TOLERANCE:
        _refuse_disguised(outputs, low, high)
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
        raise _disguised(f"its outputs are never negative, and those for each image add up to {total:.4g}")
    _refuse_disguised(outputs, low, high)
    return "logits"


def _refuse_disguised(outputs: Float[Tensor, "images classes"], low: float, high: float) -> None:
    """Refuse outputs that can be probabilities times a number plus another one.

    Those of a softmax have the same sum for each image. So have the logits of a layer that began with zeros
    and was trained with the cross entropy: their sum is 0, but they are not bounded. Those of a sigmoid or a
    hyperbolic tangent reach the same bounds for many images.

    Raises:
        TeacherError: the values can be probabilities.
    """
    images, classes = outputs.shape
    if images < FEWEST or classes < 2:
        return
    sums = outputs.double().sum(1)
    total, span = float(sums.mean()), high - low
    near = BOUND * span
    shares = [
        float(at_bound.float().mean())
        for at_bound in ((outputs <= low + near).any(1), (outputs >= high - near).any(1))
    ]
    bounded = min(shares) > AT_BOUNDS
    words = f"all its outputs lie between {low:.3g} and {high:.3g}"
    if bool(((sums - total).abs() <= TOLERANCE * span).all()) and (
        bounded or max(-low, high) <= 1 + TOLERANCE or abs(total) > TOLERANCE * span * classes
    ):
        raise _disguised(f"{words}, and those for each image add up to {total:.4g}")
    if bounded:
        raise _disguised(f"{words}, and for most images some of them reach both bounds")


def declared(outputs: Float[Tensor, "images classes"], *, exclusive: bool, by_file: Form = "logits") -> Form:
    """Return the form of outputs that are probabilities, as their file or the user says.

    Args:
        outputs: finite outputs for many different images.
        exclusive: whether each image has exactly one class.
        by_file: form that the last operator of the file has, if it is a softmax or a sigmoid.

    Raises:
        TeacherError: a value lies outside of 0 to 1, or those of a softmax add up to more than 1.
    """
    low, high = float(outputs.min()), float(outputs.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise TeacherError(
            f"its outputs lie between {low:.3g} and {high:.3g}, so they are not probabilities; set "
            "teacher.outputs to logits if that is what they are"
        )
    if by_file == "softmax" and not exclusive:
        raise _ambiguous("its file ends in a softmax over all attributes")
    greatest = float(outputs.sum(1).max())
    if by_file == "softmax" and greatest > 1 + TOLERANCE:
        raise TeacherError(
            f"its file ends in a softmax, but its outputs for an image add up to {greatest:.4g} instead of "
            "1, as those of a softmax over the batch do"
        )
    if by_file != "logits":
        return by_file
    return "softmax" if exclusive and bool((outputs.sum(1) <= 1 + TOLERANCE).all()) else "sigmoid"


def _disguised(reason: str) -> TeacherError:
    return TeacherError(
        f"{reason}, as probabilities do that were shifted or scaled; use a file that returns logits or "
        "probabilities, or set teacher.outputs to logits if that is what they are"
    )


def _ambiguous(reason: str) -> TeacherError:
    return TeacherError(
        f"{reason}; set teacher.outputs to probabilities, or to logits if that is what they are"
    )
