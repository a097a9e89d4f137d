"""Optimisers, averages of weights, and the learning-rate schedule."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OPTIMIZERS: dict[str, Callable[[Iterable[dict[str, Any]], float], Optimizer]] = {
    "adamw": lambda groups, rate: torch.optim.AdamW(groups, lr=rate, fused=True),
    # The settings with which TF-slim trained the published weights; its epsilon lies under the root.
    "rmsprop": lambda groups, rate: torch.optim.RMSprop(
        groups, lr=rate, alpha=0.9, eps=1.0, momentum=0.9, foreach=True
    ),
    "sgd": lambda groups, rate: torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=True),
}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: with and without weight decay.

    Biases, batch norm and depthwise filters, which have few parameters, do not decay (Howard et al. 2017,
    section 3.2).
    """
    decayed, free = [], []
    for parameter in module.parameters():
        # Recognised by shape: in quantisation-aware training, the weights belong to a wrapper.
        depthwise = parameter.ndim == 4 and parameter.shape[1] == 1
        if parameter.requires_grad:
            (free if depthwise or parameter.ndim < 2 else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(
    step: int,
    steps: int,
    *,
    peak: float,
    warmup: float,
    phases: Sequence[tuple[float, float]] = ((1.0, 1.0),),
) -> float:
    """Learning rate of one step: a linear warm-up, then one cosine per phase, at last down to zero.

    Args:
        step: the step, from 0.
        steps: number of all steps.
        peak: the peak learning rate.
        warmup: share of the steps during which the rate rises.
        phases: share of the steps and rate at the start, relative to the peak, of each phase. Each falls to
            the rate of the next one.
    """
    rising = min(1.0, (step + 1) / (round(warmup * steps) + 1))
    progress, start = step / steps, 0.0
    for index, (share, rate) in enumerate(phases):
        last = index == len(phases) - 1
        if last or progress < start + share - 1e-9:
            low = 0.0 if last else phases[index + 1][1]
            fallen = min(1.0, (progress - start) / share)
            return peak * rising * (low + (rate - low) * 0.5 * (1 + math.cos(math.pi * fallen)))
        start += share
    raise ValueError("a schedule needs at least one phase")


def capturable(optimizer: Optimizer, device: torch.device) -> Optimizer:
    """The optimiser, prepared for CUDA graphs if it is for a CUDA device: its counts of steps lie there.

    Must be called before the first step and before a state is loaded.
    """
    if device.type == "cuda":
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        # The first steps of a training run without a graph.
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    return optimizer


class Rate:
    """The learning rate of an optimiser, which a CUDA graph reads from the device."""

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.groups = optimizer.param_groups
        self._tensor = torch.zeros((), device=device) if device.type == "cuda" else None
        if self._tensor is not None:
            for group in self.groups:
                group["lr"] = self._tensor

    def set(self, rate: float) -> None:
        """Set the rate of all parameters."""
        if self._tensor is not None:
            self._tensor.fill_(rate)
            return
        for group in self.groups:
            group["lr"] = rate


class Averages:
    """A network whose tensors follow those of another one, in a few operations on lists of tensors.

    The lists are made once, since a state dict of some hundred tensors takes milliseconds.
    """

    def __init__(self, averaged: nn.Module, module: nn.Module) -> None:
        named = zip(averaged.state_dict().values(), module.state_dict().values(), strict=True)
        # A tensor that has several names is averaged once.
        pairs = {(mean.data_ptr(), mean.shape): (mean, new) for mean, new in named}.values()
        self._means, self._news = _split(pair for pair in pairs if pair[0].is_floating_point())
        self._copies, self._originals = _split(pair for pair in pairs if not pair[0].is_floating_point())

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move every average by the share ``1 - decay`` of its distance; counts are copied."""
        torch._foreach_lerp_(self._means, self._news, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)  # pyright: ignore[reportPrivateImportUsage]


def _split(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    first, second = [], []
    for one, other in pairs:
        first.append(one)
        second.append(other)
    return first, second
