"""Trained networks in ONNX Runtime, which is faster on a CPU than PyTorch."""

import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from teachers.onnx_files import OnnxClassifier

TOLERANCE = 1e-4
"""Greatest difference of a logit, as a share of the greatest logit: a fifth of the rounding error of float16,
in which answers are stored."""


@torch.no_grad()
def in_runtime(module: nn.Module, size: int) -> nn.Module:
    """Return the same network in ONNX Runtime, for inference alone, or the module itself if that is
    impossible.

    The module is returned if it is on a GPU, if PyTorch cannot export it, or if the exported file gives other
    logits.

    Args:
        module: trained network from normalised images to logits.
        size: side of the images in pixels.
    """
    first = next(module.parameters(), None)
    if first is None or first.device.type != "cpu":
        return module
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(scratch) / "network.onnx"
        try:
            # PyTorch calls this exporter legacy; the new one needs onnxscript.
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
            actual, expected = copy(images), module(images)
        except Exception:  # any module can be given, and exporting it can fail in any way
            return module
    same = (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()
    return copy if same else module
