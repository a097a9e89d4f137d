"""Adaptive rounding: weights up or down so that a layer's output stays near the float network's.

Nearest rounding is the best for each weight alone, but not for a layer's output, where errors of weights that
read alike inputs add up or cancel. The objective is that of AdaRound (Nagel et al. 2020,
https://arxiv.org/abs/2004.10568): each weight goes up or down such that the squared error of the layer's
output before the ReLU, on the quantised network's input and against the float network's output, is least.
That is quadratic in the weights, so second moments hold all that the images say. It is minimised by flipping
one weight after another, without a learning rate or annealing, where the paper relaxes rounding to a sigmoid
and descends its gradient.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional

from pipeline.models.storage import Quantization
from pipeline.quantization.simulator import CLIPPING, LEVELS, check, layer_inputs

CHUNK = 16
"""Images that go through a layer at once."""


@dataclass(frozen=True)
class Moments:
    """Of one layer's inputs in the quantised network and its outputs in the float one, over all positions."""

    inputs: Float[Tensor, "groups fan_in fan_in"]
    """Covariance of the inputs."""
    outputs: Float[Tensor, "groups channels fan_in"]
    """Covariance of the outputs with the inputs."""
    mean_input: Float[Tensor, "groups fan_in"]
    mean_output: Float[Tensor, "groups channels"]


@torch.no_grad()
def round_adaptively(
    module: nn.Module, quantization: Quantization, images: Float[Tensor, "batch 3 height width"]
) -> nn.Module:
    """A copy of a folded module with the int8 layers' weights on their grid, rounded for these images.

    Layers are rounded one after another, so that each compensates for what went before it. The bias takes
    what is left of each channel's mean error.

    Args:
        module: folded, in float.
        quantization: steps of the weights and scales of the activations, as they stay.
        images: normalised; all of them are held in memory, with one activation.

    Raises:
        ValueError: as ``quantization.check``, or a layer reads the sum of two activations.
    """
    check(module, quantization)
    layer_inputs(module)  # one activation at a time is all that is carried below
    rounded = copy.deepcopy(module)
    real = whole = images.split(CHUNK)
    for node in fx.symbolic_trace(module).graph.nodes:
        if node.op != "call_module":
            continue
        part, twin = module.get_submodule(node.target), rounded.get_submodule(node.target)
        name = str(node.target).removesuffix(".conv").removesuffix(".act")
        answers = tuple(part(x) for x in real)
        if isinstance(twin, nn.Conv2d | nn.Linear) and name in quantization.weight_scales:
            _round_layer(
                twin,
                moments(twin, zip(whole, answers, strict=True)),
                quantization.weight_scales[name],
                quantization.weight_limit,
            )
        whole, real = tuple(twin(x) for x in whole), answers
        written = quantization.activations.get(name)
        if written is not None and isinstance(part, (nn.AdaptiveAvgPool2d, *CLIPPING)):
            step = written.scale
            whole = tuple((x / step).round_().clamp_(0, LEVELS).mul_(step) for x in whole)
    return rounded


def _round_layer(
    layer: nn.Conv2d | nn.Linear, seen: Moments, scale: Float[Tensor, " channels"], limit: int
) -> None:
    groups = len(seen.inputs)
    step = scale.to(layer.weight).view(groups, -1, 1)
    weight = layer.weight.view(groups, -1, seen.inputs.shape[1])
    integers = choose(weight / step, step, seen, limit)
    chosen = integers * step
    mean = seen.mean_output - torch.einsum("gof,gf->go", chosen, seen.mean_input)
    layer.weight = nn.Parameter(chosen.view_as(layer.weight), requires_grad=layer.weight.requires_grad)
    layer.bias = nn.Parameter(mean.flatten(), requires_grad=layer.weight.requires_grad)


def choose(
    weight: Float[Tensor, "groups channels fan_in"],
    step: Float[Tensor, "groups channels 1"],
    seen: Moments,
    limit: int,
) -> Float[Tensor, "groups channels fan_in"]:
    """Weights, given in steps, up or down to whole numbers, by the squared error of the outputs.

    From nearest rounding on, every channel flips the one weight that lowers its error most, until none does;
    no channel's error is therefore above that of nearest rounding.
    """
    down = weight.floor().clamp(-limit, limit - 1)
    up = (weight - down).round().clamp(0, 1)
    power = seen.inputs.diagonal(dim1=1, dim2=2)[:, None, :]
    slope = ((down + up) * step) @ seen.inputs - seen.outputs
    group = torch.arange(len(weight))[:, None]
    for _ in range(2 * weight.shape[2]):  # more flips than weights undo each other by rounding errors
        change = step * (1 - 2 * up)
        gain, place = (change * (2 * slope + change * power)).min(dim=2)
        better = gain < 0
        if not better.any():
            break
        index = place[:, :, None]
        taken = change.gather(2, index) * better[:, :, None]
        slope += taken * seen.inputs[group, place]
        flipped = up.gather(2, index)
        up.scatter_(2, index, torch.where(better[:, :, None], 1 - flipped, flipped))
    return down + up


def moments(layer: nn.Conv2d | nn.Linear, pairs: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """From batches of a layer's inputs in one network and its outputs in another.

    Raises:
        ValueError: there are no batches.
    """
    count, totals = 0, None
    for x, answers in pairs:
        read = _columns(layer, x)
        groups = read.shape[1]
        wanted = answers.reshape(len(x), groups, -1, read.shape[3])
        sums = (
            (read @ read.mT).sum(dim=0).double(),
            (wanted @ read.mT).sum(dim=0).double(),
            read.sum(dim=(0, 3)).double(),
            wanted.sum(dim=(0, 3)).double(),
        )
        totals = sums if totals is None else tuple(map(torch.add, totals, sums))
        count += read.shape[0] * read.shape[3]
    if totals is None:
        raise ValueError("there are no images; at least one is needed")
    inputs, outputs, mean_input, mean_output = (total / count for total in totals)
    return Moments(
        (inputs - mean_input[:, :, None] * mean_input[:, None, :]).float(),
        (outputs - mean_output[:, :, None] * mean_input[:, None, :]).float(),
        mean_input.float(),
        mean_output.float(),
    )


def _columns(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Float[Tensor, "batch groups fan_in positions"]:
    """What each output multiplies with its weights."""
    if isinstance(layer, nn.Linear):
        return x[:, None, :, None]
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1):
        return x.flatten(2).unflatten(1, (layer.groups, -1))
    assert not isinstance(layer.padding, str)
    patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.unflatten(1, (layer.groups, -1))
