"""The size of an ONNX file, in memory and compressed for delivery, and the format of its numbers."""

import gzip
import math
from collections import Counter
from pathlib import Path

import onnx


def weigh(path: Path) -> dict[str, int]:
    """The bytes of an ONNX file in memory and on the way to a user.

    Returns:
        ``weights_bytes``, the size of the tensors that the file brings into memory, and
        ``compressed_bytes``, the size of the file compressed by gzip at level 9, as a package or a web
        server would send it.
    """
    tensors = onnx.load(path).graph.initializer
    width = onnx.helper.tensor_dtype_to_np_dtype
    return {
        "weights_bytes": sum(math.prod(t.dims) * width(t.data_type).itemsize for t in tensors),
        "compressed_bytes": len(gzip.compress(path.read_bytes(), 9, mtime=0)),
    }


def number_format(path: Path) -> str:
    """The format of most weights of an ONNX file: ``float32``, ``float16``, ``int8`` or ``int4``."""
    counts = Counter[int]()
    for tensor in onnx.load(path).graph.initializer:
        counts[tensor.data_type] += math.prod(tensor.dims)
    [(kind, _)] = counts.most_common(1)
    return onnx.helper.tensor_dtype_to_np_dtype(kind).name
