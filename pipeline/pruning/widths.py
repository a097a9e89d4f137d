"""How many channels each layer keeps: the shape of a pruned network, and the largest one within a budget."""

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
"""Function from a network to its cost as a share of the budget: at most 1 is allowed."""
Shape = Callable[[float], Sequence[float]]
"""Function from a strength between 0 and 1 to the share of its channels that each layer keeps; no share falls
as the strength rises."""

LEAST_WORTH = 0.01
"""Least damage or saving of a layer relative to the greatest. Noise on a few images can say that pruning a
layer does no harm or saves nothing; without a limit, such a layer would be removed or never touched."""
RESOLUTION = 1e-4
"""Width of the interval at which the search for the greatest strength ends."""
STEP = 0.97
"""Ratio of the strengths of two neighbouring networks of ``ladder``. The narrower one takes some 4 % less
time, so that a time which is measured again, and differs by 1 %, seldom leads to another network."""


class BudgetError(DistilleryError):
    """No network is within the budget."""


def output_channels(module: nn.Module) -> tuple[int, ...]:
    """Number of channels of every layer that can be narrowed, read off the weights.

    Depthwise layers are left out: they have the channels of the layer before them.
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return tuple(part.out_channels for part in convolutions if part.groups == 1)


def free_layers(module: nn.Module) -> tuple[str, ...]:
    """Module path of every layer of ``output_channels``: ``stem``, ``blocks.0.pointwise``."""
    return tuple(name for name, layer in trace(module).layers.items() if layer.kind == "dense")


def macs_cost(share: float, parent: nn.Module, size: int) -> Cost:
    """Cost in multiply-accumulates at ``size`` pixels, of which a ``share`` of the parent's is allowed.

    Raises:
        BudgetError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise BudgetError(f"`macs` (={share}) must be a share of the parent's work between 0 and 1")
    allowed = share * count_macs(parent, size)
    return lambda module: count_macs(module, size) / allowed


def uniform(strength: float) -> Sequence[float]:
    """The shape that keeps the same share of every layer."""
    return (strength,)


def worth_shape(damages: Sequence[float], savings: Sequence[float]) -> Shape:
    """Build a shape in which layers whose pruning does little damage for what it saves lose more.

    If a layer that keeps a share ``s`` does damage ``a (1 / s - 1)`` and costs ``c s``, the least damage
    within a budget has each layer at a share in proportion to ``sqrt(a / c)`` (by Lagrange multipliers), at
    most 1.

    Args:
        damages: damage per layer, all at the same share, in any unit.
        savings: cost saved per layer at that share, in any unit.
    """
    harm, gain = (
        [max(value, LEAST_WORTH * max(values)) for value in values] for values in (damages, savings)
    )
    worth = [math.sqrt(a / c) for a, c in zip(harm, gain, strict=True)]
    return lambda strength: [min(1.0, strength * value / min(worth)) for value in worth]


def largest_within(
    architecture: str,
    arguments: dict[str, Any],
    channels: Sequence[int],
    *,
    cost: Cost,
    multiple: int,
    shape: Shape = uniform,
) -> tuple[int, ...]:
    """Find the channel counts at the greatest strength of a shape whose network is within the budget.

    Counts are multiples of ``multiple`` and at least that; a layer that has fewer channels keeps them all.
    What rounding leaves of the budget is given back in steps of ``multiple``, first to the layer that kept
    the least of what the shape gives it.

    Args:
        architecture: key of ``students.ARCHITECTURES``.
        arguments: keyword arguments of ``students.build`` that rebuild the parent.
        channels: the parent's ``output_channels``.
        cost: cost of a network.
        multiple: number of channels that counts are multiples of.
        shape: how the layers' shares relate to each other.

    Raises:
        BudgetError: even the narrowest network is over the budget.
    """

    @functools.cache
    def price(counts: tuple[int, ...]) -> float:
        return cost(_network(architecture, arguments, counts))

    def scaled(strength: float) -> tuple[int, ...]:
        return _counts(channels, shape(strength), multiple)

    low, high, best = 0.0, 1.0, scaled(0.0)
    if price(best) > 1:
        raise BudgetError(
            f"the narrowest network with multiples of {multiple} channels costs {price(best):.2f} times the "
            "budget; raise the budget or lower `multiple`"
        )
    while high - low > RESOLUTION:
        middle = (low + high) / 2
        if price(scaled(middle)) <= 1:
            low, best = middle, scaled(middle)
        else:
            high = middle
    ideal = [count * share for count, share in zip(channels, _all_shares(channels, shape(high)), strict=True)]
    closed: set[int] = set()
    while len(closed) < len(best):
        layer = min(set(range(len(best))) - closed, key=lambda index: best[index] / ideal[index])
        wider = tuple(count + multiple * (index == layer) for index, count in enumerate(best))
        if wider[layer] <= channels[layer] and price(wider) <= 1:
            best = wider
        else:
            closed.add(layer)
    return best


