"""Channel masks: the channels that a criterion removes, the network with them at zero, and without them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.fx.passes.shape_prop import ShapeProp

from pipeline import nni_edge

Criterion = Literal["l1", "l2", "fpgm", "taylor"]
Loss = Callable[[nn.Module], Tensor]
"""Function from a network to its mean loss on some batch."""
Pruner = Callable[[nn.Module, list[dict[str, Any]], Sequence[Loss]], Any]
"""Function from a network, NNI's configuration and losses to one of NNI's pruners."""


def _taylor_pruner(module: nn.Module, entries: list[dict[str, Any]], losses: Sequence[Loss]) -> Any:
    """NNI's Taylor pruner over the given losses.

    NNI collects the gradients inside a training loop that the caller writes, and requires an optimizer and a
    training step. The importance is that of the network as it is, so the learning rate is zero, and the step,
    which only NNI's other pruners call, does nothing.
    """
    if not losses:
        raise ValueError("criterion = 'taylor' needs at least one loss to take gradients of")

    def collect(module: nn.Module, optimizer: Any, *_: Any) -> None:
        for loss in losses:
            loss(module).backward()
            optimizer.step()
            optimizer.zero_grad()

    optimizer = nni_edge.trace(torch.optim.SGD)(module.parameters(), lr=0.0)
    evaluator = nni_edge.TorchEvaluator(collect, optimizer, training_step=lambda values: values)
    return nni_edge.TaylorPruner(module, entries, evaluator, training_steps=len(losses))


PRUNERS: dict[Criterion, Pruner] = {
    "l1": lambda module, entries, _: nni_edge.L1NormPruner(module, entries),
    "l2": lambda module, entries, _: nni_edge.L2NormPruner(module, entries),
    "fpgm": lambda module, entries, _: nni_edge.FPGMPruner(module, entries),
    "taylor": _taylor_pruner,
}
"""NNI's pruner per criterion, that is, per importance of a channel: L1 norm (Li et al. 2016,
https://arxiv.org/abs/1608.08710), L2 norm, distance from the geometric median (He et al. 2019,
https://arxiv.org/abs/1811.00250), or the change of a loss (Taylor expansion of first order in the weights,
Molchanov et al. 2019, https://arxiv.org/abs/1906.10771)."""

Masks = dict[str, dict[str, Tensor]]
"""Ones and zeros in a parameter's shape, by module path and then by parameter name."""


def channel_masks(
    module: nn.Module,
    channels: Mapping[str, int],
    criterion: Criterion,
    size: int,
    losses: Sequence[Loss] = (),
) -> Masks:
    """Compute masks over convolution weights and their batch norms that leave the given number of channels.

    Convolutions whose channels belong together, such as a depthwise one and the one before it, get the same
    mask, from the mean of their importance.

    Args:
        module: the network; left as it is.
        channels: number of output channels to keep by module path; the same within a group of convolutions
            whose channels belong together.
        criterion: importance of a channel.
        size: side of the image in pixels with which the network is traced.
        losses: losses on batches whose gradients ``taylor`` takes; the other criteria ignore them.

    Raises:
        ValueError: ``criterion`` is ``taylor`` and there are no losses.
    """
    subject = copy.deepcopy(module).eval()
    graph = symbolic_trace(subject)
    ShapeProp(graph).propagate(_random_images(subject, size))
    sparsity = {}
    for path, count in channels.items():
        total = subject.get_parameter(f"{path}.weight").shape[0]
        if count < total:
            # NNI rounds ratio times total down. Half a channel more keeps a product that floating point puts
            # just below a whole number from removing one channel too few.
            sparsity[path] = (total - count + 0.5) / total
    if not sparsity:
        return {}
    entries = [
        {"op_names": [path], "target_names": ["weight"], "sparse_ratio": ratio}
        for path, ratio in sparsity.items()
    ]
    # NNI masks the batch norm after a convolution only if the configuration aligns it, target by target.
    aligned = [
        {
            "op_names": [norm],
            "target_names": ["weight", "bias"],
            "target_settings": {
                name: {"align": {"module_name": path, "target_name": "weight", "dims": [0]}}
                for name in ("weight", "bias")
            },
        }
        for path, norm in _norms_after(graph).items()
        if path in sparsity
    ]
    with nni_edge.quiet():
        grouped = nni_edge.group_dependent_channels(graph, entries)
        _, masks = PRUNERS[criterion](subject, grouped + aligned, losses).compress()
    return {path: dict(targets) for path, targets in masks.items()}


def apply_masks(module: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy in evaluation mode whose masked parameters are zero."""
    masked = copy.deepcopy(module).eval()
    with torch.no_grad():
        for path, targets in masks.items():
            for name, mask in targets.items():
                masked.get_submodule(path).get_parameter(name).mul_(mask)
    return masked


def remove_masked(module: nn.Module, masks: Masks, size: int, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of the network without its masked channels.

    NNI looks for channels that are constant by putting random numbers into the network and its weights: one
    whose eight values differ by less than 1e-6 is removed as well, masked or not.

    Args:
        module: the network; left as it is.
        masks: masks of the channels.
        size: as in ``channel_masks``.
        seed: seed of these numbers.
    """
    # NNI writes into the network and into the masks that it is given, so it gets copies.
    subject, masks = copy.deepcopy((module, masks))
    subject.eval()
    head, single = _last_linear(subject)
    if single:
        # NNI finds no gradient behind a single logit, so it gets a second one.
        head.weight, head.bias = (nn.Parameter(torch.cat([each, -each])) for each in (head.weight, head.bias))
        head.out_features = 2
    images = _random_images(subject, size)
    # NNI's own tracer does not run on this PyTorch, so it gets torch.fx's graph. It draws its random numbers
    # from PyTorch's global generator, whose state depends on what was measured before: the fork leaves it.
    with nni_edge.quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        graph, logger = symbolic_trace(subject), nni_edge.LOGGER
        smaller = nni_edge.ModelSpeedup(
            subject, images, masks, graph_module=graph, logger=logger
        ).speedup_model()
    if single:
        head, _ = _last_linear(smaller)
        head.weight, head.bias = (nn.Parameter(each[:1]) for each in (head.weight, head.bias))
    return {name: value.detach() for name, value in smaller.state_dict().items()}


def _last_linear(module: nn.Module) -> tuple[nn.Linear, bool]:
    """The layer that gives the logits, and whether it gives a single one."""
    head = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    return head, len(head.weight) == 1


def _norms_after(graph: torch.fx.GraphModule) -> dict[str, str]:
    """Module path of the batch norm after each convolution, by the convolution's module path."""
    norms = {}
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.BatchNorm2d):
            norms[node.args[0].target] = node.target
    return norms


def _random_images(module: nn.Module, size: int) -> Float[Tensor, "1 3 size size"]:
    parameter = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, size, size, generator=generator).to(parameter)
