"""Trained networks in ONNX Runtime, which is faster on a CPU than PyTorch."""

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch
from jaxtyping import Float
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,
    RuntimeException,
)
from torch import Tensor, nn

from teachers import parallel
from teachers.onnx_files import OnnxClassifier

TOLERANCE = 1e-4
"""Greatest difference of a logit, as a share of the greatest logit: a fifth of the rounding error of float16,
in which answers are stored."""

UNTRACEABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What PyTorch's exporter raises for modules that it cannot trace or translate."""

UNSUPPORTED = (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException)
"""What ONNX Runtime raises for a file that it cannot run."""

OUT_OF_MEMORY = re.compile(
    r"(can.t|failed to) allocate|bad_?.?alloc|(out of|not enough) memory", re.IGNORECASE
)
"""Words of an error that is about the machine and not about the module."""


@dataclass(frozen=True)
class Inference:
    """A network for inference alone, with what computes it."""

    module: nn.Module
    """Network from normalised images to logits."""
    engine: str
    """``ONNX Runtime`` or ``PyTorch`` with its version. The two round differently in the last bits."""
    reason: str | None = None
    """The reason for PyTorch on a CPU, where ONNX Runtime is faster."""

    def __str__(self) -> str:
        return self.engine + (f" ({self.reason})" if self.reason else "")


class InRuntime(nn.Module):
    """A network in ONNX Runtime, on the CPU, without parameters.

    Args:
        file: content of its ONNX file, with the input `images` and the output `logits`.
    """

    def __init__(self, file: bytes) -> None:
        super().__init__()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.threads = torch.get_num_threads()
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        images = np.ascontiguousarray(x.detach().numpy())
        [logits] = parallel.answers(self._ask, [images], self.threads)
        return torch.from_numpy(logits)

    def _ask(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self.session.run(["logits"], {"images": images})[0])


@torch.no_grad()
def in_runtime(module: nn.Module, size: int) -> Inference:
    """Return the same network in ONNX Runtime, or the module itself if that is impossible.

    The module is returned if it is on a GPU, if it runs in ONNX Runtime already, if PyTorch cannot export it,
    or if the exported file gives other logits. All of this depends on the module alone: nothing is written to
    a disk, and a lack of memory is an error.

    Args:
        module: trained network from normalised images to logits.
        size: side of the images in pixels.
    """
    pytorch = f"PyTorch {torch.__version__}"
    runtime = f"ONNX Runtime {ort.__version__}"
    first = next(module.parameters(), None)
    if first is None:
        black_box = any(isinstance(part, InRuntime | OnnxClassifier) for part in module.modules())
        return Inference(module, runtime if black_box else pytorch)
    if first.device.type != "cpu":
        return Inference(module, f"{pytorch} on {first.device.type}")
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = module.eval()(images)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # PyTorch calls this exporter legacy; the new one needs onnxscript.
            torch.onnx.export(
                module,
                (images[:2],),
                buffer,  # pyright: ignore[reportArgumentType] - this exporter takes a buffer, too
                dynamo=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            )
        copy = InRuntime(buffer.getvalue())
        actual = copy(images)
    except (*UNTRACEABLE, *UNSUPPORTED) as error:
        if OUT_OF_MEMORY.search(str(error)):
            raise
        line = next(iter(str(error).strip().splitlines()), "")
        return Inference(module, pytorch, f"it cannot be exported: {type(error).__name__} {line}"[:300])
    difference = float((actual - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        return Inference(module, pytorch, f"its logits differ by {difference:.1g} of the greatest one")
    return Inference(copy, runtime)
