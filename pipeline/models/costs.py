"""The costs of a network on paper: multiply-accumulates and parameters."""

from typing import Any

import torch
from torch import Tensor, nn


def count_macs(module: nn.Module, size: int) -> int:
    """Count the multiply-accumulates of convolutions and linear layers for an RGB image of ``size`` pixels.

    Each value that such a layer returns is a sum of as many products as one of its output channels has
    weights.
    """
    macs = 0

    def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal macs
        macs += output[0].numel() * layer.get_parameter("weight")[0].numel()

    handles = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    parameter = next(module.parameters())
    image = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    training = module.training
    try:
        with torch.no_grad():
            module.eval()(image)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return macs


def count_parameters(module: nn.Module) -> int:
    """Count the trainable values: weights, biases, scale and shift of batch norms."""
    return sum(parameter.numel() for parameter in module.parameters())
