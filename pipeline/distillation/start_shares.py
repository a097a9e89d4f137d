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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        return {
            "start_share": self.start_share,
            "statistics": self.statistics,
            "cross_entropy": self.val.cross_entropy,
            **self.val.to_dict(),
        }


def choose(
    fabric: Fabric,
    module: nn.Module,
    before: nn.Module,
    shares: Sequence[float],
    data: TrainingData,
    workers: int,
) -> tuple[Trial, list[Trial]]:
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
        The trial that was chosen, and all, the trained network first.
    """
    trained, before = copy.deepcopy(module), fabric.to_device(before)
    trials: list[Trial] = []
    best: Trial | None = None
    for share in dict.fromkeys((0.0, *shares)):
        for statistics in ("mean", "new") if share else ("new",):
            mean = copy.deepcopy(trained)
            optimisation.Averages(mean, before).update(1 - share)
            if share and statistics == "new":
                norms.settle(fabric, mean, data.train_set, workers)
            val = scoring.evaluate(fabric, mean, data.val_set, data.val_set.contract.size, workers)
            trials.append(Trial(share, statistics, val))
            if share in shares and (best is None or val.cross_entropy < best.val.cross_entropy):
                best = trials[-1]
                module.load_state_dict(mean.state_dict())
    assert best is not None, "shares must not be empty"
    return best, trials


def table(trials: Iterable[Trial], chosen: Trial) -> str:
    """The trials as text, one line per trial."""
    lines = [f"{'start share':>11}  {'val, %':>6}  {'cross entropy':>13}  kept  statistics of batch norm"]
    lines += [
        f"{trial.start_share:11.2f}  {trial.val.value:6.2%}  {trial.val.cross_entropy:13.4f}  "
        f"{'yes' if trial is chosen else '':4}  {trial.statistics}"
        for trial in trials
    ]
    return "\n".join(lines)
