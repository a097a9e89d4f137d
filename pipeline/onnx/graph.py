"""A student as an ONNX graph, written straight from its modules, in the form that ONNX Runtime runs fastest.

Writing the graph here rather than tracing and rewriting it keeps the scales, integers and names exactly
those of the model, and leaves no source paths in the file.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from pipeline.errors import DistilleryError
from pipeline.models.storage import Affine, Quantization
from pipeline.onnx import layout
from pipeline.quantization.simulator import (
    CLIPPING,
    IMAGES,
    RAW_PIXELS,
    check,
    int8_activations,
    integer_bias,
    integer_weight,
    layer_inputs,
)
from teachers.contract import InputContract

OPSET = 17
"""Old enough for every runtime in use, ONNX Runtime Web among them; new enough for all that is needed."""
IR_VERSION = 8
LOGITS = "logits"
CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv")
"""Kinds of node that ONNX Runtime makes of a convolution."""


class ExportError(DistilleryError):
    """A model cannot be written, or its file fails a check; the message names what is allowed."""


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph: float, or uint8 with its affine."""

    name: str
    affine: Affine | None = None
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Zeros that the next convolution still has to put around it: top, left, bottom, right."""


@dataclass
class _Graph:
    """The ONNX graph while it is written."""

    quantization: Quantization | None
    reads: Mapping[str, str]
    """Layer to the activation that it reads."""
    contract: InputContract
    paired: int = 0
    """Channels of each of the two columns that an int8 stem computes at once; 0 where it computes one."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def constant(self, name: str, values: Tensor | np.ndarray) -> str:
        array = values.numpy() if isinstance(values, Tensor) else values
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def scale_of(self, activation: str) -> Affine | None:
        return self.quantization.activations.get(activation) if self.quantization else None

    def quantize(self, value: _Value, affine: Affine) -> _Value:
        inputs = [value.name, *self._grid(value.name, affine)]
        return _Value(self.add("QuantizeLinear", inputs, f"{value.name}.integers"), affine)

    def quantize_pairs(self, value: _Value, affine: Affine) -> _Value:
        """The same where two columns stand in the channels, which are then set side by side.

        Channels are last in ONNX Runtime's int8 convolutions, so both transpositions vanish there and no byte
        is moved.
        """
        inputs = [value.name, *self._grid(value.name, affine)]
        pairs = self.add("QuantizeLinear", inputs, f"{value.name}.pairs")
        rows = self.add("Transpose", [pairs], f"{value.name}.rows", perm=(0, 2, 3, 1))
        shape = self.constant(f"{value.name}.shape", np.array([0, 0, -1, self.paired]))
        columns = self.add("Reshape", [rows, shape], f"{value.name}.columns")
        return _Value(self.add("Transpose", [columns], f"{value.name}.integers", perm=(0, 3, 1, 2)), affine)

    def real(self, value: _Value, reader: str) -> str:
        """The tensor in float; every reader has a dequantisation of its own, which is what runtimes fuse."""
        if value.affine is None:
            return value.name
        grid = self._grid(_real_name(value), value.affine)
        return self.add("DequantizeLinear", [value.name, *grid], f"{reader}.input")

    def _grid(self, name: str, affine: Affine) -> tuple[str, str]:
        return (
            self.constant(f"{name}.scale", np.array(affine.scale, np.float32)),
            self.constant(f"{name}.zero_point", np.array(affine.zero_point, np.uint8)),
        )

    def inputs(self, layer: str, part: nn.Conv2d | nn.Linear, source: _Value) -> list[str]:
        """What a layer reads: an activation, a weight and a bias.

        In int8 the bias has the product of the other two scales, which is left to the runtime: it multiplies
        constants once, when it loads the file, and a channel takes four bytes less. Zero points that are 0
        may be left out too, but for a dense layer's weight, which ONNX Runtime does not make int8 without.
        """
        bias = torch.zeros(len(part.weight)) if part.bias is None else part.bias.detach()
        weight, read = part.weight.detach(), self.real(source, layer)
        if self.quantization is None or layer not in self.quantization.weight_scales:
            if self.reads[layer] == IMAGES:  # one pass over the pixels less than scaling them
                weight = weight / (255 * torch.tensor(self.contract.std)).view(1, 3, 1, 1)
            return [read, self.constant(f"{layer}.weight", weight), self.constant(f"{layer}.bias", bias)]
        assert source.affine is not None
        step = self.quantization.weight_scales[layer]
        whole_weight = integer_weight(weight, step, self.quantization.weight_limit).to(torch.int8)
        whole_bias = integer_bias(bias, source.affine.scale, step).to(torch.int32)
        scale = self.constant(f"{layer}.weight.scale", step.float())
        product = self.add("Mul", [f"{_real_name(source)}.scale", scale], f"{layer}.bias.scale")
        zero_points = []
        if isinstance(part, nn.Linear):
            zeros = torch.zeros(len(weight), dtype=torch.int8)
            zero_points = [self.constant(f"{layer}.weight.zero_point", zeros)]
        return [
            read,
            self._integers(f"{layer}.weight", whole_weight, scale, *zero_points),
            self._integers(f"{layer}.bias", whole_bias, product),
        ]

    def _integers(self, name: str, values: Tensor, *grid: str) -> str:
        inputs = [self.constant(f"{name}.integers", values), *grid]
        return self.add("DequantizeLinear", inputs, name, axis=0)


