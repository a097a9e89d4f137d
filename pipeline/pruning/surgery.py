"""Channel pruning: which channels go, and a smaller network without them."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import students
from pipeline.errors import DistilleryError
from pipeline.pruning import widths
from pipeline.pruning.masks import Criterion, Loss, apply_masks, channel_masks, remove_masked
from pipeline.training import norms

TOLERANCE = 1e-4
"""Greatest difference of a masked and a shrunk network's logits, as a share of the logits' spread."""
PROBES = 8
"""Random images on which the two are compared."""
GRAPH_SIZE = 32
"""Pixels of the image with which NNI follows a network; its channels do not depend on it, its time does."""


class PruningError(DistilleryError):
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
    """Remove the least important channels, at one keep ratio for all layers, down to a share of the work.

    Args:
        module: the parent; left as it is.
        arguments: keyword arguments of ``students.build`` that rebuild the parent.
        size: side of the image in pixels, at which multiply-accumulates are counted.
        macs: share of the parent's multiply-accumulates that may remain, less than 1.
        criterion: importance of a channel, by its weights alone.
        multiple: channel counts are multiples of this.
        architecture: key of ``students.ARCHITECTURES``.

    Returns:
        See ``cut``.

    Raises:
        BudgetError: the budget cannot be reached.
        PruningError: see ``cut``.
    """
    channels = widths.channels_within(
        architecture,
        arguments,
        widths.output_channels(module),
        cost=widths.macs_within(macs, module, size),
        multiple=multiple,
    )
    return cut(module, arguments, channels, size=size, criterion=criterion, architecture=architecture)


def cut(
    module: nn.Module,
    arguments: dict[str, Any],
    channels: Sequence[int],
    *,
    size: int,
    criterion: Criterion,
    losses: Sequence[Loss] = (),
    architecture: str = "mobilenet_v1",
) -> tuple[nn.Module, dict[str, Any]]:
    """Remove the least important channels until every layer has the wanted number.

    Args:
        module: the parent; left as it is.
        arguments: keyword arguments of ``students.build`` that rebuild the parent.
        channels: what is left of ``widths.output_channels``.
        size: side in pixels of the images on which the masked and the smaller network are compared.
        criterion: importance of a channel.
        losses: what ``taylor`` takes gradients of.
        architecture: key of ``students.ARCHITECTURES``.

    Returns:
        The smaller network in evaluation mode, and the arguments that rebuild it.

    Raises:
        PruningError: the smaller network's logits are not those of the masked parent.
    """
    kept_arguments = {**arguments, "channels": list(channels)}
    pruned = students.build(architecture, kept_arguments)
    plain = copy.deepcopy(module).eval()
    masks = channel_masks(plain, _convolutions(pruned), criterion, GRAPH_SIZE, losses)
    plain = plain.cpu()
    masks = {path: {name: mask.cpu() for name, mask in targets.items()} for path, targets in masks.items()}
    pruned.load_state_dict(remove_masked(plain, masks, GRAPH_SIZE))
    pruned.eval()
    check_same_logits(apply_masks(plain, masks), pruned, size)
    return pruned.to(next(module.parameters()).device), kept_arguments


def sensitivity(
    module: nn.Module,
    arguments: dict[str, Any],
    *,
    ratios: Sequence[float],
    images: Sequence[Float[Tensor, "batch 3 height width"]],
    score: Callable[[nn.Module], float],
    criterion: Criterion = "l1",
    losses: Sequence[Loss] = (),
    architecture: str = "mobilenet_v1",
) -> dict[str, dict[float, float]]:
    """A score against the share of channels that one layer keeps, the others being whole.

    A layer is a unit whose number of channels is free, with the depthwise one that follows it. The least
    important channels are set to zero, and batch norm's statistics taken anew (Li et al. 2020, EagleEye,
    https://arxiv.org/abs/2007.02491), before the network is scored.

    Args:
        module: the parent; left as it is.
        arguments: keyword arguments of ``students.build`` that rebuild the parent.
        ratios: shares of a layer's channels that are kept, above 0 and below 1.
        images: normalised training images for the statistics, of any size, that of ``score``'s images.
        score: of a network in evaluation mode.
        criterion: importance of a channel.
        losses: what ``taylor`` takes gradients of.
        architecture: key of ``students.ARCHITECTURES``.

    Returns:
        Layer, as ``widths.free_layers`` names it, to ratio to score.
    """
    parent_channels = widths.output_channels(module)
    scores: dict[str, dict[float, float]] = {}
    for layer, path in enumerate(widths.free_layers(module)):
        scores[path] = {}
        for ratio in ratios:
            channels = widths.narrowed(parent_channels, layer, ratio)
            narrow = students.build(architecture, {**arguments, "channels": channels})
            masks = channel_masks(module, _convolutions(narrow), criterion, GRAPH_SIZE, losses)
            masked = apply_masks(module, masks)
            norms.reestimate(masked, images)
            scores[path][ratio] = score(masked)
    return scores


def _convolutions(module: nn.Module) -> dict[str, int]:
    return {path: part.out_channels for path, part in module.named_modules() if isinstance(part, nn.Conv2d)}


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
