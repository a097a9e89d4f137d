"""A student as an ONNX graph, written straight from its modules, in the form that ONNX Runtime runs fastest.

Writing the graph here, instead of exporting and rewriting it, keeps the scales, integers and names exactly
those of the model, and leaves no source paths in the file.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.errors import DistilleryError
from pipeline.models.layers import CLIPPING, IMAGES, Network
from pipeline.models.storage import Quantization
from pipeline.onnx import layout
from pipeline.quantization.grid import (
    INT4_LIMIT,
    PIXEL_SCALE,
    int8_activations,
    integer_bias,
    integer_weight,
)
from pipeline.quantization.simulator import check
from teachers.contract import InputContract

OPSET = 17
"""Version of the operators: old enough for every runtime in use, ONNX Runtime Web among them, and new
enough for all operators that are needed."""
IR_VERSION = 8
"""Version of the file format that belongs to this operator set."""
INT4_OPSET, INT4_IR_VERSION = 21, 10
"""The first versions with integers of four bits, for files that have such weights."""
LOGITS = "logits"
"""Name of the output."""
CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv")
"""Kinds of nodes that ONNX Runtime makes of a convolution."""


class ExportError(DistilleryError):
    """A model cannot be written, or its file fails a check; the message names what is allowed."""


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph: float, or uint8 with its scale."""

    name: str
    scale: float | None = None
    zero_point: int = 0
    """Integer that stands for 0; other than 0 only for images, since all else follows a ReLU."""
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Zeros that the next convolution must put around it: top, left, bottom, right."""


@dataclass
class _Graph:
    """The ONNX graph while it is written."""

    network: Network
    quantization: Quantization | None
    contract: InputContract
    half: bool = False
    """Whether the layers compute in float16."""
    paired: int = 0
    """Number of channels of each of the two columns that an int8 stem computes at once; 0 if it computes
    one."""
    names: dict[str, str] = field(default_factory=dict)
    """Path of each module that belongs to a layer to the layer's name."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def constant(self, name: str, values: Tensor | np.ndarray) -> str:
        array = values.numpy() if isinstance(values, Tensor) else values
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def number(self, name: str, values: Tensor | np.ndarray) -> str:
        """A constant in the floating-point format of the layers."""
        array = values.numpy() if isinstance(values, Tensor) else values
        return self.constant(name, array.astype(np.float16) if self.half else array)

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def scale_of(self, activation: str) -> float | None:
        return self.quantization.activation_scales.get(activation) if self.quantization else None

    def quantize(self, value: _Value, scale: float) -> _Value:
        inputs = [value.name, *self._grid(value.name, scale)]
        return _Value(self.add("QuantizeLinear", inputs, f"{value.name}.integers"), scale)

    def quantize_pairs(self, value: _Value, scale: float) -> _Value:
        """The same where the channels hold two columns, which are then set side by side.

        Channels are last in ONNX Runtime's int8 convolutions, so both transpositions vanish there and no byte
        is moved.
        """
        inputs = [value.name, *self._grid(value.name, scale)]
        pairs = self.add("QuantizeLinear", inputs, f"{value.name}.pairs")
        rows = self.add("Transpose", [pairs], f"{value.name}.rows", perm=(0, 2, 3, 1))
        shape = self.constant(f"{value.name}.shape", np.array([0, 0, -1, self.paired]))
        columns = self.add("Reshape", [rows, shape], f"{value.name}.columns")
        return _Value(self.add("Transpose", [columns], f"{value.name}.integers", perm=(0, 3, 1, 2)), scale)

    def real(self, value: _Value, reader: str) -> str:
        """The tensor in float. Runtimes fuse dequantisations, so every reader has one of its own."""
        if value.scale is None:
            return value.name
        grid = self._grid(_real_name(value), value.scale, value.zero_point)
        return self.add("DequantizeLinear", [value.name, *grid], f"{reader}.input")

    def _grid(self, name: str, scale: float, zero_point: int = 0) -> tuple[str, str]:
        return (
            self.constant(f"{name}.scale", np.array(scale, np.float32)),
            self.constant(f"{name}.zero_point", np.array(zero_point, np.uint8)),
        )

    def inputs(self, layer: str, part: nn.Conv2d | nn.Linear, source: _Value) -> list[str]:
        """The inputs of a layer: an activation, a weight and a bias.

        In int8 the bias has the product of the other two scales, which is left to the runtime: it multiplies
        constants once, when it loads the file, and a channel takes four bytes less. Zero points of 0 are
        omitted too, except for a linear layer's weight, which ONNX Runtime does not make int8 without one.
        """
        bias = torch.zeros(len(part.weight)) if part.bias is None else part.bias.detach()
        weight, read = part.weight.detach(), self.real(source, layer)
        if self.quantization is None or layer not in self.quantization.weight_scales:
            if self.network.layers[layer].reads == IMAGES and not self.half:
                # Scaling the weights saves one pass over the pixels.
                weight = weight / (255 * torch.tensor(self.contract.std)).view(1, 3, 1, 1)
            return [read, self.number(f"{layer}.weight", weight), self.number(f"{layer}.bias", bias)]
        assert source.scale is not None
        step = self.quantization.weight_scales[layer]
        whole_weight = integer_weight(weight, step, self.quantization.weight_limit).to(torch.int8)
        whole_bias = integer_bias(bias, source.scale, step).to(torch.int32)
        scale = self.constant(f"{layer}.weight.scale", step.float())
        product = self.add("Mul", [f"{_real_name(source)}.scale", scale], f"{layer}.bias.scale")
        zero_points = []
        if isinstance(part, nn.Linear):
            zeros = torch.zeros(len(weight), dtype=torch.int8)
            zero_points = [self.constant(f"{layer}.weight.zero_point", zeros)]
        return [
            read,
            self._integers(f"{layer}.weight", self._weight(layer, whole_weight), scale, *zero_points),
            self._integers(f"{layer}.bias", self.constant(f"{layer}.bias.integers", whole_bias), product),
        ]

    def _weight(self, layer: str, values: Tensor) -> str:
        """A layer's integer weights.

        Those of four bits lie two to a byte in the file. ONNX Runtime widens them once, when it loads the
        file, and computes with the kernels of eight bits.
        """
        assert self.quantization is not None
        if self.quantization.weight_limit > INT4_LIMIT:
            return self.constant(f"{layer}.weight.integers", values)
        packed = self.constant(f"{layer}.weight.packed", values.numpy().astype(ml_dtypes.int4))
        return self.add("Cast", [packed], f"{layer}.weight.bytes", to=TensorProto.INT8)

    def _integers(self, name: str, integers: str, *grid: str) -> str:
        return self.add("DequantizeLinear", [integers, *grid], name, axis=0)


