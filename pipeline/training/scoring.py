"""Scores of a PyTorch network on a split."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import nn

from pipeline.data.batches import ViewSet
from pipeline.data.centred_views import CentredViews
from pipeline.data.store import ImageSet
from pipeline.errors import DistilleryError
from pipeline.statistics.chance import Chance
from pipeline.tasks import Task
from pipeline.training import ranks


class ScoreError(DistilleryError):
    """Predictions cannot be scored."""


@dataclass(frozen=True)
class Score:
    """The predictions of a network on one split, and how good they are."""

    task: Task
    predictions: np.ndarray
    """The predictions in the form of ``task.predictions``."""
    images: int
    """Number of images."""
    value: float
    """``task.metric``, a fraction of 1."""
    cross_entropy: float
    """Cross entropy in nats, mean over images."""
    labels: np.ndarray
    """Labels of the images."""

    def __str__(self) -> str:
        return f"{self.task.words} {self.value:.2%} of {self.images}"

    def to_dict(self) -> dict[str, int | float]:
        """Number of images and the metric under its name, for a card."""
        return {"n": self.images, self.task.metric: self.value}

    def chance(self) -> Chance:
        """The score beside those of the same predictions for shuffled images."""
        return self.task.chance(self.predictions, self.labels)


def evaluate(fabric: Fabric, module: nn.Module, dataset: ViewSet, size: int, workers: int) -> Score:
    """Score a network on the centred views of a split at ``size`` pixels; leaves it in evaluation mode."""
    return score(predict(fabric, module, dataset, size, workers), dataset.images)


def predict(
    fabric: Fabric, module: nn.Module, dataset: ViewSet, size: int, workers: int
) -> Float[torch.Tensor, "images classes"]:
    """Logits of the centred views of a split at ``size`` pixels, on the CPU.

    Leaves the network in evaluation mode.
    """
    views = CentredViews(fabric.device, dataset, workers, fabric.global_rank, fabric.world_size)
    return logits(fabric, module, views, size)


@torch.no_grad()
def logits(
    fabric: Fabric, module: nn.Module, views: CentredViews, size: int
) -> Float[torch.Tensor, "images classes"]:
    """Like ``predict``, for views that may already be rendered.

    Several ranks take whole batches in turn, so that the logits are those of one process bit for bit, and
    each rank returns all of them.
    """
    module.eval()
    contract = views.dataset.contract
    with fabric.autocast():
        own = [module(contract.normalise(batch.images)).float().cpu() for batch in views.at(size)]
    return torch.cat(ranks.gather(fabric, own))


def score(logits: Float[torch.Tensor, "images classes"], images: ImageSet) -> Score:
    """The score of the logits of a whole split.

    Raises:
        ScoreError: a logit is not a finite number.
    """
    if len(infinite := np.flatnonzero(~torch.isfinite(logits).all(1).numpy())):
        raise ScoreError(
            f"the outputs for {len(infinite)} of {len(images)} images are not finite: {images.name(infinite)}"
        )
    task = images.task
    predictions = task.predictions(logits.numpy())
    loss = task.cross_entropy(logits, torch.from_numpy(images.labels))
    value = task.score(predictions, images.labels)
    return Score(task, predictions, len(images), value, float(loss), images.labels)
