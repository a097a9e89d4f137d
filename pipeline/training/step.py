"""One optimiser step of the training loop, from a batch to updated and averaged weights."""

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.data.batches import Batch
from pipeline.training import optimisation, precision
from pipeline.training.cpu_operators import FastOperators
from pipeline.training.graphs import Replayed
from pipeline.training.optimisation import Averages
from pipeline.training.settings import TrainingSettings

LossTerms = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""Function from a network and a batch to named, unweighted loss terms, each a mean over the batch."""


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """The loss: the weighted sum of named terms."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


class Step:
    """One optimiser step, made once per training and called once per batch."""

    def __init__(
        self,
        fabric: Fabric,
        module: Any,
        optimizer: Any,
        averaged: nn.Module | None,
        loss_terms: LossTerms,
        weights: Mapping[str, float],
        settings: TrainingSettings,
        in_bf16: Collection[int],
        name: str,
    ) -> None:
        """Prepare the steps of one training, whose state is restored.

        Args:
            fabric: where to train.
            module: the network as ``fabric.setup`` returned it.
            optimizer: the optimiser as ``fabric.setup`` returned it.
            averaged: network that takes the averages of the weights; None if they are not averaged.
            loss_terms: see ``LossTerms``.
            weights: the weight of each loss term.
            settings: how to train.
            in_bf16: image sizes that ``precision.choose`` chose.
            name: name of the training, for messages.
        """
        self.fabric, self.module, self.optimizer, self.averaged = fabric, module, optimizer, averaged
        self.loss_terms, self.weights, self.settings, self.in_bf16 = loss_terms, weights, settings, in_bf16
        device, plain = fabric.device, optimizer.optimizer
        # Rates are set on the plain optimizer: Fabric's wrapper keeps a copy of its groups.
        self._rate = optimisation.Rate(plain, device)
        self._parameters = [parameter for group in plain.param_groups for parameter in group["params"]]
        self._operators = FastOperators() if device.type == "cpu" else nullcontext()
        # Other processes wait for each other's gradients in every step, which one graph cannot hold.
        alone = device.type == "cuda" and fabric.world_size == 1
        self._replayed = Replayed(module.module, device, name) if alone else None
        if device.type == "cuda" and averaged is not None:
            # Operations on lists of tensors are one kernel only for tensors of the same layout.
            averaged.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._averages: Averages | None = None
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._steps = 0

    def begin(self) -> None:
        """Begin a new epoch, whose means are computed anew."""
        if self._sums is not None:
            self._sums.zero_()
        self._steps = 0
        if self.averaged is not None:
            self._averages = Averages(self.averaged, self.module.module)

    def __call__(self, batch: Batch, number: int, rate: float) -> Float[Tensor, ""]:
        """Train on one batch; returns its loss, on the device.

        Args:
            batch: images of one size.
            number: number of steps before this one.
            rate: learning rate.
        """
        fast = batch.images.shape[1] in self.in_bf16
        precision.use(self.fabric, fast)
        self._rate.set(rate)
        loss = self._replayed(self._learn, batch, fast) if self._replayed else self._learn(batch)
        self._steps += 1
        if self._averages is not None:
            self._averages.update(min(self.settings.ema, (1 + number) / (10 + number)))
        return loss

    def finish(self) -> dict[str, float]:
        """Finish an epoch: back to the precision of evaluation; the mean of the loss and of each term."""
        precision.use(self.fabric, False)
        means = [] if self._sums is None else (self._sums / self._steps).tolist()
        return dict(zip(self._names, means, strict=True))

    def _learn(self, batch: Batch) -> Float[Tensor, ""]:
        """All of a step that a CUDA graph can hold."""
        with self._operators:
            terms = self.loss_terms(self.module, batch)
        loss = total(terms, self.weights)
        self.fabric.backward(loss)
        if self.settings.clip:
            # A gradient that is not finite shows in the loss; checking it here would wait for the device.
            nn.utils.clip_grad_norm_(self._parameters, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        values = torch.stack([loss, *terms.values()]).detach()
        if self._sums is None:
            self._names, self._sums = ["loss", *terms], torch.zeros_like(values)
        self._sums += values
        return loss.detach()
