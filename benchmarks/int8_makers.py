"""Int8 files by other tools, each as its own documentation has it; `benchmarks.int8_peers` measures them.

    PYTHON benchmarks/int8_makers.py NAME FP32.onnx CALIBRATION.npy INT8.onnx

It takes numpy, onnx and the one tool, so that PYTHON may be an environment of that tool's own. CALIBRATION
holds the images as FP32 takes them: uint8 [images, height, width, 3]. INT8.json, beside the file, says the
tool's version and how long it took. A tool that is not installed, or fails, ends the run; the last line is
the reason.
"""

import argparse
import importlib.metadata
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

INPUT = "images"
ROUNDING = 10_000
"""Iterations of AdaRound a layer, as AIMET recommends them for 8 bits."""
ROUNDING_BATCH = 8
"""Images of one of them, at thousands of positions; an iteration costs in proportion."""


@dataclass(frozen=True)
class Task:
    """What every tool is given."""

    parent: Path
    images: np.ndarray
    target: Path
    rounding: int = ROUNDING

    def feeds(self, batch: int = 1) -> list[dict[str, np.ndarray]]:
        """The images as inputs of the file, ``batch`` at a time."""
        return [{INPUT: self.images[first : first + batch]} for first in range(0, len(self.images), batch)]


def _onnxruntime(task: Task, **options: Any) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[dict[str, np.ndarray]] = iter(task.feeds())

        def get_next(self) -> dict[str, np.ndarray]:
            return next(self.left, None)  # pyright: ignore[reportReturnType] - what ends its data

    prepared = task.target.with_suffix(".prepared.onnx")
    quant_pre_process(task.parent, prepared)
    quantization.quantize_static(prepared, task.target, Reader(), **options)
    prepared.unlink()


def onnxruntime(task: Task) -> None:
    """quantize_static, its defaults: one step a tensor, ranges from least to greatest."""
    _onnxruntime(task)


def onnxruntime_per_channel(task: Task) -> None:
    """quantize_static, one step a channel, weights of 7 bits."""
    _onnxruntime(task, per_channel=True, reduce_range=True)


def onnxruntime_percentile(task: Task) -> None:
    """quantize_static, one step a channel, ranges by percentile."""
    from onnxruntime.quantization import CalibrationMethod

    _onnxruntime(task, per_channel=True, calibrate_method=CalibrationMethod.Percentile)


def _nncf(task: Task, **options: Any) -> None:
    import nncf  # pyright: ignore[reportMissingImports]

    images = nncf.Dataset(task.feeds())
    preset = nncf.QuantizationPreset.MIXED
    made = nncf.quantize(
        onnx.load(task.parent), images, preset=preset, subset_size=len(task.images), **options
    )
    onnx.save(made, task.target)


def nncf_uncorrected(task: Task) -> None:
    """MIXED preset, no bias correction."""
    from nncf import AdvancedQuantizationParameters  # pyright: ignore[reportMissingImports]

    _nncf(task, advanced_parameters=AdvancedQuantizationParameters(disable_bias_correction=True))


def nncf_fast(task: Task) -> None:
    """MIXED preset, fast bias correction: the default."""
    _nncf(task)


def nncf_accurate(task: Task) -> None:
    """MIXED preset, the slower and more accurate bias correction."""
    _nncf(task, fast_bias_correction=False)


def nncf_per_tensor(task: Task) -> None:
    """MIXED preset, fast bias correction, one step for all channels of an activation, as kernels want it."""
    from nncf import AdvancedQuantizationParameters  # pyright: ignore[reportMissingImports]
    from nncf.quantization.advanced_parameters import (  # pyright: ignore[reportMissingImports]
        QuantizationParameters,
    )

    activations = QuantizationParameters(per_channel=False)
    _nncf(
        task, advanced_parameters=AdvancedQuantizationParameters(activations_quantization_params=activations)
    )


def aimet(task: Task) -> None:
    """Cross-layer equalisation, then AdaRound."""
    import aimet_onnx  # pyright: ignore[reportMissingImports]
    from aimet_onnx.cross_layer_equalization import equalize_model  # pyright: ignore[reportMissingImports]

    model = onnx.load(task.parent)
    equalize_model(model)
    simulated = aimet_onnx.QuantizationSimModel(model)
    feeds = task.feeds(ROUNDING_BATCH)
    aimet_onnx.apply_adaround(simulated, feeds, num_iterations=task.rounding)
    simulated.compute_encodings(feeds)
    onnx.save(simulated.to_onnx_qdq(prequantize_constants=True), task.target)


def modelopt(task: Task) -> None:
    """int8 by its defaults (ranges by entropy), but float32 where it would put float16."""
    from modelopt.onnx.quantization import quantize  # pyright: ignore[reportMissingImports]

    quantize(
        str(task.parent),
        calibration_data={INPUT: task.images},
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(task.target),
    )


@dataclass(frozen=True)
class Maker:
    """One way to make a file."""

    tool: str
    """What ``--python`` calls it."""
    package: str
    make: Callable[[Task], None]
    """Its docstring says how."""


MAKERS = {
    "onnxruntime": Maker("onnxruntime", "onnxruntime", onnxruntime),
    "onnxruntime-per-channel": Maker("onnxruntime", "onnxruntime", onnxruntime_per_channel),
    "onnxruntime-percentile": Maker("onnxruntime", "onnxruntime", onnxruntime_percentile),
    "nncf": Maker("nncf", "nncf", nncf_uncorrected),
    "nncf-fast": Maker("nncf", "nncf", nncf_fast),
    "nncf-accurate": Maker("nncf", "nncf", nncf_accurate),
    "nncf-per-tensor": Maker("nncf", "nncf", nncf_per_tensor),
    "aimet": Maker("aimet", "aimet-onnx", aimet),
    "modelopt": Maker("modelopt", "nvidia-modelopt", modelopt),
}


def main() -> None:
    """Make one file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=MAKERS)
    parser.add_argument("parent", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--rounding", type=int, default=ROUNDING)
    arguments = parser.parse_args()
    maker = MAKERS[arguments.name]
    try:
        version = importlib.metadata.version(maker.package)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{maker.package} is not installed in {sys.prefix}")
    images = np.load(arguments.calibration)
    began = time.perf_counter()
    try:
        maker.make(Task(arguments.parent, images, arguments.target, arguments.rounding))
    except Exception as error:  # whatever a peer dies of is told in one line
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    facts = {"version": version, "seconds": round(time.perf_counter() - began, 1)}
    arguments.target.with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
