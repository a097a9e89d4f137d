"""Adaptive rounding: weights are rounded up or down so that a layer's output stays near the float network's.

Nearest rounding is best for each weight alone, but not for a layer's output, where the errors of weights
that read similar inputs add up or cancel. The objective is that of AdaRound (Nagel et al. 2020,
https://arxiv.org/abs/2004.10568): each weight is rounded up or down such that the squared error of the
layer's output before the ReLU is least, with the quantised network's input and against the float network's
output. This error is quadratic in the weights, so the second moments hold all that the images say. It is
minimised by flipping one weight after another, without a learning rate or annealing, where the paper
relaxes rounding to a sigmoid and descends its gradient.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.layers import IMAGES, Network
from pipeline.models.storage import Quantization
from pipeline.quantization.grid import LEVELS
from pipeline.quantization.simulator import check

CHUNK = 16
"""Number of images that pass a layer at once."""


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's inputs in the quantised network and its outputs in the float one."""

    inputs: Float[Tensor, "groups fan_in fan_in"]
    """Covariance of the inputs."""
    outputs: Float[Tensor, "groups channels fan_in"]
    """Covariance of the outputs with the inputs."""
    mean_input: Float[Tensor, "groups fan_in"]
    """Mean of the inputs."""
    mean_output: Float[Tensor, "groups channels"]
    """Mean of the outputs."""


@torch.no_grad()
def round_adaptively(
    network: Network, quantization: Quantization, images: Float[Tensor, "batch 3 height width"]
) -> Network:
    """A copy of a folded network with the int8 layers' weights on their grid, rounded for these images.

    Layers are rounded one after another, so that each compensates for the layers before it. The bias takes
    what is left of each channel's mean error.

    Args:
        network: a folded network in float.
        quantization: steps of the weights and scales of the activations, which stay as they are.
        images: normalised images; all of them are held in memory, with one activation.

    Raises:
        ValueError: see ``simulator.check``.
    """
    check(network, quantization)
    rounded = network.copy()
    int8_layers = {network.layers[name].weights: name for name in quantization.weight_scales}
    scales = {
        network.output(name): scale
        for name, scale in quantization.activation_scales.items()
        if name != IMAGES
    }
    in_float = in_int8 = images.split(CHUNK)
    for path in network.steps:
        part, twin = network.module.get_submodule(path), rounded.module.get_submodule(path)
        outputs = tuple(part(x) for x in in_float)
        if path in int8_layers:
            name = int8_layers[path]
            layer = rounded.part(name)
            _round_layer(
                layer,
                moments(layer, zip(in_int8, outputs, strict=True)),
                quantization.weight_scales[name],
                quantization.weight_limit,
            )
        in_float, in_int8 = outputs, tuple(twin(x) for x in in_int8)
        if path in scales:
            step = scales[path]
            in_int8 = tuple((x / step).round_().clamp_(0, LEVELS).mul_(step) for x in in_int8)
    return rounded


def _round_layer(
    layer: nn.Conv2d | nn.Linear, seen: Moments, scale: Float[Tensor, " channels"], limit: int
) -> None:
    groups = len(seen.inputs)
    step = scale.to(layer.weight).view(groups, -1, 1)
    weight = layer.weight.view(groups, -1, seen.inputs.shape[1])
    rounded = choose(weight / step, step, seen, limit) * step
    mean = seen.mean_output - torch.einsum("gof,gf->go", rounded, seen.mean_input)
    layer.weight = nn.Parameter(rounded.view_as(layer.weight), requires_grad=layer.weight.requires_grad)
    layer.bias = nn.Parameter(mean.flatten(), requires_grad=layer.weight.requires_grad)


def choose(
    weight: Float[Tensor, "groups channels fan_in"],
    step: Float[Tensor, "groups channels 1"],
    seen: Moments,
    limit: int,
) -> Float[Tensor, "groups channels fan_in"]:
    """Whole numbers for weights that are given in steps, by the squared error of the outputs.

    Starting from nearest rounding, every channel flips the one weight that lowers its error most, until
    none does; no channel's error is therefore above that of nearest rounding.
    """
    down = weight.floor().clamp(-limit, limit - 1)
    up = (weight - down).round().clamp(0, 1)
    power = seen.inputs.diagonal(dim1=1, dim2=2)[:, None, :]
    slope = ((down + up) * step) @ seen.inputs - seen.outputs
    group = torch.arange(len(weight))[:, None]
    # Flips beyond this number only undo each other, by rounding errors.
    for _ in range(2 * weight.shape[2]):
        change = step * (1 - 2 * up)
        gain, place = (change * (2 * slope + change * power)).min(dim=2)
        better = gain < 0
        if not better.any():
            break
        index = place[:, :, None]
        applied = change.gather(2, index) * better[:, :, None]
        slope += applied * seen.inputs[group, place]
        flipped = up.gather(2, index)
        up.scatter_(2, index, torch.where(better[:, :, None], 1 - flipped, flipped))
    return down + up


def moments(layer: nn.Conv2d | nn.Linear, pairs: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """The moments of a layer, from batches of its inputs in one network and its outputs in another.

    Raises:
        ValueError: there are no batches.
    """
    count, totals = 0, None
    for x, outputs in pairs:
        read = _columns(layer, x)
        written = outputs.reshape(len(x), read.shape[1], -1, read.shape[3])
        sums = (
            (read @ read.mT).sum(dim=0).double(),
            (written @ read.mT).sum(dim=0).double(),
            read.sum(dim=(0, 3)).double(),
            written.sum(dim=(0, 3)).double(),
        )
        totals = sums if totals is None else tuple(map(torch.add, totals, sums))
        count += read.shape[0] * read.shape[3]
    if totals is None:
        raise ValueError("there are no images; at least one is needed")
    inputs, cross, mean_input, mean_output = (total / count for total in totals)
    return Moments(
        (inputs - mean_input[:, :, None] * mean_input[:, None, :]).float(),
        (cross - mean_output[:, :, None] * mean_input[:, None, :]).float(),
        mean_input.float(),
        mean_output.float(),
    )


def _columns(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Float[Tensor, "batch groups fan_in positions"]:
    """The values that each output multiplies with its weights."""
    if isinstance(layer, nn.Linear):
        return x[:, None, :, None]
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1):
        return x.flatten(2).unflatten(1, (layer.groups, -1))
    assert not isinstance(layer.padding, str)
    patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.unflatten(1, (layer.groups, -1))
