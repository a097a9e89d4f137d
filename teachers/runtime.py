"""Trained networks in ONNX Runtime, which answers faster on a CPU than PyTorch does."""

import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from teachers.onnx_files import OnnxClassifier

TOLERANCE = 1e-4
"""Of the greatest logit: a fifth of what float16, in which answers are stored, rounds away."""


@torch.no_grad()
def in_runtime(module: nn.Module, size: int) -> nn.Module:
    """The same network in ONNX Runtime, to be asked alone; itself where that cannot be.

    It stays in PyTorch on a GPU, and where the exporter does not know it or what it made answers otherwise.

    Args:
        module: from normalised images to logits, as trained.
        size: of the images, in pixels.
    """
    first = next(module.parameters(), None)
    if first is None or first.device.type != "cpu":
        return module
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(scratch) / "network.onnx"
        try:
            # PyTorch calls this exporter legacy; the new one takes onnxscript.
            torch.onnx.export(
                module.eval(),
                (images[:2],),
                file,
                dynamo=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            )
            copy = OnnxClassifier(file)
            answers, wanted = copy(images), module(images)
        except Exception:  # of any kind, as networks are
            return module
    same = (answers - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    return copy if same else module
