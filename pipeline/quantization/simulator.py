"""A simulator of the runtime's integer arithmetic, and plain fake quantisation to compare it with."""

import copy
from collections.abc import Collection
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.layers import IMAGES, Network
from pipeline.models.storage import Quantization
from pipeline.quantization.grid import (
    LEVELS,
    PIXEL_SCALE,
    int8_activations,
    integer_bias,
    integer_weight,
    product_scale,
)

CLIP_TOLERANCE = 1e-5
"""Share by which rounding may let an activation's range reach past the value at which its ReLU6 saturates."""


class Sums(nn.Module):
    """An int8 layer up to its 32-bit sums: it reads real values on the input's grid, returns whole numbers.

    The numbers travel in single precision, in which they are exact up to 2^24; MobileNet's sums stay below.
    """

    def __init__(self, part: nn.Conv2d | nn.Linear, input_scale: float, step: Tensor, limit: int) -> None:
        super().__init__()
        self.apply_weights = copy.deepcopy(part)
        self.apply_weights.weight = nn.Parameter(integer_weight(part.weight.detach(), step, limit))
        bias = torch.zeros_like(step) if part.bias is None else part.bias
        self.apply_weights.bias = nn.Parameter(integer_bias(bias, input_scale, step).to(part.weight))
        self.input_scale = input_scale

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_weights((x / self.input_scale).round_())


class _Rescaled(nn.Module):
    """Turns whole numbers into real ones by a factor per channel."""

    def __init__(self, factor: Float[Tensor, " channels"]) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: Float[Tensor, "batch channels"]) -> Float[Tensor, "batch channels"]:
        return x * self.get_buffer("factor")


class _Requantized(nn.Module):
    """Turns sums into real values on the output's grid.

    It rounds half to even and saturates, which is the ReLU.
    """

    def __init__(self, factor: Float[Tensor, " channels"], scale: float) -> None:
        super().__init__()
        self.register_buffer("factor", (factor / scale).view(-1, 1, 1))
        self.scale = scale

    def in_steps(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("factor")

    def forward(self, x: Tensor) -> Tensor:
        return self.in_steps(x).round_().clamp_(0, LEVELS).mul_(self.scale)


class _Rounded(nn.Module):
    """A float part whose output is rounded to a grid."""

    def __init__(self, part: nn.Module, scale: float) -> None:
        super().__init__()
        self.part = part
        self.scale = scale

    def in_steps(self, x: Tensor) -> Tensor:
        return self.part(x) / self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.in_steps(x).round_().clamp_(0, LEVELS).mul_(self.scale)


class _AveragedSums(nn.Module):
    """The global average of integers, with one rounding at the end."""

    def __init__(self, read: float, written: float) -> None:
        super().__init__()
        self.read, self.written = read, written

    def in_steps(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels 1 1"]:
        sums = (x / self.read).round_().sum(dim=(2, 3), keepdim=True)
        return sums * (self.read / (self.written * x.shape[2] * x.shape[3]))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels 1 1"]:
        return self.in_steps(x).round_().clamp_(0, LEVELS).mul_(self.written)


def check(network: Network, quantization: Quantization) -> None:
    """Check that a quantisation covers a folded network and that integers can perform its activations.

    Raises:
        ValueError: steps or scales are missing or superfluous, the images do not keep their bytes, or a scale
            reaches past the ReLU6 that it stands for.
    """
    expected = network.layers.keys() - set(quantization.float_layers)
    if set(quantization.weight_scales) != expected:
        raise ValueError(
            f"weight steps and int8 layers differ in {sorted(set(quantization.weight_scales) ^ expected)}"
        )
    scales = quantization.activation_scales
    needed = set(int8_activations(network, quantization.float_layers))
    if set(scales) != needed:
        raise ValueError(f"scales and int8 activations differ in {sorted(set(scales) ^ needed)}")
    for name, scale in scales.items():
        if name == IMAGES:
            if scale != PIXEL_SCALE:
                raise ValueError(f"images have the scale {scale}; an int8 stem needs {PIXEL_SCALE}")
            continue
        clip = network.layers[name].clip if name in network.layers else None
        if clip is not None and scale * LEVELS > clip * (1 + CLIP_TOLERANCE):
            raise ValueError(f"activation {name} reaches {scale * LEVELS:.4g}; its clip allows {clip:g}")


def leave_float(network: Network, quantization: Quantization, float_layers: Collection[str]) -> Quantization:
    """The same quantisation of a folded network with exactly these layers in float.

    Raises:
        ValueError: a layer does not exist.
    """
    steps = {name: step for name, step in quantization.weight_scales.items() if name not in float_layers}
    scales = {name: quantization.activation_scales[name] for name in int8_activations(network, float_layers)}
    return replace(
        quantization, weight_scales=steps, activation_scales=scales, float_layers=tuple(float_layers)
    )


def simulate(network: Network, quantization: Quantization) -> nn.Module:
    """The folded network with the runtime's own integer arithmetic, for normalised images.

    Products are summed as integers with an int32 bias, rescaled once in single precision, rounded half to
    even and clamped to 0..255, as ONNX Runtime's ``QLinearConv``, ``QGemm`` and
    ``QLinearGlobalAveragePool`` do. No gradient passes the rounding. Modules keep their paths.

    Raises:
        ValueError: see ``check``; or a bias does not fit 32 bits.
    """
    check(network, quantization)
    simulated = copy.deepcopy(network.module).eval().requires_grad_(False)
    scales = quantization.activation_scales
    for name, layer in network.layers.items():
        if name in quantization.weight_scales:
            step, read = quantization.weight_scales[name], scales[layer.reads]
            sums = Sums(network.part(name), read, step, quantization.weight_limit).requires_grad_(False)
            factor = product_scale(read, step)
            if layer.activation is None:
                simulated.set_submodule(layer.weights, nn.Sequential(sums, _Rescaled(factor)))
            else:
                simulated.set_submodule(layer.weights, sums)
                simulated.set_submodule(layer.activation, _Requantized(factor, scales[name]))
        elif name in scales:
            part = simulated.get_submodule(network.output(name))
            simulated.set_submodule(network.output(name), _Rounded(part, scales[name]))
    for path, source in network.pools.items():
        if path in scales:
            pool: nn.Module = _Rounded(simulated.get_submodule(path), scales[path])
            if source in scales:
                pool = _AveragedSums(scales[source], scales[path])
            simulated.set_submodule(path, pool)
    return simulated.eval()


def fake_quantize(network: Network, quantization: Quantization) -> nn.Module:
    """The folded network with its activations rounded and all else in floating point, for normalised images.

    With its weights on the grid this is what quantisation-aware training computes, and what other tools
    call fake quantisation: without integer sums, and without biases in whole steps.

    Raises:
        ValueError: see ``check``.
    """
    check(network, quantization)
    rounded = copy.deepcopy(network.module).eval().requires_grad_(False)
    for name, scale in quantization.activation_scales.items():
        if name != IMAGES:
            path = network.output(name)
            rounded.set_submodule(path, _Rounded(rounded.get_submodule(path), scale))
    return rounded
