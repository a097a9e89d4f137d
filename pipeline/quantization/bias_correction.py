"""Empirical bias correction: biases that give each channel of an int8 layer the mean that it has in float."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.layers import Network
from pipeline.models.storage import Quantization
from pipeline.quantization.grid import product_scale
from pipeline.quantization.simulator import Sums, simulate

CORRECTION_IMAGES = 64
"""Number of images for the correction; they are held in memory at once, activations included."""


@torch.no_grad()
def correct_biases(
    network: Network,
    reference: Network,
    quantization: Quantization,
    images: Float[Tensor, "batch 3 height width"],
) -> Network:
    """A copy whose biases give each channel of the int8 layers the mean of the float reference.

    Both see the same images, and each layer is corrected before its output is handed on, so that later
    layers see earlier corrections (Nagel et al. 2019, https://arxiv.org/abs/1906.04721, in one pass).
    """
    means: dict[str, Tensor] = {}
    handles = []
    for name, part in reference.parts.items():

        def record(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            means[name] = _channel_means(output)

        handles.append(part.register_forward_hook(record))
    try:
        reference.module(images)
    finally:
        for handle in handles:
            handle.remove()

    corrected = network.copy()
    simulated = simulate(network, quantization)
    for name, scale in quantization.weight_scales.items():
        layer = network.layers[name]
        sums = next(m for m in simulated.get_submodule(layer.weights).modules() if isinstance(m, Sums))
        step = product_scale(quantization.activation_scales[layer.reads], scale)

        def correct(
            _module: nn.Module,
            _inputs: Any,
            output: Tensor,
            name: str = name,
            step: Tensor = step,
            sums: Sums = sums,
        ) -> Tensor:
            error = (means[name].double() / step.double() - _channel_means(output)).round()
            bias = sums.apply_weights.bias
            assert bias is not None
            corrected.part(name).bias = nn.Parameter(((bias + error) * step.double()).to(bias))
            return output + error.to(output).view(-1, *[1] * (output.dim() - 2))

        sums.register_forward_hook(correct)
    simulated(images)
    return corrected


def _channel_means(values: Tensor) -> Float[Tensor, " channels"]:
    return values.double().transpose(0, 1).flatten(1).mean(dim=1)
