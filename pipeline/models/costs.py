"""What a network costs on paper: multiply-accumulates, parameters and bytes."""

import gzip
import math
from pathlib import Path

import onnx
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
    """Trainable values: weights, biases, batch norm's scale and shift."""
    return sum(parameter.numel() for parameter in module.parameters())


def weigh(path: Path) -> dict[str, int]:
    """``weights_bytes``, the tensors that an ONNX file brings into memory, and its ``compressed_bytes``.

    Compressed by gzip at level 9, as a package or a web server would send it.
    """
    tensors = onnx.load(path).graph.initializer
    width = onnx.helper.tensor_dtype_to_np_dtype
    return {
        "weights_bytes": sum(math.prod(t.dims) * width(t.data_type).itemsize for t in tensors),
        "compressed_bytes": len(gzip.compress(path.read_bytes(), 9, mtime=0)),
    }
