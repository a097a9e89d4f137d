"""What a classifier is asked of an image: which class it is, or which of several attributes it has."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor
from torch.nn import functional

from pipeline.statistics.average_precision import mean_average_precision

TaskName = Literal["single_label", "multi_label"]
Metric = Literal["top1", "map"]


@dataclass(frozen=True)
class Task:
    """Losses and scores of one kind of question."""

    name: TaskName
    metric: Metric
    """Key of its score, a fraction of 1, in metrics, histories and tables."""
    words: str
    """The metric for people."""
    onnx: str
    """``task`` in a shipped file's metadata."""
    cross_entropy: Callable[[Tensor, Tensor], Float[Tensor, ""]]
    """From logits and targets, mean over images."""
    kl: Callable[[Tensor, Tensor, float], Float[Tensor, ""]]
    """From student's and teacher's logits and temperature, mean over images, times temperature squared."""
    mean: Callable[[Sequence[Tensor]], Tensor]
    """Logits of an ensemble from those of its members: of the mean of their probabilities."""
    predictions: Callable[[Tensor], np.ndarray]
    """What is kept of logits to score them and to compare variants image by image."""
    score: Callable[[np.ndarray, np.ndarray], float]
    """The metric, from predictions and targets."""


def softmax_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross entropy with classes or shares of them, mean over images; a row of zeros adds nothing."""
    return functional.cross_entropy(logits, labels)


def softmax_kl(
    logits: Float[Tensor, "batch classes"], answers: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """KL divergence of the student from the teacher, mean over images, times temperature squared.

    The square keeps the gradient's size independent of the temperature (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531, section 2).
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(answers / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def standardised_kl(
    logits: Float[Tensor, "batch classes"], answers: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """``softmax_kl`` of logits brought to mean 0 and standard deviation 1, image by image.

    The student need not reach the size of the teacher's logits, only their relations (Sun et al. 2024,
    https://arxiv.org/abs/2403.01427).
    """
    return softmax_kl(_standardised(logits), _standardised(answers), temperature)


def dkd(
    logits: Float[Tensor, "batch classes"],
    answers: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"],
    temperature: float,
    beta: float,
) -> Float[Tensor, ""]:
    """Decoupled distillation: how sure of the true class, plus ``beta`` times the rest among themselves.

    Mean over images, times temperature squared. The KL divergence is the same sum with the teacher's doubt in
    the place of ``beta``, which silences the rest where the teacher is sure (Zhao et al. 2022,
    https://arxiv.org/abs/2203.08679, equation 6). Of shares of classes the greatest counts as the true one,
    if it is half or more; else, as of images that nobody labelled, the teacher's own choice.
    """
    if labels.ndim == 2:
        share, shown = labels.max(dim=1)
        labels = torch.where(share >= 0.5, shown, answers.argmax(dim=1))
    target = _binary_kl(_odds(logits / temperature, labels), _odds(answers / temperature, labels)).mean()
    others = softmax_kl(_without(logits, labels), _without(answers, labels), temperature)
    return target * temperature**2 + beta * others


def dist(
    logits: Float[Tensor, "batch classes"], answers: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """1 - Pearson's correlation of the probabilities, within images and, class by class, across the batch.

    The mean of each, summed, times temperature squared (Huang et al. 2022, https://arxiv.org/abs/2205.10536).
    """
    student, teacher = (logits / temperature).softmax(dim=1), (answers / temperature).softmax(dim=1)
    within = 1 - functional.cosine_similarity(_centred(student, 1), _centred(teacher, 1), dim=1).mean()
    across = 1 - functional.cosine_similarity(_centred(student, 0), _centred(teacher, 0), dim=0).mean()
    return (within + across) * temperature**2


def _standardised(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    centred = _centred(logits, 1)
    # Bounded before the root, whose slope at 0 has no bound: logits may all be equal.
    return centred / centred.square().mean(dim=1, keepdim=True).clamp_min(1e-14).sqrt()


def _centred(values: Float[Tensor, "batch classes"], dim: int) -> Float[Tensor, "batch classes"]:
    return values - values.mean(dim=dim, keepdim=True)


def _without(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> Float[Tensor, "batch others"]:
    """By numbers: a mask would have the host wait for the device, to count what it leaves."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, others + (others >= labels[:, None]))


def _odds(logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Log-odds of the true class against all others together."""
    return logits.gather(1, labels[:, None])[:, 0] - _without(logits, labels).logsumexp(dim=1)


def softmax_mean(members: Sequence[Float[Tensor, "*batch classes"]]) -> Float[Tensor, "*batch classes"]:
    """The logarithm of the mean probabilities (Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474)."""
    if len(members) == 1:
        return members[0]
    logarithms = torch.stack([torch.log_softmax(logits.float(), dim=-1) for logits in members])
    return logarithms.logsumexp(0) - math.log(len(members))


def sigmoid_cross_entropy(
    logits: Float[Tensor, "batch attributes"], targets: Float[Tensor, "batch attributes"]
) -> Float[Tensor, ""]:
    """Binary cross entropy with targets in [0, 1], mean over images and attributes; NaN adds nothing."""
    known = ~targets.isnan()
    losses = functional.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    return (losses * known).mean()


def sigmoid_kl(
    logits: Float[Tensor, "batch attributes"], answers: Float[Tensor, "batch attributes"], temperature: float
) -> Float[Tensor, ""]:
    """KL divergence of two independent answers an attribute, mean over images and attributes."""
    return _binary_kl(logits / temperature, answers / temperature).mean() * temperature**2


def _binary_kl(student: Float[Tensor, "*any"], teacher: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """KL divergence of answers of yes or no, from their log-odds."""
    truth = teacher.sigmoid()
    there = truth * (functional.logsigmoid(teacher) - functional.logsigmoid(student))
    absent = (1 - truth) * (functional.logsigmoid(-teacher) - functional.logsigmoid(-student))
    return there + absent


def sigmoid_mean(members: Sequence[Float[Tensor, "*batch attributes"]]) -> Float[Tensor, "*batch attributes"]:
    """The log-odds of the mean probabilities."""
    if len(members) == 1:
        return members[0]
    there = torch.stack([functional.logsigmoid(logits.float()) for logits in members]).logsumexp(0)
    absent = torch.stack([functional.logsigmoid(-logits.float()) for logits in members]).logsumexp(0)
    return there - absent


def _classes(logits: Float[Tensor, "images classes"]) -> Int64[np.ndarray, " images"]:
    return logits.argmax(1).numpy()


def _share_right(predictions: Num[np.ndarray, " images"], labels: Num[np.ndarray, " images"]) -> float:
    return int((predictions == labels).sum()) / len(labels)


def _as_they_are(logits: Float[Tensor, "images attributes"]) -> Float[np.ndarray, "images attributes"]:
    return logits.float().numpy()


SINGLE_LABEL = Task(
    name="single_label",
    metric="top1",
    words="top-1",
    onnx="image-classification",
    cross_entropy=softmax_cross_entropy,
    kl=softmax_kl,
    mean=softmax_mean,
    predictions=_classes,
    score=_share_right,
)
MULTI_LABEL = Task(
    name="multi_label",
    metric="map",
    words="mAP",
    onnx="multi-label-image-classification",
    cross_entropy=sigmoid_cross_entropy,
    kl=sigmoid_kl,
    mean=sigmoid_mean,
    predictions=_as_they_are,
    score=mean_average_precision,
)
TASKS: Mapping[str, Task] = {task.name: task for task in (SINGLE_LABEL, MULTI_LABEL)}
"""Name to task."""
METRICS: Mapping[str, Task] = {task.metric: task for task in TASKS.values()}
"""Metric to the task that it scores."""
