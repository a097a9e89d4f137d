"""The smallest file that the pipeline could ship: a linear classifier of an image's mean colour."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto, helper, numpy_helper

SIZE = 8
LABELS = ("red", "green", "blue")
"""With the default weights the class is the strongest channel."""


def write(
    path: Path,
    *,
    labels: Sequence[str] = LABELS,
    weights: Float32[np.ndarray, "3 classes"] | None = None,
    size: int = SIZE,
    metadata: Mapping[str, str] | None = None,
    note: str = "",
) -> Path:
    """Write a classifier; ``metadata`` replaces what the file says about itself."""
    matrix = np.eye(3, len(labels), dtype=np.float32) / 16 if weights is None else weights
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["colour"], keepdims=0),
            helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(labels)])],
        [
            numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
            numpy_helper.from_array(matrix, "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    contract = {"size": size, "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear", "crop": 1.0}
    # A reader must get along with keys that it does not know.
    default = {
        "labels": json.dumps(labels),
        "input": json.dumps({**contract, "layout": "NHWC"}),
        "note": note,
    }
    helper.set_model_props(model, dict(default if metadata is None else metadata))
    onnx.save(model, path)
    return path
