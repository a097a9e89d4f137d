"""Channel pruning to a budget of multiply-accumulates."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import students
from pipeline import compressors
from pipeline.compressors import Criterion
from pipeline.costs import count_macs

TOLERANCE = 1e-4
"""Greatest difference of a masked and a shrunk network's logits, as a share of the logits' spread."""
PROBES = 8
"""Random images on which the two are compared."""


class PruningError(Exception):
    """Removing the masked channels changed what the network computes."""


def prune(
    module: nn.Module,
    arguments: dict[str, Any],
    *,
    size: int,
    macs: float,
    criterion: Criterion = "l1",
    multiple: int = 8,
    architecture: str = "mobilenet_v1",
) -> tuple[nn.Module, dict[str, Any]]:
    """Remove the least important channels, at one keep ratio for all layers, down to a budget.

    Args:
        module: the parent; left as it is.
        arguments: keyword arguments of ``students.build`` that rebuild the parent.
        size: side of the image in pixels, at which multiply-accumulates are counted.
        macs: share of the parent's multiply-accumulates that may remain, less than 1.
        criterion: importance of a channel.
        multiple: channel counts are multiples of this.
        architecture: key of ``students.ARCHITECTURES``.

    Returns:
        The smaller network in evaluation mode, and the arguments that rebuild it.

    Raises:
        ValueError: the budget cannot be reached.
        PruningError: the smaller network's logits are not those of the masked parent.
    """
    parent_channels = output_channels(module)
    channels = channels_within(
        architecture, arguments, parent_channels, size=size, macs=macs, multiple=multiple
    )
    kept_arguments = {**arguments, "channels": list(channels)}
    pruned = students.build(architecture, kept_arguments)
    convolutions = {
        path: part.out_channels for path, part in pruned.named_modules() if isinstance(part, nn.Conv2d)
    }
    plain = copy.deepcopy(module).cpu().eval()
    masks = compressors.channel_masks(plain, convolutions, criterion, size)
    pruned.load_state_dict(compressors.remove_masked(plain, masks, size))
    pruned.eval()
    check_same_logits(compressors.apply_masks(plain, masks), pruned, size)
    return pruned.to(next(module.parameters()).device), kept_arguments


def output_channels(module: nn.Module) -> tuple[int, ...]:
    """Channels of every layer whose count is free, read off the weights: depthwise layers follow theirs."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return tuple(part.out_channels for part in convolutions if part.groups == 1)


def channels_within(
    architecture: str,
    arguments: dict[str, Any],
    channels: Sequence[int],
    *,
    size: int,
    macs: float,
    multiple: int,
) -> tuple[int, ...]:
    """Channel counts at the largest uniform ratio whose multiply-accumulates are within the budget.

    Counts are multiples of ``multiple`` and at least that; a layer that has fewer keeps what it has. What the
    ratio leaves of the budget is given back in steps of ``multiple``, first to the layer that kept the
    least share.

    Raises:
        ValueError: even the narrowest network is over the budget, or the budget is not between 0 and 1.
    """
    if not 0 < macs < 1:
        raise ValueError(f"macs is {macs}; a share of the parent's between 0 and 1 is allowed")

    def cost(candidate: Sequence[int]) -> int:
        # A real network is counted faster than one on the meta device; its weights are nobody's business.
        with torch.random.fork_rng(devices=[]):
            candidate_module = students.build(architecture, {**arguments, "channels": candidate})
        return count_macs(candidate_module, size)

    def scaled(ratio: float) -> list[int]:
        return [_nearest(count, ratio, multiple) for count in channels]

    parent = cost(channels)
    budget = macs * parent
    # Just above each of these ratios one layer has one step more; between them nothing changes.
    ratios = sorted({(step - 0.5) * multiple / n for n in channels for step in range(1, n // multiple + 1)})
    narrowest = [_nearest(count, 0.0, multiple) for count in channels]
    if cost(narrowest) > budget:
        raise ValueError(
            f"macs is {macs}; the narrowest network with multiples of {multiple} channels has "
            f"{cost(narrowest) / parent:.4f} of the parent's"
        )
    low, high = -1, len(ratios)
    while high - low > 1:
        middle = (low + high) // 2
        if cost(scaled(ratios[middle] + 1e-9)) <= budget:
            low = middle
        else:
            high = middle
    kept = narrowest if low < 0 else scaled(ratios[low] + 1e-9)
    closed: set[int] = set()
    while len(closed) < len(kept):
        layer = min(set(range(len(kept))) - closed, key=lambda index: kept[index] / channels[index])
        wider = [count + multiple * (index == layer) for index, count in enumerate(kept)]
        if wider[layer] <= channels[layer] and cost(wider) <= budget:
            kept = wider
        else:
            closed.add(layer)
    return tuple(kept)


def _nearest(count: int, ratio: float, multiple: int) -> int:
    most = max(1, count // multiple)
    steps = min(most, max(1, int(count * ratio / multiple + 0.5)))
    return min(count, steps * multiple)


@torch.no_grad()
def check_same_logits(masked: nn.Module, shrunk: nn.Module, size: int) -> float:
    """The greatest difference of the logits of two networks as a share of their standard deviation.

    Raises:
        PruningError: the share is more than ``TOLERANCE``.
    """
    images = torch.rand(PROBES, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, actual = masked(images), shrunk(images)
    spread = float(expected.std())
    difference = float((actual - expected).abs().max())
    share = difference / max(spread, torch.finfo(torch.float32).tiny)
    if not share <= TOLERANCE:
        raise PruningError(
            f"logits of the masked and the shrunk network differ by {share:.2e} of their spread "
            f"({difference:.3g} of {spread:.3g}); at most {TOLERANCE:.0e} is allowed"
        )
    return share
