"""LiteRT's file format: tensors and operators as they are collected, and the bytes that they become.

The schema is the one that `ai_edge_litert` carries. Versions of operators, and the first TensorFlow Lite that
knows each, are those of its own converter (tflite/tools/versioning in github.com/google-ai-edge/LiteRT).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated

schema: Any = schema_py_generated
"""The classes of the schema, whose annotations allow lists alone; arrays are stored without a loop."""

SCHEMA_VERSION = 3
"""Version of the file format."""
IDENTIFIER = b"TFL3"
"""What every file has in its bytes 4 to 7."""
SIGNATURE = "serving_default"
"""Name under which applications find inputs and outputs by name."""
INT8_ZERO_POINT = -128
"""Integer that stands for 0 in an activation that follows a ReLU."""
ALIGNMENT = 16
"""Multiple of bytes at which constants begin, as the schema demands and as processors read them fastest."""
VERSIONS: dict[tuple[str, str], tuple[int, str]] = {
    ("CONV_2D", "float32"): (1, "1.5.0"),
    ("CONV_2D", "int8"): (3, "1.14.0"),
    ("DEPTHWISE_CONV_2D", "float32"): (1, "1.5.0"),
    ("DEPTHWISE_CONV_2D", "int8"): (3, "1.14.0"),
    ("DEQUANTIZE", "float16"): (3, "1.15.0"),
    ("DEQUANTIZE", "uint8"): (1, "1.13.1"),
    ("DEQUANTIZE", "int8"): (2, "1.14.0"),
    ("DEQUANTIZE", "int8 by channel"): (5, "2.7.0"),
    ("FULLY_CONNECTED", "float32"): (1, "1.5.0"),
    ("MEAN", "float32"): (1, "1.6.0"),
    ("MEAN", "int8"): (2, "1.14.0"),
    ("MUL", "float32"): (1, "1.5.0"),
    ("PAD", "float32"): (1, "1.5.0"),
    ("PAD", "int8"): (2, "1.14.0"),
    ("QUANTIZE", "float32"): (1, "1.14.0"),
    ("QUANTIZE", "uint8"): (1, "1.14.0"),
    ("SUB", "float32"): (1, "1.6.0"),
}
"""Operator and the kind of number that it computes with, to the operator's version and the first release that
has it."""
OPTIONS: dict[str, str] = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "SUB": "SubOptions",
}
"""Operator to the table of its settings; the others have none."""
KINDS = {
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
}


@dataclass(frozen=True)
class Grid:
    """What a tensor's integers stand for: ``scale * (integer - zero_point)``."""

    scale: float | np.ndarray
    """One number, or one per channel."""
    zero_point: int = 0
    axis: int = 0
    """Axis of the channels, where there is one scale for each."""

    @property
    def is_by_channel(self) -> bool:
        return isinstance(self.scale, np.ndarray)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, by its number."""

    index: int
    shape: tuple[int, ...]
    kind: np.dtype
    grid: Grid | None = None


@dataclass
class Graph:
    """A graph while it is written."""

    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: dict[tuple[str, int], str] = field(default_factory=dict)
    """Operator and version, in the order of their first use, to the first release that has them."""
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    """Contents of the constants; the first is empty and stands for none."""

    def value(
        self, name: str, shape: Sequence[int], kind: Any = np.float32, grid: Grid | None = None
    ) -> Value:
        """Add a tensor that is computed."""
        return self._tensor(name, shape, np.dtype(kind), grid, 0)

    def constant(self, name: str, values: np.ndarray, grid: Grid | None = None) -> Value:
        """Add a tensor with its content."""
        content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        return self._tensor(name, values.shape, values.dtype, grid, self.buffer(content))

    def buffer(self, content: bytes) -> int:
        """Add bytes; returns the number of their buffer."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(content, np.uint8)
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def add(self, name: str, inputs: Sequence[Value], output: Value, **options: Any) -> Value:
        """Add an operator that writes ``output``.

        The options are named as in the schema; the values of its enumerations are given by their names.
        """
        operator = schema.OperatorT()
        computes = inputs[1] if name.endswith("CONV_2D") else inputs[0]
        by_channel = name == "DEQUANTIZE" and computes.grid is not None and computes.grid.is_by_channel
        version, release = VERSIONS[name, f"{computes.kind.name}{' by channel' * by_channel}"]
        self.codes.setdefault((name, version), release)
        operator.opcodeIndex = list(self.codes).index((name, version))
        operator.inputs = np.array([value.index for value in inputs], np.int32)
        operator.outputs = np.array([output.index], np.int32)
        if name in OPTIONS:
            table = getattr(schema, f"{OPTIONS[name]}T")()
            for key, setting in options.items():
                vars(table)[key] = _enumerated(key, setting)
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, OPTIONS[name])
            operator.builtinOptions = table
        self.operators.append(operator)
        return output

    def _tensor(
        self, name: str, shape: Sequence[int], kind: np.dtype, grid: Grid | None, buffer: int
    ) -> Value:
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = np.array(shape, np.int32)
        tensor.type = KINDS[kind]
        tensor.buffer = buffer
        tensor.hasRank = True
        if grid is not None:
            tensor.quantization = schema.QuantizationParametersT()
            scales = np.array(grid.scale, np.float32).reshape(-1)
            tensor.quantization.scale = scales
            # One for each scale: older releases refuse a single one.
            tensor.quantization.zeroPoint = np.full(len(scales), grid.zero_point, np.int64)
            tensor.quantization.quantizedDimension = grid.axis
        self.tensors.append(tensor)
        return Value(len(self.tensors) - 1, tuple(shape), kind, grid)

    @property
    def release(self) -> str:
        """The first release of TensorFlow Lite that runs the graph."""
        return max(self.codes.values(), key=lambda version: [int(part) for part in version.split(".")])


