"""The costs of a network on paper: multiply-accumulates and parameters."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, size: int) -> int:
    """Count the multiply-accumulates of convolutions and matrix products for one ``size`` by ``size`` RGB
    image.

    PyTorch's counter gives operations, which are two for each multiply-accumulate.
    """
    parameter = next(module.parameters())
    image = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    training = module.training
    module.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(image)
    module.train(training)
    return counter.get_total_flops() // 2


def count_parameters(module: nn.Module) -> int:
    """Count the trainable values: weights, biases, scale and shift of batch norms."""
    return sum(parameter.numel() for parameter in module.parameters())
