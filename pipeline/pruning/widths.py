"""How many channels each layer keeps: the shape of a pruned network, and what a budget allows of it."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import students
from pipeline.errors import DistilleryError
from pipeline.models.costs import count_macs
from pipeline.models.layers import trace

Cost = Callable[[nn.Module], float]
"""What a network costs as a share of what it may cost: at most 1 is allowed."""
Shape = Callable[[float], Sequence[float]]
"""From a strength, of 0 to 1, to the share of its channels that each layer keeps; none falls as it rises."""

LEAST_WORTH = 0.01
"""Of a layer, relative to the greatest: where noise says that pruning does no harm, or saves nothing."""
RESOLUTION = 1e-4
"""Of the strength."""


class BudgetError(DistilleryError):
    """No network is within the budget."""


def output_channels(module: nn.Module) -> tuple[int, ...]:
    """Channels of every layer whose count is free, read off the weights: depthwise layers follow theirs."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return tuple(part.out_channels for part in convolutions if part.groups == 1)


def free_layers(module: nn.Module) -> tuple[str, ...]:
    """Module paths of the same layers' units: ``stem``, ``blocks.0.pointwise``."""
    return tuple(name for name, layer in trace(module).layers.items() if layer.kind == "dense")


def macs_within(share: float, parent: nn.Module, size: int) -> Cost:
    """Multiply-accumulates, of which a ``share`` of the parent's is allowed, at ``size`` pixels.

    Raises:
        BudgetError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise BudgetError(f"macs is {share}; a share of the parent's between 0 and 1 is allowed")
    allowed = share * count_macs(parent, size)
    return lambda module: count_macs(module, size) / allowed


def time_within(milliseconds: Callable[[nn.Module], float], allowed: float) -> Cost:
    """Latency, of which so many milliseconds are allowed."""
    return lambda module: milliseconds(module) / allowed


def both(first: Cost, second: Cost) -> Cost:
    """What is allowed by two budgets."""
    return lambda module: max(first(module), second(module))


def uniform(strength: float) -> Sequence[float]:
    """The same share for every layer."""
    return (strength,)


def by_worth(damages: Sequence[float], savings: Sequence[float]) -> Shape:
    """Layers whose pruning hurts little for what it saves lose more.

    Where layers do damage ``a (1 / share - 1)`` and cost ``c share``, the least damage within a budget has
    each at a share in proportion to ``sqrt(a / c)`` (Lagrange), up to 1.

    Args:
        damages: of each layer, at one and the same share, in any unit.
        savings: what that takes off the cost, in any unit.
    """
    hurt, saved = (
        [max(value, LEAST_WORTH * max(values)) for value in values] for values in (damages, savings)
    )
    worth = [math.sqrt(a / c) for a, c in zip(hurt, saved, strict=True)]
    return lambda strength: [min(1.0, strength * value / min(worth)) for value in worth]


def channels_within(
    architecture: str,
    arguments: dict[str, Any],
    channels: Sequence[int],
    *,
    cost: Cost,
    multiple: int,
    shape: Shape = uniform,
) -> tuple[int, ...]:
    """Channel counts at the greatest strength of a shape whose network is within the budget.

    Counts are multiples of ``multiple`` and at least that; a layer that has fewer keeps what it has. What the
    shape leaves of the budget is given back in steps of ``multiple``, first to the layer that kept the
    least of what the shape gives it.

    Raises:
        BudgetError: even the narrowest network is over the budget.
    """

    @functools.cache
    def price(candidate: tuple[int, ...]) -> float:
        return cost(_network(architecture, arguments, candidate))

    def shares(strength: float) -> list[float]:
        given = shape(strength)
        return [*given] * (len(channels) // len(given))

    def scaled(strength: float) -> tuple[int, ...]:
        wanted = zip(channels, shares(strength), strict=True)
        return tuple(_nearest(count, share, multiple) for count, share in wanted)

    low, high, kept = 0.0, 1.0, scaled(0.0)
    if price(kept) > 1:
        raise BudgetError(
            f"the narrowest network with multiples of {multiple} channels costs {price(kept):.2f} times what "
            "is allowed; allow more, or take a smaller multiple"
        )
    while high - low > RESOLUTION:
        middle = (low + high) / 2
        if price(scaled(middle)) <= 1:
            low, kept = middle, scaled(middle)
        else:
            high = middle
    wanted = [count * share for count, share in zip(channels, shares(high), strict=True)]
    closed: set[int] = set()
    while len(closed) < len(kept):
        layer = min(set(range(len(kept))) - closed, key=lambda index: kept[index] / wanted[index])
        wider = tuple(count + multiple * (index == layer) for index, count in enumerate(kept))
        if wider[layer] <= channels[layer] and price(wider) <= 1:
            kept = wider
        else:
            closed.add(layer)
    return kept


def savings(
    architecture: str, arguments: dict[str, Any], channels: Sequence[int], *, cost: Cost, share: float
) -> list[float]:
    """What each layer takes off the cost where it alone keeps only a share of its channels."""
    whole = cost(_network(architecture, arguments, channels))
    return [
        whole - cost(_network(architecture, arguments, narrowed(channels, layer, share)))
        for layer in range(len(channels))
    ]


def narrowed(channels: Sequence[int], layer: int, share: float) -> tuple[int, ...]:
    """The same counts with one layer at a share of its own."""
    return tuple(
        max(1, round(count * share)) if index == layer else count for index, count in enumerate(channels)
    )


def on_the_way(
    parent: Sequence[int], target: Sequence[int], *, steps: int, multiple: int
) -> list[tuple[int, ...]]:
    """Counts after each of some steps; the last are the target's, the others in equal ratios."""
    return [
        tuple(
            max(end, _nearest(start, (end / start) ** (step / steps), multiple))
            for start, end in zip(parent, target, strict=True)
        )
        for step in range(1, steps)
    ] + [tuple(target)]


def _network(architecture: str, arguments: dict[str, Any], channels: Sequence[int]) -> nn.Module:
    # A real network is counted faster than one on the meta device; its weights are nobody's business.
    with torch.random.fork_rng(devices=[]):
        return students.build(architecture, {**arguments, "channels": channels})


def _nearest(count: int, share: float, multiple: int) -> int:
    most = max(1, count // multiple)
    steps = min(most, max(1, int(count * share / multiple + 0.5)))
    return min(count, steps * multiple)