def serialize(
    graph: Graph,
    inputs: Mapping[str, Value],
    outputs: Mapping[str, Value],
    description: str,
    metadata: Mapping[str, bytes],
) -> bytes:
    """The file of a graph.

    Args:
        graph: the graph, whose operators are in the order in which they run.
        inputs: name of each input, and its tensor.
        outputs: the same of each output.
        description: one line for the reader.
        metadata: name and content of what the file carries beside the graph.
    """
    subgraph = schema.SubGraphT()
    subgraph.name, subgraph.tensors, subgraph.operators = "main", graph.tensors, graph.operators
    subgraph.inputs, subgraph.outputs = (
        np.array([value.index for value in values.values()], np.int32) for values in (inputs, outputs)
    )
    model = schema.ModelT()
    model.version, model.description = SCHEMA_VERSION, description
    model.subgraphs, model.signatureDefs = [subgraph], [_signature(inputs, outputs)]
    model.operatorCodes = [_operator_code(name, version) for name, version in graph.codes]
    model.metadata = []
    for name, content in metadata.items():
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, graph.buffer(content)
        model.metadata.append(entry)
    model.buffers = graph.buffers
    return _packed(model)


def expose(file: bytes, names: Sequence[str]) -> bytes:
    """The same file with inner tensors as further outputs, in the order of the names.

    What XNNPACK computes stays within it unless it is an output: the interpreter's own switch that keeps all
    tensors keeps only those of the kernels outside of it.
    """
    model = schema.ModelT.InitFromPackedBuf(file, 0)
    [subgraph] = model.subgraphs
    indices = {tensor.name.decode(): index for index, tensor in enumerate(subgraph.tensors)}
    subgraph.outputs = np.array([*subgraph.outputs, *(indices[name] for name in names)], np.int32)
    return _packed(model)


def _packed(model: Any) -> bytes:
    builder = _SharingBuilder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    """A builder that stores equal arrays once and aligns bytes.

    The zero points of the weights, eight bytes per channel, are all zeros: stored anew for each tensor they
    would be 6 % of an int8 file.
    """

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.stored: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        key = x.dtype.str, x.tobytes()
        if key not in self.stored:
            if x.dtype == np.uint8:
                self.Prep(ALIGNMENT, x.size)
            self.stored[key] = super().CreateNumpyVector(x)
        return self.stored[key]


def _operator_code(name: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(
        code.builtinCode, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES
    )
    code.version = version
    return code


def _signature(inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE
    signature.inputs, signature.outputs = _named(inputs), _named(outputs)
    return signature


def _named(values: Mapping[str, Value]) -> list[Any]:
    entries = []
    for name, value in values.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, value.index
        entries.append(entry)
    return entries


def _enumerated(key: str, setting: Any) -> Any:
    if key == "padding":
        return getattr(schema.Padding, setting)
    return getattr(schema.ActivationFunctionType, setting) if key.endswith("Function") else setting
