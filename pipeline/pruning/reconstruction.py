"""A pruned network fitted to its parent layer by layer, by least squares and without a gradient.

Each layer that mixes channels is fitted to what the parent's computes, with what the pruned layers before it
give it (He et al. 2017, "Channel Pruning", https://arxiv.org/abs/1707.06168).
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pipeline.models.layers import trace

IMAGES = 256
"""Number of training images on which the layers are fitted."""
RIDGE = 1e-3
"""Weight of the squared change of a layer's weights, relative to the variance of its inputs: where inputs
nearly depend on one another, weights stay as they were."""
FEW = 0.1
"""What is added to it per input and row: a last layer has hardly more images than inputs, and would learn
them by heart."""


@torch.no_grad()
def fit(parent: nn.Module, pruned: nn.Module, images: Sequence[Float[Tensor, "batch 3 size size"]]) -> None:
    """Fit the weights of a pruned network, in place, so that each layer answers as its parent's.

    Args:
        parent: the network before pruning, in evaluation mode.
        pruned: the network just after ``surgery.remove_channels``, with the statistics of its parent.
        images: normalised training images.
    """
    network = trace(parent)
    norms = {layer.weights: layer.norm for layer in network.layers.values()}
    mixing = {layer.weights for layer in network.layers.values() if layer.kind == "dense"} | {
        network.head.weights
    }
    mixing.discard(network.stem.weights)  # its inputs are the images, of which nothing was removed
    expected, actual = list(images), list(images)
    done = ""
    for path in network.steps:
        if path == done:
            continue
        done = norms.get(path) or ""
        chains = [
            nn.Sequential(*(module.get_submodule(part) for part in (path, done) if part))
            for module in (parent, pruned)
        ]
        targets = [chains[0](batch) for batch in expected]
        if path in mixing:
            part = pruned.get_submodule(path)
            assert isinstance(part, nn.Conv2d | nn.Linear)
            norm = pruned.get_submodule(done) if done else None
            kept = _kept(parent.get_submodule(done), norm) if norm else slice(None)
            residuals = (
                target[:, kept] - chains[1](batch) for target, batch in zip(targets, actual, strict=True)
            )
            _correct(part, norm, *_least_squares(zip(actual, residuals, strict=True)))
        expected, actual = targets, [chains[1](batch) for batch in actual]


@torch.no_grad()
def reparametrise(module: nn.Module, images: Iterable[Float[Tensor, "batch 3 size size"]]) -> None:
    """Give batch norms the statistics of normalised images, and gains and biases with which the network
    computes what it did.

    In training they normalise with the statistics of the batch. A network that ``fit`` has made has those of
    its parent, and biases that make up for the difference, which would count twice. Leaves the
    network in evaluation mode.
    """
    inputs: dict[nn.BatchNorm2d, list[Tensor]] = {
        part: [] for part in module.modules() if isinstance(part, nn.BatchNorm2d)
    }

    def keep(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        values = arguments[0].double()
        inputs[norm].append(torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]))

    hooks = [norm.register_forward_pre_hook(keep) for norm in inputs]
    module.eval()
    for batch in images:
        module(batch)
    for hook in hooks:
        hook.remove()
    for norm, moments in inputs.items():
        mean, square = torch.stack(moments).mean(0)
        variance = square - mean.square()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / (norm.running_var.double() + norm.eps).sqrt()
        norm.bias.add_(gain * (mean - norm.running_mean))
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _least_squares(
    pairs: Iterator[tuple[Tensor, Tensor]],
) -> tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
    """The weights and the bias that give the residuals from the inputs, with few changes of the weights."""
    square = cross = input_sum = residual_sum = torch.zeros(())
    count = 0
    for inputs, residuals in pairs:
        x, y = (values.flatten(2).transpose(1, 2).flatten(0, 1) if values.dim() == 4 else values
                for values in (inputs, residuals))  # fmt: skip
        square, cross = square + (x.T @ x).double(), cross + (x.T @ y).double()
        input_sum, residual_sum = input_sum + x.double().sum(0), residual_sum + y.double().sum(0)
        count += len(x)
    input_mean, residual_mean = input_sum / count, residual_sum / count
    square = square / count - torch.outer(input_mean, input_mean)
    cross = cross / count - torch.outer(input_mean, residual_mean)
    ridge = (RIDGE + FEW * len(square) / count) * square.diagonal().mean().clamp_min(1e-12)
    change = torch.linalg.solve(square + ridge * torch.eye(len(square), device=square.device), cross).T
    return change, residual_mean - change @ input_mean


def _correct(part: nn.Conv2d | nn.Linear, norm: nn.Module | None, weight: Tensor, bias: Tensor) -> None:
    """Add weights and a bias to a layer, before the gain of its batch norm if it has one."""
    if norm is None:
        assert part.bias is not None
        part.bias.add_(bias.to(part.bias))
    else:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        alive = gain.abs() > 1e-6  # a channel without gain is constant, whatever its weights are
        weight = torch.where(alive[:, None], weight / torch.where(alive, gain, 1.0)[:, None], 0.0)
        norm.bias.add_(torch.where(alive, bias, 0.0).to(norm.bias))
    part.weight.add_(weight.reshape(part.weight.shape).to(part.weight))


def _kept(parent: nn.Module, pruned: nn.Module) -> Int64[Tensor, " channels"]:
    """The channels of the parent that are left, found by the parameters and statistics of batch norm, which
    they keep in their order."""
    rows, left = (
        torch.stack([value.float() for value in norm.state_dict().values() if value.dim()], 1).tolist()
        for norm in (parent, pruned)
    )
    indices, start = [], 0
    for row in left:
        start = rows.index(row, start) + 1
        indices.append(start - 1)
    return torch.tensor(indices)
