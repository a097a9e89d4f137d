"""A student as a LiteRT graph, written straight from its modules and integers, as the ONNX file is.

Weights are stored as the network has them: int8 with one step per output channel, and int32 biases in steps
of the sums. Activations, which are uint8 with zero point 0 in the ONNX file, are int8 with zero point -128
here: an integer q of the one is q - 128 of the other, and both stand for the same number. The images are
bytes, as any image library hands them over. The logits are computed in float from the last integers, since
eight bits for the logits of many classes would make some of them equal; the runtime widens the weights of the
classifier once, when it loads the file. Weights of four bits are stored in eight: LiteRT has kernels for
convolutions with four, but not in XNNPACK, and they take four times as long.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import DistilleryError
from pipeline.litert.flatfile import INT8_ZERO_POINT, Graph, Grid, Value
from pipeline.models.layers import IMAGES, PASSED, Layer, Network
from pipeline.models.storage import Quantization
from pipeline.quantization.grid import PIXEL_SCALE, integer_bias, integer_weight, product_scale
from pipeline.quantization.simulator import check
from teachers.contract import InputContract

LOGITS = "logits"
"""Name of the output."""
ACTIVATIONS = {None: "NONE", float("inf"): "RELU", 6.0: "RELU6"}
"""Value at which an activation saturates, to the name of the activation."""


class LiteRtError(DistilleryError):
    """A model cannot be written as a LiteRT file, or its file fails a check; the message says which."""


@dataclass
class _Writer:
    """The graph while it is written, and what it is written from."""

    network: Network
    quantization: Quantization | None
    contract: InputContract
    graph: Graph
    half: bool = False
    """Whether weights and biases are stored in float16."""

    def number(self, name: str, values: Tensor) -> Value:
        """A constant, which is float for its readers."""
        array = values.contiguous().numpy()
        if not self.half:
            return self.graph.constant(name, array)
        stored = self.graph.constant(f"{name}.half", array.astype(np.float16))
        return self.graph.add("DEQUANTIZE", [stored], self.graph.value(name, stored.shape))

    def scale_of(self, activation: str) -> float | None:
        return self.quantization.activation_scales.get(activation) if self.quantization else None

    def is_int8(self, layer: str) -> bool:
        return self.quantization is not None and layer in self.quantization.weight_scales

    def activation(self, name: str, shape: tuple[int, ...]) -> Value:
        """The tensor of an activation: int8 where it has a scale, else float."""
        scale = self.scale_of(name)
        if scale is None:
            return self.graph.value(name, shape)
        return self.graph.value(name, shape, np.int8, Grid(scale, INT8_ZERO_POINT))

    def finish(self, written: Value, name: str) -> Value:
        """The activation that ``written``, a float tensor, becomes."""
        return self.graph.add("QUANTIZE", [written], self.activation(name, written.shape))

    def real(self, value: Value, name: str) -> Value:
        """The same tensor in float."""
        if value.grid is None:
            return value
        return self.graph.add("DEQUANTIZE", [value], self.graph.value(f"{name}.float", value.shape))


def write(
    network: Network,
    quantization: Quantization | None,
    contract: InputContract,
    classes: int,
    *,
    half: bool = False,
) -> tuple[Graph, Value, Value]:
    """The graph of a network without batch norms, its input and its output.

    With ``half``, weights and biases are stored in float16. Whether the runtime computes with them as they
    are, or widens them once, is its own choice.

    Raises:
        LiteRtError: an int8 stem reads images whose contract has no zero point, the scales do not fit the
            network, or a module cannot be written.
    """
    if quantization is not None:
        try:
            check(network, quantization)
        except ValueError as error:
            raise LiteRtError(str(error)) from error
    writer = _Writer(network, quantization, contract, Graph(), half)
    images, value = _write_front(writer)
    layers = {layer.weights: layer for layer in network.layers.values()}
    zeros = (0, 0, 0, 0)
    for path in network.steps:
        part = network.module.get_submodule(path)
        if path in layers:
            value, zeros = _write_layer(writer, layers[path], value, zeros), (0, 0, 0, 0)
        elif isinstance(part, nn.ZeroPad2d):
            left, right, top, bottom = part.padding
            zeros = (top, bottom, left, right)
        elif path in network.pools:
            value = _write_pool(writer, path, value)
        elif isinstance(part, nn.Flatten) and (part.start_dim, part.end_dim) != (1, -1):
            raise LiteRtError(f"{path} flattens {part.start_dim} to {part.end_dim}; only 1 to -1 is written")
        elif path not in {layer.activation for layer in layers.values()} and not isinstance(part, PASSED):
            raise LiteRtError(f"{path} is a {type(part).__name__}, which cannot be written")
    if value.shape != (1, classes):
        raise LiteRtError(
            f"the last layer gives {list(value.shape)}; logits of the shape [1, {classes}] are needed"
        )
    return writer.graph, images, value


def _write_front(writer: _Writer) -> tuple[Value, Value]:
    """The bytes of the image, and the values that the first layer reads; its weights contain 1 / std.

    An int8 stem gets every byte less 128, with a zero point that is less by as much.
    """
    graph, contract = writer.graph, writer.contract
    shape = (1, contract.size, contract.size, 3)
    if writer.scale_of(IMAGES) is not None:
        if contract.zero_point is None:
            raise LiteRtError(
                f"the input has mean {contract.mean} and std {contract.std}; a stem in int8 reads bytes less "
                "a zero point"
            )
        images = graph.value(IMAGES, shape, np.uint8, Grid(PIXEL_SCALE, contract.zero_point))
        shifted = Grid(PIXEL_SCALE, contract.zero_point + INT8_ZERO_POINT)
        return images, graph.add("QUANTIZE", [images], graph.value(f"{IMAGES}.int8", shape, np.int8, shifted))
    means = np.array(contract.mean, np.float32) * 255
    images = graph.value(IMAGES, shape, np.uint8, Grid(1.0))
    pixels = graph.add("DEQUANTIZE", [images], graph.value(f"{IMAGES}.float", shape))
    steps = [("SUB", "centred", "mean", means)] if means.any() else []
    if writer.half:  # Divided by 255, some weights of the first layer would lose bits in float16.
        scale = np.array([1 / (255 * std) for std in contract.std], np.float32)
        steps.append(("MUL", "normalised", "scale", scale))
    for operator, name, constant, values in steps:
        written = graph.value(f"{IMAGES}.{name}", shape)
        inputs = [pixels, graph.constant(f"{IMAGES}.{constant}", values)]
        pixels = graph.add(operator, inputs, written, fusedActivationFunction="NONE")
    return images, pixels


def _write_layer(writer: _Writer, layer: Layer, source: Value, zeros: tuple[int, int, int, int]) -> Value:
    part = writer.network.part(layer.name)
    if isinstance(part, nn.Linear):
        return _write_linear(writer, layer, part, source)
    return _write_convolution(writer, layer, part, source, zeros)


def _write_convolution(
    writer: _Writer, layer: Layer, part: nn.Conv2d, source: Value, zeros: tuple[int, int, int, int]
) -> Value:
    if isinstance(part.padding, str) or part.padding_mode != "zeros":
        raise LiteRtError(
            f"{layer.weights} pads {part.padding!r} by {part.padding_mode}; allowed are counts of zeros"
        )
    if layer.activation is None or layer.kind == "grouped":
        raise LiteRtError(
            f"{layer.name} is a convolution of groups of channels or without an activation, which cannot be "
            "written"
        )
    graph, name = writer.graph, layer.name
    is_int8 = writer.is_int8(name)
    read = source if is_int8 else writer.real(source, f"{name}.input")
    vertical, horizontal = part.padding
    top, bottom, left, right = zeros
    _, height, width, _ = read.shape
    rows, columns = (
        _Span(side, before + own, after + own, kernel, stride, dilation)
        for side, before, after, own, kernel, stride, dilation in zip(
            (height, width),
            (top, left),
            (bottom, right),
            (vertical, horizontal),
            part.kernel_size,
            part.stride,
            part.dilation,
            strict=True,
        )
    )
    if rows.is_valid and columns.is_valid:
        padding = "VALID"
    elif rows.is_same and columns.is_same:
        padding = "SAME"
    else:
        padding, read = "VALID", _pad(graph, f"{name}.padded", read, rows, columns)
    depthwise = layer.kind == "depthwise"
    weight, bias = _parameters(writer, layer, part, depthwise=depthwise)
    shape = (1, rows.written, columns.written, part.out_channels)
    fits = is_int8 or writer.scale_of(name) is None
    options = {
        "padding": padding,
        "strideH": part.stride[0],
        "strideW": part.stride[1],
        "dilationHFactor": part.dilation[0],
        "dilationWFactor": part.dilation[1],
        "fusedActivationFunction": ACTIVATIONS[layer.clip],
        **({"depthMultiplier": 1} if depthwise else {}),
    }
    written = writer.activation(name, shape) if fits else graph.value(f"{name}.float", shape)
    graph.add("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [read, weight, bias], written, **options)
    return written if fits else writer.finish(written, name)


@dataclass(frozen=True)
class _Span:
    """One direction of a convolution: its side in pixels, the zeros before and after it, and the kernel."""

    side: int
    before: int
    after: int
    kernel: int
    stride: int
    dilation: int

    @property
    def reach(self) -> int:
        """Number of pixels that the kernel spans."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def written(self) -> int:
        """Number of pixels of the output."""
        return (self.side + self.before + self.after - self.reach) // self.stride + 1

    @property
    def needed(self) -> int:
        """Number of zeros after the map that the kernel reaches; less than 0 if it does not reach its end."""
        return (self.written - 1) * self.stride + self.reach - self.side - self.before

    @property
    def is_valid(self) -> bool:
        """Whether it is TensorFlow's padding VALID: no zeros at all."""
        return self.before == 0 and self.written == (self.side - self.reach) // self.stride + 1

    @property
    def is_same(self) -> bool:
        """Whether it is TensorFlow's padding SAME: half of the zeros that are needed come before the map."""
        if self.written != -(-self.side // self.stride):
            return False
        total = max((self.written - 1) * self.stride + self.reach - self.side, 0)
        return self.before == total // 2


def _pad(graph: Graph, name: str, read: Value, rows: _Span, columns: _Span) -> Value:
    """The tensor with its zeros around it; those that no kernel reaches are left out."""
    around = [(0, 0), *((span.before, max(span.needed, 0)) for span in (rows, columns)), (0, 0)]
    shape = tuple(side + sum(zeros) for side, zeros in zip(read.shape, around, strict=True))
    amounts = graph.constant(f"{name}.zeros", np.array(around, np.int32))
    return graph.add("PAD", [read, amounts], graph.value(name, shape, read.kind, read.grid))


def _parameters(writer: _Writer, layer: Layer, part: nn.Conv2d, *, depthwise: bool) -> tuple[Value, Value]:
    """Weight and bias of a convolution; weights are [outputs, rows, columns, inputs] for LiteRT, and
    [1, rows, columns, channels] for a depthwise one."""
    graph, name = writer.graph, layer.name
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    weight = part.weight.detach()
    bias = torch.zeros(len(weight)) if part.bias is None else part.bias.detach()
    if not writer.is_int8(name):
        if layer.reads == IMAGES and not writer.half:
            # Scaling the weights saves one pass over the pixels.
            weight = weight / (255 * torch.tensor(writer.contract.std)).view(1, 3, 1, 1)
        return (
            writer.number(f"{name}.weight", weight.permute(order)),
            writer.number(f"{name}.bias", bias),
        )
    weights, step, biases = _integers(writer, layer, weight, bias)
    read = writer.scale_of(layer.reads)
    assert read is not None
    grid = Grid(step.float().numpy(), axis=3 if depthwise else 0)
    return (
        graph.constant(f"{name}.weight", weights.permute(order).contiguous().numpy(), grid),
        graph.constant(f"{name}.bias", biases.numpy(), Grid(product_scale(read, step).numpy())),
    )


def _integers(writer: _Writer, layer: Layer, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The integer weights of a layer, their steps and the integer biases."""
    quantization, read = writer.quantization, writer.scale_of(layer.reads)
    assert quantization is not None
    assert read is not None
    step = quantization.weight_scales[layer.name]
    weights = integer_weight(weight, step, quantization.weight_limit).to(torch.int8)
    return weights, step, integer_bias(bias, read, step).to(torch.int32)


def _write_linear(writer: _Writer, layer: Layer, part: nn.Linear, source: Value) -> Value:
    graph, name = writer.graph, layer.name
    if len(source.shape) != 2:
        raise LiteRtError(
            f"{name} reads {list(source.shape)}; a linear layer is written after global pooling, as LiteRT "
            "flattens channels last"
        )
    weight = part.weight.detach()
    bias = torch.zeros(len(weight)) if part.bias is None else part.bias.detach()
    read = writer.real(source, f"{name}.input")
    if writer.is_int8(name):
        integers, step, biases = _integers(writer, layer, weight, bias)
        scale = writer.scale_of(layer.reads)
        assert scale is not None
        grid = Grid(step.float().numpy())
        stored = graph.constant(f"{name}.weight.integers", integers.numpy(), grid)
        weights = graph.add("DEQUANTIZE", [stored], graph.value(f"{name}.weight", stored.shape))
        bias = biases.double() * product_scale(scale, step).double()
    else:
        weights = writer.number(f"{name}.weight", weight)
    biases = writer.number(f"{name}.bias", bias.float())
    logits = graph.value(LOGITS, (1, len(weight)))
    return graph.add(
        "FULLY_CONNECTED", [read, weights, biases], logits, fusedActivationFunction="NONE", weightsFormat=0
    )


def _write_pool(writer: _Writer, path: str, source: Value) -> Value:
    part = writer.network.module.get_submodule(path)
    assert isinstance(part, nn.AdaptiveAvgPool2d)
    if part.output_size not in (1, (1, 1)):
        raise LiteRtError(f"{path} pools to {part.output_size}; only global pooling to 1 is written")
    graph, scale = writer.graph, writer.scale_of(path)
    both = source.grid is not None and scale is not None
    read = source if both else writer.real(source, f"{path}.input")
    shape = (1, source.shape[3])
    written = writer.activation(path, shape) if both or scale is None else graph.value(f"{path}.float", shape)
    graph.add(
        "MEAN", [read, graph.constant(f"{path}.axes", np.array([1, 2], np.int32))], written, keepDims=False
    )
    return written if both or scale is None else writer.finish(written, path)
