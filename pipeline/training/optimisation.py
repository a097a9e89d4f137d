"""Optimisers and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

OPTIMIZERS: dict[str, Callable[[Iterable[dict[str, Any]], float], Optimizer]] = {
    "adamw": lambda groups, rate: torch.optim.AdamW(groups, lr=rate, fused=True),
    # TF-slim's settings for the published weights, but for its epsilon, which stands under the root.
    "rmsprop": lambda groups, rate: torch.optim.RMSprop(
        groups, lr=rate, alpha=0.9, eps=1.0, momentum=0.9, foreach=True
    ),
    "sgd": lambda groups, rate: torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=True),
}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decayed, and not.

    Biases and batch norm are not decayed, nor are depthwise filters, which have few parameters
    (Howard et al. 2017, section 3.2).
    """
    decayed, free = [], []
    for parameter in module.parameters():
        # Told by shape, since under quantisation-aware training a wrapper holds the weights.
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
    """Linear warm-up over the share ``warmup`` of all steps, and a cosine fall to zero at the last one.

    With several ``phases`` (share of the steps, rate at the start relative to the peak) each falls by a
    cosine from its own rate to the next one's.
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