def _real_name(value: _Value) -> str:
    """Name of an activation, whether or not it is given as integers; its scale is named after it."""
    return value.name.removesuffix(".integers")


def _write_convolution(graph: _Graph, path: str, part: nn.Module, source: _Value) -> _Value:
    assert isinstance(part, nn.Conv2d)
    if isinstance(part.padding, str) or part.padding_mode != "zeros":
        raise ExportError(f"{path} pads {part.padding!r} by {part.padding_mode}; allowed are counts of zeros")
    layer = graph.names[path]
    attributes = {
        "kernel_shape": part.kernel_size,
        "strides": part.stride,
        "pads": [there + own for there, own in zip(source.padding, part.padding * 2, strict=True)],
        "dilations": part.dilation,
        "group": part.groups,
    }
    return _Value(graph.add("Conv", graph.inputs(layer, part, source), f"{layer}.sums", **attributes))


def _write_linear(graph: _Graph, path: str, part: nn.Module, source: _Value) -> _Value:
    assert isinstance(part, nn.Linear)
    layer = graph.names[path]
    return _Value(graph.add("Gemm", graph.inputs(layer, part, source), f"{layer}.sums", transB=1))


def _write_activation(graph: _Graph, path: str, part: nn.Module, source: _Value) -> _Value:
    layer = graph.names[path]
    scale = graph.scale_of(layer)
    if scale is not None:  # Saturation at 0 and 255 is the activation, as `check` ensures.
        paired = graph.paired and graph.network.layers[layer].reads == IMAGES
        return graph.quantize_pairs(source, scale) if paired else graph.quantize(source, scale)
    if isinstance(part, nn.ReLU):
        return _Value(graph.add("Relu", [source.name], layer))
    bounds = [
        graph.number(f"{layer}.least", np.array(0, np.float32)),
        graph.number(f"{layer}.greatest", np.array(CLIPPING[type(part)], np.float32)),
    ]
    return _Value(graph.add("Clip", [source.name, *bounds], layer))


def _write_pool(graph: _Graph, path: str, part: nn.Module, source: _Value) -> _Value:
    assert isinstance(part, nn.AdaptiveAvgPool2d)
    if part.output_size not in (1, (1, 1)):
        raise ExportError(f"{path} pools to {part.output_size}; only global pooling to 1 is written")
    pooled = _Value(graph.add("GlobalAveragePool", [graph.real(source, path)], path))
    scale = graph.scale_of(path)
    return pooled if scale is None else graph.quantize(pooled, scale)


def _write_flatten(graph: _Graph, path: str, part: nn.Module, source: _Value) -> _Value:
    assert isinstance(part, nn.Flatten)
    if (part.start_dim, part.end_dim) != (1, -1):
        raise ExportError(f"{path} flattens {part.start_dim} to {part.end_dim}; only 1 to -1 is written")
    return _Value(graph.add("Flatten", [source.name], path, axis=1), source.scale)


def _write_padding(graph: _Graph, path: str, part: nn.Module, source: _Value) -> _Value:  # noqa: ARG001 - one signature for all writers
    assert isinstance(part, nn.ZeroPad2d)
    left, right, top, bottom = part.padding
    return replace(source, padding=(top, left, bottom, right))


def _write_nothing(graph: _Graph, path: str, part: nn.Module, source: _Value) -> _Value:  # noqa: ARG001 - one signature for all writers
    return source