def ladder(channels: Sequence[int], *, multiple: int, shape: Shape = uniform) -> list[tuple[int, ...]]:
    """Return the networks of a shape from the widest to the narrowest, as channel counts.

    The strength falls by ``STEP`` from one to the next; equal neighbours are left out.

    Args:
        channels: the parent's ``output_channels``.
        multiple: number of channels that counts are multiples of; see ``largest_within``.
        shape: how the layers' shares relate to each other.
    """
    narrowest, strength = _counts(channels, shape(0.0), multiple), 1.0
    rungs = [_counts(channels, shape(strength), multiple)]
    while rungs[-1] != narrowest:
        strength *= STEP
        counts = _counts(channels, shape(strength), multiple)
        if counts != rungs[-1]:
            rungs.append(counts)
    return rungs


def layer_savings(
    architecture: str, arguments: dict[str, Any], channels: Sequence[int], *, cost: Cost, share: float
) -> list[float]:
    """Compute how much each layer takes off the cost if it alone keeps only a share of its channels."""
    whole = cost(_network(architecture, arguments, channels))
    return [
        whole - cost(_network(architecture, arguments, narrow_layer(channels, layer, share)))
        for layer in range(len(channels))
    ]


def narrow_layer(channels: Sequence[int], layer: int, share: float) -> tuple[int, ...]:
    """Return the same counts with one layer at a share of its channels."""
    return tuple(
        max(1, round(count * share)) if index == layer else count for index, count in enumerate(channels)
    )


def interpolate(
    parent: Sequence[int], target: Sequence[int], *, steps: int, multiple: int
) -> list[tuple[int, ...]]:
    """Return the counts after each of some steps in equal ratios; the last are the target's."""
    return [
        tuple(
            max(end, _nearest(start, (end / start) ** (step / steps), multiple))
            for start, end in zip(parent, target, strict=True)
        )
        for step in range(1, steps)
    ] + [tuple(target)]


def _network(architecture: str, arguments: dict[str, Any], channels: Sequence[int]) -> nn.Module:
    # The cost of a real network is counted faster than that of one on the meta device. Its random weights do
    # not matter, so the global generator stays as it was.
    with torch.random.fork_rng(devices=[]):
        return students.build(architecture, {**arguments, "channels": channels})


def _counts(channels: Sequence[int], shares: Sequence[float], multiple: int) -> tuple[int, ...]:
    """The channel counts at the layers' shares, or at one share for all."""
    pairs = zip(channels, _all_shares(channels, shares), strict=True)
    return tuple(_nearest(count, share, multiple) for count, share in pairs)


def _all_shares(channels: Sequence[int], shares: Sequence[float]) -> list[float]:
    return [*shares] * (len(channels) // len(shares))


def _nearest(count: int, share: float, multiple: int) -> int:
    most = max(1, count // multiple)
    steps = min(most, max(1, int(count * share / multiple + 0.5)))
    return min(count, steps * multiple)
