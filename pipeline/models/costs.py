"""What a network costs on paper: multiply-accumulates and parameters."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, size: int) -> int:
    """Multiply-accumulates of one ``size`` by ``size`` RGB image: convolutions and matrix products.

    Counted by PyTorch's own counter, which gives two operations for each.
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
    """Number of trainable values: weights, biases, and batch norm's scale and shift."""
    return sum(parameter.numel() for parameter in module.parameters())
