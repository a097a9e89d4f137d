"""Files for phones: a graph of fixed shapes, and the same in the format of small builds of ONNX Runtime.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
"""

import contextlib
import io
import logging
import shutil
from pathlib import Path

import onnx
from onnxruntime.tools import convert_onnx_models_to_ort, onnx_model_utils
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle

from pipeline import resources
from pipeline.onnx.weight import number_format

BATCH = "batch"
"""Name of the dimension that is fixed."""
PLATFORM = "arm"
"""Processor whose layouts of weights are allowed; those of x86 would not run on a phone."""


def convert(file: Path, folder: Path) -> list[Path]:
    """Write a variant for batches of one image, with all metadata, twice.

    ``NAME-batch1.onnx`` is the same graph with fixed shapes, which NNAPI and CoreML need to take it as a
    whole. ``NAME-batch1.ort`` is optimised for the CPU of a phone; the ``.config`` beside it tells a reduced
    build of the runtime which operators and types it must contain. A variant in float16 has the former alone:
    on a CPU without float16, the runtime would store float32 in the latter.

    Args:
        file: the ONNX file of a variant.
        folder: an existing folder.

    Returns:
        The files that were written.
    """
    model = onnx.load(file)
    onnx_model_utils.make_dim_param_fixed(model.graph, BATCH, 1)
    onnx_model_utils.fix_output_shapes(model)
    fixed = folder / f"{file.stem}-batch1.onnx"
    onnx.save(model, fixed)
    if number_format(fixed) == "float16":
        return [fixed]
    with resources.scratch() as scratch:
        logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints each step
            convert_onnx_models_to_ort.convert_onnx_models_to_ort(
                fixed,
                output_dir=scratch,
                # The other style keeps the graph for NNAPI, and fails on weights in integers.
                optimization_styles=[OptimizationStyle.Fixed],
                target_platform=PLATFORM,
                enable_type_reduction=True,
            )
        return [fixed, *(Path(shutil.move(one, folder / one.name)) for one in sorted(scratch.iterdir()))]
