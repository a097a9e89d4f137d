"""The mean of a network's weights before and after a training (Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models", https://arxiv.org/abs/2109.01903)."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_fabric import Fabric
from torch import nn

from pipeline.distillation.training_data import TrainingData
from pipeline.training import norms, optimisation, scoring
from pipeline.training.scoring import Score

SHARES = (0.0, 0.25, 0.5, 0.75)
"""Shares of the start that `auto` tries."""


@dataclass(frozen=True)
class Trial:
    """One mean, and how good it is."""

    start_share: float
    """Share of the weights before the training; 0 is the trained network."""
    statistics: Literal["mean", "new"]
    """Statistics of batch norm: the mean of both networks', or computed anew from training images."""
    val: Score
    kept: bool
    """Whether it has the lowest cross entropy on val of those that may be chosen."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        return {
            "start_share": self.start_share,
            "statistics": self.statistics,
            "cross_entropy": self.val.cross_entropy,
            "kept": self.kept,
            **self.val.to_dict(),
        }


def choose(
    fabric: Fabric,
    module: nn.Module,
    before: nn.Module,
    shares: Sequence[float],
    data: TrainingData,
    workers: int,
) -> list[Trial]:
    """Turn a trained network into the mean with itself before the training that has the lowest cross entropy
    on val.

    Statistics of batch norm are no function of the weights alone: their mean is better where the start has
    seen far more images, and can be at chance where the networks are far apart. So both kinds are tried.

    Args:
        fabric: where to compute.
        module: the trained network with new statistics, changed in place.
        before: the network before the training.
        shares: shares of the start that may be chosen.
        data: the images of train and val.
        workers: number of processes that render images.

    Returns:
        All trials, the trained network first.
    """
    before = fabric.to_device(before)
    networks: list[tuple[float, Literal["mean", "new"], nn.Module]] = [(0.0, "new", copy.deepcopy(module))]
    for share in filter(None, shares):
        mean = copy.deepcopy(module)
        optimisation.Averages(mean, before).update(1 - share)
        settled = copy.deepcopy(mean)
        norms.settle(fabric, settled, data.train_set, workers)
        networks.append((share, "mean", mean))
        networks.append((share, "new", settled))
    size = data.val_set.contract.size
    scores = [scoring.evaluate(fabric, network, data.val_set, size, workers) for *_, network in networks]
    allowed = [place for place, (share, *_) in enumerate(networks) if share in shares]
    best = min(allowed, key=lambda place: scores[place].cross_entropy)
    module.load_state_dict(networks[best][2].state_dict())
    return [
        Trial(share, statistics, score, kept=place == best)
        for place, ((share, statistics, _), score) in enumerate(zip(networks, scores, strict=True))
    ]


def table(trials: Iterable[Trial]) -> str:
    """The trials as text, one line per trial."""
    lines = [f"{'start share':>11}  {'val, %':>6}  {'cross entropy':>13}  kept  statistics of batch norm"]
    lines += [
        f"{trial.start_share:11.2f}  {trial.val.value:6.2%}  {trial.val.cross_entropy:13.4f}  "
        f"{'yes' if trial.kept else '':4}  {trial.statistics}"
        for trial in trials
    ]
    return "\n".join(lines)
