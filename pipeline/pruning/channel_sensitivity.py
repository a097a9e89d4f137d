"""How well a network does when one layer at a time keeps only some of its channels."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

import students
from pipeline.pruning import masks, surgery, widths
from pipeline.pruning.masks import Criterion, Loss

Score = TypeVar("Score")


def measure(
    module: nn.Module,
    arguments: dict[str, Any],
    *,
    ratios: Sequence[float],
    settle: Callable[[nn.Module], None],
    score: Callable[[nn.Module], Score],
    criterion: Criterion = "l1",
    losses: Sequence[Loss] = (),
    architecture: str = "mobilenet_v1",
) -> dict[str, dict[float, Score]]:
    """Score the network with one layer narrowed at a time, the others whole.

    A layer is a unit whose number of channels is free, with the depthwise one that follows it. The least
    important channels are set to zero and batch norm's statistics are estimated again (Li et al. 2020,
    EagleEye, https://arxiv.org/abs/2007.02491) before the network is scored.

    Args:
        module: the parent; left as it is.
        arguments: keyword arguments of ``students.build`` that rebuild the parent.
        ratios: shares of a layer's channels that are kept, above 0 and below 1.
        settle: function that sets the statistics of batch norm to those of training images, of the size on
            which ``score`` judges, and leaves a network in evaluation mode.
        score: function from a network in evaluation mode to its score, of any type.
        criterion: importance of a channel.
        losses: losses whose gradients ``taylor`` takes.
        architecture: key of ``students.ARCHITECTURES``.

    Returns:
        Score by ratio, by layer as ``widths.free_layers`` names it.
    """
    parent_channels = widths.output_channels(module)
    scores: dict[str, dict[float, Score]] = {}
    for layer, path in enumerate(widths.free_layers(module)):
        scores[path] = {}
        for ratio in ratios:
            channels = widths.narrow_layer(parent_channels, layer, ratio)
            narrow = students.build(architecture, {**arguments, "channels": channels})
            removal = masks.channel_masks(
                module, surgery.convolution_channels(narrow), criterion, surgery.GRAPH_SIZE, losses
            )
            masked = masks.apply_masks(module, removal)
            settle(masked)
            scores[path][ratio] = score(masked)
    return scores
