"""One optimiser step of the training loop, from a batch to updated and averaged weights."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.data.batches import Batch
from pipeline.training import precision
from pipeline.training.depthwise import FastDepthwise
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
    ) -> None:
        """Prepare the steps of one training.

        Args:
            fabric: where to train.
            module: the network as ``fabric.setup`` returned it.
            optimizer: the optimiser as ``fabric.setup`` returned it.
            averaged: network that takes the averages of the weights; None if they are not averaged.
            loss_terms: see ``LossTerms``.
            weights: the weight of each loss term.
            settings: how to train.
            in_bf16: image sizes that ``precision.choose`` chose.
        """
        self.fabric, self.module, self.optimizer, self.averaged = fabric, module, optimizer, averaged
        self.loss_terms, self.weights, self.settings, self.in_bf16 = loss_terms, weights, settings, in_bf16
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def begin(self) -> None:
        """Begin a new epoch, whose means are computed anew."""
        self._sums = defaultdict(lambda: torch.zeros((), device=self.fabric.device))
        self._steps = 0

    def __call__(self, batch: Batch, number: int, rate: float) -> Float[Tensor, ""]:
        """Train on one batch; returns its loss, on the device.

        Args:
            batch: images of one size.
            number: number of steps before this one.
            rate: learning rate.
        """
        settings = self.settings
        # Rates are set on the plain optimizer: Fabric's wrapper keeps a copy of its groups.
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = rate
        precision.use(self.fabric, batch.images.shape[1] in self.in_bf16)
        with FastDepthwise():
            terms = self.loss_terms(self.module, batch)
        loss = total(terms, self.weights)
        self.fabric.backward(loss)
        if settings.clip:
            # A gradient that is not finite shows in the loss; checking it here would wait for the device.
            self.fabric.clip_gradients(
                self.module, self.optimizer, max_norm=settings.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, term in [("loss", loss), *terms.items()]:
            self._sums[name] += term.detach()
        self._steps += 1
        if self.averaged is not None:
            average(self.averaged, self.module.module, min(settings.ema, (1 + number) / (10 + number)))
        return loss.detach()

    def finish(self) -> dict[str, float]:
        """Finish an epoch: back to the precision of evaluation; the mean of the loss and of each term."""
        precision.use(self.fabric, False)
        return {name: (total / self._steps).item() for name, total in self._sums.items()}


@torch.no_grad()
def average(averaged: nn.Module, module: nn.Module, decay: float) -> None:
    """Move every tensor of ``averaged`` towards that of ``module``: to ``decay`` of itself and the rest of
    the other."""
    named = zip(averaged.state_dict().values(), module.state_dict().values(), strict=True)
    # A tensor that has several names is averaged once.
    pairs = list({(mean.data_ptr(), mean.shape): (mean, new) for mean, new in named}.values())
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    # One call for all tensors: a loop over some hundred small ones costs milliseconds per step.
    torch._foreach_lerp_([mean for mean, _ in floating], [new for _, new in floating], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    for mean, new in pairs:
        if not mean.is_floating_point():
            mean.copy_(new)
