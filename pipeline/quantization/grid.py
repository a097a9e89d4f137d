"""The grid of eight-bit numbers: which tensors lie on it, the steps of weights, and whole numbers.

Weights are signed and symmetric with one step per output channel, activations unsigned with one scale per
tensor (Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342).
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pipeline.models.layers import Network

PIXEL_SCALE = 1 / 255
"""Scale at which the bytes of an image are taken as they are, without any rounding."""
INT4_LIMIT = 7
"""Greatest integer weight of four bits."""
WEIGHT_LIMITS = (127, 63, INT4_LIMIT)
"""Allowed greatest integer weights: all of int8; seven bits, with which the sum of two products fits the
16 bits of ``vpmaddubsw``; or four bits."""
LEVELS = 255
"""Greatest integer of an activation."""
WEIGHT_RATIOS = torch.logspace(0, math.log10(0.5), 55).tolist()
"""Shares of a channel's full range that the search for its step tries, in steps of 1.3 %."""
GREATEST_BIAS = 2.0**30
"""Greatest bias in steps of its products: it leaves half of an int32 to the sums, which are below 2^29."""
LEAST_STEP_RATIO = 2.0**-12
"""Least step of a weight channel relative to its layer's greatest: below it, a bias might need more than 32
bits."""


def int8_activations(network: Network, float_layers: Collection[str]) -> tuple[str, ...]:
    """Names of the activations that an int8 layer reads or writes, in order; the logits are never among them.

    Raises:
        ValueError: a float layer does not exist.
    """
    if unknown := [name for name in float_layers if name not in network.layers]:
        raise ValueError(f"float layers {unknown} do not exist; the layers are {list(network.layers)}")
    int8 = [layer for layer in network.layers.values() if layer.name not in float_layers]
    written = (layer.name for layer in int8 if layer.activation is not None)
    return tuple(dict.fromkeys(itertools.chain((layer.reads for layer in int8), written)))


def weight_scales(
    network: Network, weight_limit: int, float_layers: Collection[str] = (), *, search: bool = True
) -> dict[str, Float[Tensor, " channels"]]:
    """The step of each output channel of the int8 layers.

    The step of least squared error is searched over shares of the channel's range; without ``search`` it
    spans the whole range. No step is less than 2^-12 of the layer's greatest, since the bias of a channel
    whose weights all but vanish would need more than 32 bits.

    Raises:
        ValueError: the limit is not one of ``WEIGHT_LIMITS``.
    """
    if weight_limit not in WEIGHT_LIMITS:
        raise ValueError(f"weight_limit is {weight_limit}; allowed are {WEIGHT_LIMITS}")
    ratios = WEIGHT_RATIOS if search else WEIGHT_RATIOS[:1]
    return {
        name: _least_squares_steps(part.weight.detach().flatten(1), weight_limit, ratios)
        for name, part in network.parts.items()
        if name not in float_layers
    }


def _least_squares_steps(
    weight: Float[Tensor, "channels fan_in"], limit: int, ratios: Iterable[float]
) -> Float[Tensor, " channels"]:
    full = weight.abs().amax(dim=1, keepdim=True) / limit
    full = full.clamp_min(torch.finfo(weight.dtype).tiny)
    best, best_error = full, torch.full_like(full, float("inf"))
    for ratio in ratios:
        step = full * ratio
        rounded = (weight / step).round().clamp(-limit, limit) * step
        error = (weight - rounded).square().sum(dim=1, keepdim=True)
        best = torch.where(error < best_error, step, best)
        best_error = torch.minimum(error, best_error)
    return best.squeeze(1).clamp_min(best.max().item() * LEAST_STEP_RATIO)


def fit_biases(
    network: Network, steps: Mapping[str, Float[Tensor, " channels"]], scales: Mapping[str, float]
) -> dict[str, Float[Tensor, " channels"]]:
    """The steps of weights, raised where a bias would not fit an int32 in steps of its products.

    It is so where a layer reads values that all but vanish, beside which the bias is all that counts.

    Args:
        network: the folded network.
        steps: step of each output channel, by layer.
        scales: scale of each activation.
    """
    fitting = {}
    for name, step in steps.items():
        bias, read = network.part(name).bias, scales[network.layers[name].reads]
        least = torch.zeros_like(step) if bias is None else bias.detach().abs() / (GREATEST_BIAS * read)
        fitting[name] = torch.maximum(step, least.to(step))
    return fitting


def bake(network: Network, scales: Mapping[str, Float[Tensor, " channels"]], weight_limit: int) -> Network:
    """A copy of a folded network with its weights on the grid; layers without steps stay as they are."""
    baked = network.copy()
    for name, step in scales.items():
        part = baked.part(name)
        integers = integer_weight(part.weight.detach(), step, weight_limit)
        factor = step.to(part.weight).view(-1, *[1] * (part.weight.dim() - 1))
        part.weight = nn.Parameter(integers * factor, requires_grad=part.weight.requires_grad)
    return baked


def integer_weight(weight: Tensor, scale: Float[Tensor, " channels"], limit: int) -> Tensor:
    """A layer's weights as whole numbers of at most ``limit``, in the weight's own type and shape."""
    step = scale.to(weight).view(-1, *[1] * (weight.dim() - 1))
    return (weight / step).round().clamp(-limit, limit)


def integer_bias(
    bias: Float[Tensor, " channels"], input_scale: float, scale: Float[Tensor, " channels"]
) -> Int64[Tensor, " channels"]:
    """A layer's bias in steps of its products: the input's scale times the channel's weight step.

    Raises:
        ValueError: a bias does not fit 32 bits.
    """
    integers = (bias.detach().double() / product_scale(input_scale, scale).double()).round()
    if integers.abs().max() >= 2**31:
        channel = int(integers.abs().argmax())
        raise ValueError(
            f"bias {float(bias[channel]):.3g} of channel {channel} is {float(integers[channel]):.3g} steps "
            f"of {input_scale:.3g} x {float(scale[channel]):.3g}; an int32 bias holds fewer than 2^31"
        )
    return integers.long()


def product_scale(input_scale: float, scale: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """The step of a layer's integer sums, multiplied in single precision as the runtime does."""
    return torch.tensor(input_scale, dtype=torch.float32, device=scale.device) * scale.float()
