"""Operators of PyTorch that are replaced while a network trains on a CPU."""

import torch
from torch.nn import functional

from pipeline.training import depthwise, narrow_norms


class FastOperators:
    """While active, convolutions and batch norms that are slow in PyTorch on a CPU are computed by functions
    of ours (see ``depthwise`` and ``narrow_norms``).

    All other operators are unchanged, and cost nothing: those of PyTorch are replaced by name, where a
    ``TorchFunctionMode`` would look at every operator.
    """

    def __enter__(self) -> None:
        torch.conv2d = functional.conv2d = depthwise.convolve
        torch.batch_norm = narrow_norms.normalise

    def __exit__(self, *_: object) -> None:
        torch.conv2d = functional.conv2d = depthwise.CONVOLUTION
        torch.batch_norm = narrow_norms.BATCH_NORM
