"""The two tasks of a classifier: exactly one class per image, or any number of attributes per image."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int64, Num

from pipeline.statistics import chance
from pipeline.statistics.average_precision import mean_average_precision
from pipeline.statistics.chance import Chance

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # stages that train nothing do without PyTorch, which takes a second to import

TaskName = Literal["single_label", "multi_label"]
Metric = Literal["top1", "map"]


@dataclass(frozen=True)
class Task:
    """Losses and scores of one task."""

    name: TaskName
    metric: Metric
    """Key of the score, a fraction of 1, in metrics, histories and tables."""
    words: str
    """Name of the metric in texts."""
    onnx: str
    """Value of ``task`` in the metadata of a shipped file."""
    cross_entropy: Callable[[Tensor, Tensor], Float[Tensor, ""]]
    """Cross entropy from logits and targets, mean over images."""
    kl: Callable[[Tensor, Tensor, float], Float[Tensor, ""]]
    """KL divergence from logits of student and teacher and a temperature: mean over images, times the squared
    temperature."""
    mean: Callable[[Sequence[Tensor]], Tensor]
    """Logits of the mean probabilities of the members of an ensemble, from their logits."""
    predictions: Callable[[np.ndarray], np.ndarray]
    """Predictions from logits, as needed to score them and to compare variants image by image."""
    score: Callable[[np.ndarray, np.ndarray], float]
    """Value of the metric from predictions and targets."""
    chance: Callable[[np.ndarray, np.ndarray], Chance]
    """Chance of the metric from predictions and targets."""


def softmax_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross entropy with classes or shares of classes, mean over images; a row of zeros adds nothing."""
    from torch.nn import functional

    return functional.cross_entropy(logits, labels)


def softmax_kl(
    logits: Float[Tensor, "batch classes"], answers: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """KL divergence of the student from the teacher, mean over images, times the squared temperature.

    The square keeps the scale of the gradient independent of the temperature (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531, section 2).
    """
    from torch.nn import functional

    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(answers / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def softmax_mean(members: Sequence[Float[Tensor, "*batch classes"]]) -> Float[Tensor, "*batch classes"]:
    """The logarithm of the mean probabilities (Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474)."""
    if len(members) == 1:
        return members[0]
    import torch

    logarithms = torch.stack([torch.log_softmax(logits.float(), dim=-1) for logits in members])
    return logarithms.logsumexp(0) - math.log(len(members))


def sigmoid_cross_entropy(
    logits: Float[Tensor, "batch attributes"], targets: Float[Tensor, "batch attributes"]
) -> Float[Tensor, ""]:
    """Binary cross entropy with targets in [0, 1], mean over images and attributes; NaN adds nothing."""
    from torch.nn import functional

    labelled = ~targets.isnan()
    losses = functional.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    return (losses * labelled).mean()


def sigmoid_kl(
    logits: Float[Tensor, "batch attributes"], answers: Float[Tensor, "batch attributes"], temperature: float
) -> Float[Tensor, ""]:
    """KL divergence per attribute, mean over images and attributes, times the squared temperature."""
    return binary_kl(logits / temperature, answers / temperature).mean() * temperature**2


def binary_kl(student: Float[Tensor, "*any"], teacher: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """KL divergence of two Bernoulli distributions, from their log-odds."""
    from torch.nn import functional

    truth = teacher.sigmoid()
    present = truth * (functional.logsigmoid(teacher) - functional.logsigmoid(student))
    absent = (1 - truth) * (functional.logsigmoid(-teacher) - functional.logsigmoid(-student))
    return present + absent


def sigmoid_mean(members: Sequence[Float[Tensor, "*batch attributes"]]) -> Float[Tensor, "*batch attributes"]:
    """Log-odds of the mean probabilities."""
    if len(members) == 1:
        return members[0]
    import torch
    from torch.nn import functional

    present = torch.stack([functional.logsigmoid(logits.float()) for logits in members]).logsumexp(0)
    absent = torch.stack([functional.logsigmoid(-logits.float()) for logits in members]).logsumexp(0)
    return present - absent


def _classes(logits: Float[np.ndarray, "images classes"]) -> Int64[np.ndarray, " images"]:
    return logits.argmax(1)


def _accuracy(predictions: Num[np.ndarray, " images"], labels: Num[np.ndarray, " images"]) -> float:
    return int((predictions == labels).sum()) / len(labels)


def _logits(logits: Float[np.ndarray, "images attributes"]) -> Float[np.ndarray, "images attributes"]:
    return logits


SINGLE_LABEL = Task(
    name="single_label",
    metric="top1",
    words="top-1",
    onnx="image-classification",
    cross_entropy=softmax_cross_entropy,
    kl=softmax_kl,
    mean=softmax_mean,
    predictions=_classes,
    score=_accuracy,
    chance=chance.of_classes,
)
MULTI_LABEL = Task(
    name="multi_label",
    metric="map",
    words="mAP",
    onnx="multi-label-image-classification",
    cross_entropy=sigmoid_cross_entropy,
    kl=sigmoid_kl,
    mean=sigmoid_mean,
    predictions=_logits,
    score=mean_average_precision,
    chance=chance.of_attributes,
)
TASKS: Mapping[str, Task] = {task.name: task for task in (SINGLE_LABEL, MULTI_LABEL)}
"""Task by name."""
METRICS: Mapping[str, Task] = {task.metric: task for task in TASKS.values()}
"""Task by metric."""
