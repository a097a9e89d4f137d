"""Removal of a network's least important channels, and the proof that nothing else changed."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import students
from pipeline import resources
from pipeline.errors import DistilleryError
from pipeline.pruning import masks
from pipeline.pruning.masks import Criterion, Loss

TOLERANCE = 1e-4
"""Greatest difference between the logits of the masked and the smaller network, as a share of the logits'
standard deviation."""
CONSTANT = 1e-6
"""Share of the greatest logit below which the standard deviation is no unit: all answers are the same."""
PROBES = 8
"""Number of random images on which the two networks are compared."""
SEEDS = range(3)
"""Seeds of the random numbers by which NNI looks for constant channels; the next is tried where NNI takes one
for constant that is not."""
GRAPH_SIZE = 32
"""Side in pixels of the image with which NNI traces a network: the channels do not depend on it, but the time
that tracing takes does."""


class PruningError(DistilleryError):
    """Removing the masked channels changed what the network computes."""


def remove_channels(
    module: nn.Module,
    arguments: dict[str, Any],
    channels: Sequence[int],
    *,
    size: int,
    criterion: Criterion,
    losses: Sequence[Loss] = (),
    architecture: str = "mobilenet_v1",
) -> tuple[nn.Module, dict[str, Any]]:
    """Remove the least important channels until every layer has the given number.

    Args:
        module: the parent; left as it is.
        arguments: keyword arguments of ``students.build`` that rebuild the parent.
        channels: number of channels to keep in every layer of ``widths.output_channels``.
        size: side in pixels of the images on which the masked and the smaller network are compared.
        criterion: importance of a channel.
        losses: losses whose gradients ``taylor`` takes.
        architecture: key of ``students.ARCHITECTURES``.

    Returns:
        The smaller network in evaluation mode, and the arguments that rebuild it.

    Raises:
        PruningError: other channels than the masked ones were removed, or the logits of the smaller network
            are not those of the masked parent.
    """
    smaller_arguments = {**arguments, "channels": list(channels)}
    smaller = students.build(architecture, smaller_arguments)
    parent = copy.deepcopy(module).eval()
    removal = masks.channel_masks(parent, convolution_channels(smaller), criterion, GRAPH_SIZE, losses)
    parent = parent.cpu()
    removal = {
        path: {name: mask.cpu() for name, mask in targets.items()} for path, targets in removal.items()
    }
    for seed in SEEDS:
        try:
            smaller.load_state_dict(masks.remove_masked(parent, removal, GRAPH_SIZE, seed))
            break
        except RuntimeError as error:
            if resources.is_exhausted(error):  # NNI writes to the temporary folder
                raise
            if seed == SEEDS[-1]:
                reason = " ".join(str(error).split())
                raise PruningError(f"NNI removed other channels than the masked ones: {reason}") from error
    smaller.eval()
    check_same_logits(masks.apply_masks(parent, removal), smaller, size)
    return smaller.to(next(module.parameters()).device), smaller_arguments


def convolution_channels(module: nn.Module) -> dict[str, int]:
    """Number of output channels of every convolution, by module path."""
    return {path: part.out_channels for path, part in module.named_modules() if isinstance(part, nn.Conv2d)}


@torch.no_grad()
def check_same_logits(masked: nn.Module, smaller: nn.Module, size: int) -> float:
    """Check that two networks give the same logits for random images of ``size`` pixels.

    Returns:
        The greatest difference between the logits as a share of their standard deviation.

    Raises:
        PruningError: the share is more than ``TOLERANCE``.
    """
    images = torch.rand(PROBES, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    # In double precision: single precision loses more where great terms cancel or answers hardly differ.
    expected, actual = (copy.deepcopy(module).double()(images) for module in (masked, smaller))
    spread = max(float(expected.std()), CONSTANT * float(expected.abs().max()))
    difference = float((actual - expected).abs().max())
    share = difference / max(spread, torch.finfo(torch.float32).tiny)
    if not share <= TOLERANCE:
        raise PruningError(
            f"the logits of the masked and the smaller network differ by {difference:.3g}, which is "
            f"{share:.2e} of their standard deviation (={spread:.3g}); at most {TOLERANCE:.0e} is allowed"
        )
    return share