def _real_name(value: _Value) -> str:
    """Of an activation, whether or not it is there as integers; its scale is named after it."""
    return value.name.removesuffix(".integers")


def _write_convolution(graph: _Graph, target: str, part: nn.Module, source: _Value) -> _Value:
    assert isinstance(part, nn.Conv2d)
    if isinstance(part.padding, str) or part.padding_mode != "zeros":
        raise ExportError(
            f"{target} pads {part.padding!r} by {part.padding_mode}; allowed are counts of zeros"
        )
    layer = target.removesuffix(".conv")
    attributes = {
        "kernel_shape": part.kernel_size,
        "strides": part.stride,
        "pads": [there + own for there, own in zip(source.padding, part.padding * 2, strict=True)],
        "dilations": part.dilation,
        "group": part.groups,
    }
    return _Value(graph.add("Conv", graph.inputs(layer, part, source), f"{layer}.sums", **attributes))


def _write_linear(graph: _Graph, target: str, part: nn.Module, source: _Value) -> _Value:
    assert isinstance(part, nn.Linear)
    return _Value(graph.add("Gemm", graph.inputs(target, part, source), f"{target}.sums", transB=1))


def _write_activation(graph: _Graph, target: str, part: nn.Module, source: _Value) -> _Value:
    layer = target.removesuffix(".act")
    affine = graph.scale_of(layer)
    if affine is not None:  # saturation at 0 and 255 is the activation, as `check` saw
        paired = graph.paired and graph.reads.get(layer) == IMAGES
        return graph.quantize_pairs(source, affine) if paired else graph.quantize(source, affine)
    if isinstance(part, nn.ReLU):
        return _Value(graph.add("Relu", [source.name], layer))
    bounds = [
        graph.constant(f"{layer}.least", np.array(0, np.float32)),
        graph.constant(f"{layer}.greatest", np.array(CLIPPING[type(part)], np.float32)),
    ]
    return _Value(graph.add("Clip", [source.name, *bounds], layer))


def _write_pool(graph: _Graph, target: str, part: nn.Module, source: _Value) -> _Value:
    assert isinstance(part, nn.AdaptiveAvgPool2d)
    if part.output_size not in (1, (1, 1)):
        raise ExportError(f"{target} pools to {part.output_size}; only global pooling to 1 is written")
    pooled = _Value(graph.add("GlobalAveragePool", [graph.real(source, target)], target))
    affine = graph.scale_of(target)
    return pooled if affine is None else graph.quantize(pooled, affine)


def _write_flatten(graph: _Graph, target: str, part: nn.Module, source: _Value) -> _Value:
    assert isinstance(part, nn.Flatten)
    if (part.start_dim, part.end_dim) != (1, -1):
        raise ExportError(f"{target} flattens {part.start_dim} to {part.end_dim}; only 1 to -1 is written")
    return _Value(graph.add("Flatten", [source.name], target, axis=1), source.affine)


