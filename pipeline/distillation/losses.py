"""Losses of distillation for data with exactly one true class per image.

All take logits of shape ``[batch, classes]`` and return the mean over images, times the squared temperature.
The square keeps the scale of the gradient independent of the temperature (Hinton et al. 2015,
https://arxiv.org/abs/1503.02531, section 2).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from pipeline.tasks import binary_kl, softmax_kl


def standardised_kl(
    logits: Float[Tensor, "batch classes"], answers: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """``softmax_kl`` of logits that are scaled to mean 0 and standard deviation 1 per image.

    The student then learns the relations between the teacher's logits and not their magnitude (Sun et al.
    2024, https://arxiv.org/abs/2403.01427).
    """
    return softmax_kl(_standardised(logits), _standardised(answers), temperature)


def dkd(
    logits: Float[Tensor, "batch classes"],
    answers: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"],
    temperature: float,
    beta: float,
) -> Float[Tensor, ""]:
    """Decoupled knowledge distillation: the true class against the rest, plus ``beta`` times the other
    classes.

    The KL divergence is the same sum with ``beta`` replaced by the probability that the teacher gives to the
    other classes, which suppresses them where the teacher is confident (Zhao et al. 2022,
    https://arxiv.org/abs/2203.08679, equation 6). If labels are shares of classes, the class with the
    greatest share counts as true if its share is at least a half; otherwise, as for unlabelled images, the
    teacher's most probable class does.
    """
    if labels.ndim == 2:
        share, largest = labels.max(dim=1)
        labels = torch.where(share >= 0.5, largest, answers.argmax(dim=1))
    target = binary_kl(
        _log_odds(logits / temperature, labels), _log_odds(answers / temperature, labels)
    ).mean()
    others = softmax_kl(_without(logits, labels), _without(answers, labels), temperature)
    return target * temperature**2 + beta * others


def dist(
    logits: Float[Tensor, "batch classes"], answers: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """1 - Pearson's correlation of the probabilities, within images plus, class by class, across the batch.

    DIST (Huang et al. 2022, https://arxiv.org/abs/2205.10536).
    """
    student, teacher = (logits / temperature).softmax(dim=1), (answers / temperature).softmax(dim=1)
    within = 1 - functional.cosine_similarity(_centred(student, 1), _centred(teacher, 1), dim=1).mean()
    across = 1 - functional.cosine_similarity(_centred(student, 0), _centred(teacher, 0), dim=0).mean()
    return (within + across) * temperature**2


def _standardised(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    centred = _centred(logits, 1)
    # Clamped before the root, whose slope at 0 is infinite: all logits of an image may be equal.
    return centred / centred.square().mean(dim=1, keepdim=True).clamp_min(1e-14).sqrt()


def _centred(values: Float[Tensor, "batch classes"], dim: int) -> Float[Tensor, "batch classes"]:
    return values - values.mean(dim=dim, keepdim=True)


def _without(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> Float[Tensor, "batch others"]:
    """The logits of all classes but the true one."""
    # By indices: a mask would make the host wait for the device to count the remaining logits.
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, others + (others >= labels[:, None]))


def _log_odds(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Log-odds of the true class against all others together."""
    return logits.gather(1, labels[:, None])[:, 0] - _without(logits, labels).logsumexp(dim=1)