WRITERS: dict[type[nn.Module], Callable[[_Graph, str, nn.Module, _Value], _Value]] = {
    nn.Conv2d: _write_convolution,
    nn.Linear: _write_linear,
    nn.ReLU: _write_activation,
    nn.ReLU6: _write_activation,
    nn.ZeroPad2d: _write_padding,
    nn.AdaptiveAvgPool2d: _write_pool,
    nn.Flatten: _write_flatten,
    nn.Dropout: _write_nothing,
}
"""Writer of each kind of module; a student with another kind needs one more line here."""


def _write_front(graph: _Graph) -> _Value:
    """From an image library's bytes to the values that the first layer reads; its weights contain 1 / std."""
    pixels = IMAGES
    if graph.paired:
        shape = graph.constant(f"{IMAGES}.shape", np.array([0, 0, -1, layout.QUAD * 3]))
        pixels = graph.add("Reshape", [IMAGES, shape], f"{IMAGES}.quads")
    planes = graph.add("Transpose", [pixels], f"{IMAGES}.planes", perm=(0, 3, 1, 2))
    if graph.scale_of(IMAGES) is not None:
        assert graph.contract.zero_point is not None
        return _Value(planes, PIXEL_SCALE, graph.contract.zero_point)
    pixels = graph.add("Cast", [planes], f"{IMAGES}.float", to=TensorProto.FLOAT)
    if any(graph.contract.mean):
        mean = graph.constant(f"{IMAGES}.mean", _by_channel(graph.contract.mean) * 255)
        pixels = graph.add("Sub", [pixels, mean], f"{IMAGES}.centred")
    if graph.half:
        # Divided by 255, some weights of the first layer would be below 6e-5, where float16 loses bits.
        scale = graph.constant(f"{IMAGES}.scale", 1 / (255 * _by_channel(graph.contract.std)))
        pixels = graph.add("Mul", [pixels, scale], f"{IMAGES}.normalised")
        pixels = graph.add("Cast", [pixels], f"{IMAGES}.half", to=TensorProto.FLOAT16)
    return _Value(pixels)


def _by_channel(values: Sequence[float]) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 3, 1, 1)


def check_float_layers(network: Network, contract: InputContract, float_layers: Collection[str]) -> None:
    """Check whether an int8 file can have these layers in float, before anything is trained for it.

    Raises:
        ExportError: a layer does not exist or lies between int8 ones, or the stem is in int8 and the contract
            has no zero point.
    """
    try:
        activations = int8_activations(network, float_layers)
    except ValueError as error:
        raise ExportError(str(error)) from error
    if IMAGES in activations and contract.zero_point is None:
        raise ExportError(
            f"the input has mean {contract.mean} and std {contract.std}; a stem in int8 reads bytes less a "
            "zero point: rewrite it by quantization.stem, or name the stem in float_layers"
        )
    for layer in float_layers:
        if {layer, network.layers[layer].reads} <= set(activations):
            raise ExportError(
                f"float layer {layer} lies between int8 ones and ONNX Runtime makes it int8 by itself; "
                "float layers must lead without a gap from the input on"
            )


def write(
    network: Network,
    quantization: Quantization | None,
    contract: InputContract,
    classes: int,
    name: str,
    *,
    half: bool = False,
) -> onnx.ModelProto:
    """The graph of a network without batch norms, as ``export`` ships it, without metadata.

    With ``half``, a float network computes in float16, from the normalised pixels to the logits.

    Raises:
        ExportError: see ``export``.
    """
    paired = 0
    if quantization is not None:
        try:
            check(network, quantization)
        except ValueError as error:
            raise ExportError(str(error)) from error
        check_float_layers(network, contract, quantization.float_layers)
        network, quantization = layout.fill(network, quantization)
        network, quantization, paired = layout.pair_columns(network, quantization, contract.size)
    names = {path: layer.name for layer in network.layers.values() for path in layer.steps}
    graph = _Graph(network, quantization, contract, half, paired, names)
    value = _write_front(graph)
    for path in network.steps:
        part = network.module.get_submodule(path)
        if type(part) not in WRITERS:
            raise ExportError(f"{path} is a {type(part).__name__}; {list(WRITERS)} can be written")
        value = WRITERS[type(part)](graph, path, part, value)
    if half:
        graph.add("Cast", [value.name], LOGITS, to=TensorProto.FLOAT)
    graph.nodes[-1].output[0] = graph.nodes[-1].name = LOGITS
    batch, size = "batch", contract.size
    proto = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [batch, size, size, 3])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [batch, classes])],
        list(graph.constants.values()),
    )
    has_int4 = any(tensor.data_type == TensorProto.INT4 for tensor in proto.initializer)
    opset, ir_version = (INT4_OPSET, INT4_IR_VERSION) if has_int4 else (OPSET, IR_VERSION)
    return helper.make_model(
        proto,
        producer_name="distillery",
        ir_version=ir_version,
        opset_imports=[helper.make_opsetid("", opset)],
    )