def _write_padding(graph: _Graph, target: str, part: nn.Module, source: _Value) -> _Value:  # noqa: ARG001 - one signature for all writers
    assert isinstance(part, nn.ZeroPad2d)
    left, right, top, bottom = part.padding
    return replace(source, padding=(top, left, bottom, right))


def _write_nothing(graph: _Graph, target: str, part: nn.Module, source: _Value) -> _Value:  # noqa: ARG001 - one signature for all writers
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
"""How each kind of a student's parts is written; a student with another kind needs one more line."""


def _write_front(graph: _Graph) -> _Value:
    """From bytes as an image library has them to what the first layer reads; its weights hold 1 / std."""
    pixels = IMAGES
    if graph.paired:
        shape = graph.constant(f"{IMAGES}.shape", np.array([0, 0, -1, layout.QUAD * 3]))
        pixels = graph.add("Reshape", [IMAGES, shape], f"{IMAGES}.quads")
    planes = graph.add("Transpose", [pixels], f"{IMAGES}.planes", perm=(0, 3, 1, 2))
    if graph.scale_of(IMAGES) is not None:
        return _Value(planes, RAW_PIXELS)
    pixels = graph.add("Cast", [planes], f"{IMAGES}.float", to=TensorProto.FLOAT)
    if not any(graph.contract.mean):
        return _Value(pixels)
    mean = np.array(graph.contract.mean, np.float32).reshape(1, 3, 1, 1) * 255
    return _Value(graph.add("Sub", [pixels, graph.constant(f"{IMAGES}.mean", mean)], f"{IMAGES}.centred"))


def check_float_layers(module: nn.Module, contract: InputContract, float_layers: Collection[str]) -> None:
    """See whether an int8 file can have these layers in float, before anything is trained for it.

    Raises:
        ExportError: a layer does not exist, lies between int8 ones, or the stem must be in float and is not.
    """
    reads = layer_inputs(module)
    try:
        activations = int8_activations(module, float_layers)
    except ValueError as error:
        raise ExportError(str(error)) from error
    if IMAGES in activations and not contract.is_plain:
        raise ExportError(
            f"the input has mean {contract.mean} and std {contract.std}; a stem in int8 reads bytes and "
            "needs mean 0 and std 1: name the stem in float_layers"
        )
    for layer in float_layers:
        if {layer, reads[layer]} <= set(activations):
            raise ExportError(
                f"float layer {layer} lies between int8 ones and ONNX Runtime makes it int8 by itself; "
                "float layers must lead without a gap from the input on"
            )


def write(
    module: nn.Module, quantization: Quantization | None, contract: InputContract, classes: int, name: str
) -> onnx.ModelProto:
    """The graph of a module without batch norms, as ``export`` ships it, without metadata.

    Raises:
        ExportError: as ``export``.
    """
    reads = layer_inputs(module)
    if quantization is not None:
        try:
            check(module, quantization)
        except ValueError as error:
            raise ExportError(str(error)) from error
        check_float_layers(module, contract, quantization.float_layers)
    paired = 0
    if quantization is not None:
        module, quantization = layout.fill(module, quantization)
        module, quantization, paired = layout.pair_columns(module, quantization, contract.size)
    traced = fx.symbolic_trace(module).graph
    graph = _Graph(quantization, reads, contract, paired)
    values: dict[fx.Node, _Value] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            values[node] = _write_front(graph)
        elif node.op == "call_module":
            part = module.get_submodule(node.target)
            if type(part) not in WRITERS:
                raise ExportError(f"{node.target} is a {type(part).__name__}; {list(WRITERS)} can be written")
            values[node] = WRITERS[type(part)](graph, str(node.target), part, values[node.args[0]])
        elif node.op == "output":
            graph.nodes[-1].output[0] = graph.nodes[-1].name = LOGITS
        else:
            raise ExportError(f"{node.name} is a {node.op}; only modules can be written")
    batch, size = "batch", contract.size
    proto = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [batch, size, size, 3])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [batch, classes])],
        list(graph.constants.values()),
    )
    return helper.make_model(
        proto,
        producer_name="distillery",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
