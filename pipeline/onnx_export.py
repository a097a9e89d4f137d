"""The ONNX file that ships: written straight from a student's graph, and verified in ONNX Runtime.

Writing the graph here rather than tracing and rewriting it keeps the scales, integers and names exactly
those of the model, and leaves no source paths in the file.
"""

import json
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from jaxtyping import Float, UInt8
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from pipeline import layerwise
from pipeline.layerwise import LOGITS
from pipeline.models import Affine, Card, Model, Quantization
from pipeline.quantization import (
    CLIPPING,
    IMAGES,
    RAW_PIXELS,
    check,
    fold_batch_norm,
    integer_bias,
    integer_weight,
    layer_inputs,
    product_scale,
    simulate,
)
from pipeline.tasks import TASKS
from teachers.contract import InputContract

OPSET = 17
"""Old enough for every runtime in use, ONNX Runtime Web among them; new enough for all that is needed."""
IR_VERSION = 8


class ExportError(ValueError):
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
        grid = self._grid(value.name, affine)
        return _Value(self.add("QuantizeLinear", [value.name, *grid], f"{value.name}.integers"), affine)

    def real(self, value: _Value, reader: str) -> str:
        """The tensor in float; every reader has a dequantisation of its own, which is what runtimes fuse."""
        if value.affine is None:
            return value.name
        grid = self._grid(value.name.removesuffix(".integers"), value.affine)
        return self.add("DequantizeLinear", [value.name, *grid], f"{reader}.input")

    def _grid(self, name: str, affine: Affine) -> tuple[str, str]:
        return (
            self.constant(f"{name}.scale", np.array(affine.scale, np.float32)),
            self.constant(f"{name}.zero_point", np.array(affine.zero_point, np.uint8)),
        )

    def weights(self, layer: str, part: nn.Conv2d | nn.Linear) -> list[str]:
        """Weight and bias of a layer: float constants, or integers and their dequantisation."""
        bias = torch.zeros(len(part.weight)) if part.bias is None else part.bias.detach()
        weight = part.weight.detach()
        if self.quantization is None or layer not in self.quantization.weight_scales:
            if self.reads[layer] == IMAGES:  # one pass over the pixels less than scaling them
                weight = weight / (255 * torch.tensor(self.contract.std)).view(1, 3, 1, 1)
            return [self.constant(f"{layer}.weight", weight), self.constant(f"{layer}.bias", bias)]
        step = self.quantization.weight_scales[layer]
        read = self.quantization.activations[self.reads[layer]].scale
        whole_weight = integer_weight(weight, step, self.quantization.weight_limit).to(torch.int8)
        whole_bias = integer_bias(bias, read, step).to(torch.int32)
        return [
            self._integers(f"{layer}.weight", whole_weight, step.float()),
            self._integers(f"{layer}.bias", whole_bias, product_scale(read, step)),
        ]

    def _integers(self, name: str, values: Tensor, scale: Float[Tensor, " channels"]) -> str:
        inputs = [
            self.constant(f"{name}.integers", values),
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.zero_point", torch.zeros(len(scale), dtype=values.dtype)),
        ]
        return self.add("DequantizeLinear", inputs, name, axis=0)


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
    inputs = [graph.real(source, layer), *graph.weights(layer, part)]
    return _Value(graph.add("Conv", inputs, f"{layer}.sums", **attributes))


def _write_linear(graph: _Graph, target: str, part: nn.Module, source: _Value) -> _Value:
    assert isinstance(part, nn.Linear)
    inputs = [graph.real(source, target), *graph.weights(target, part)]
    return _Value(graph.add("Gemm", inputs, f"{target}.sums", transB=1))


def _write_activation(graph: _Graph, target: str, part: nn.Module, source: _Value) -> _Value:
    layer = target.removesuffix(".act")
    affine = graph.scale_of(layer)
    if affine is not None:
        return graph.quantize(source, affine)  # saturation at 0 and 255 is the activation, as `check` saw
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
    planes = graph.add("Transpose", [IMAGES], f"{IMAGES}.planes", perm=(0, 3, 1, 2))
    if graph.scale_of(IMAGES) is not None:
        return _Value(planes, RAW_PIXELS)
    pixels = graph.add("Cast", [planes], f"{IMAGES}.float", to=TensorProto.FLOAT)
    if not any(graph.contract.mean):
        return _Value(pixels)
    mean = np.array(graph.contract.mean, np.float32).reshape(1, 3, 1, 1) * 255
    return _Value(graph.add("Sub", [pixels, graph.constant(f"{IMAGES}.mean", mean)], f"{IMAGES}.centred"))


def export(model: Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the file that ships: uint8 ``images`` [batch, height, width, 3] to float ``logits``.

    Normalisation, layout and batch norms are inside the graph; int8 layers are stored as integers between
    quantise and dequantise nodes.

    Raises:
        ExportError: an int8 stem with a mean or a standard deviation other than 0 and 1; scales that do not
            fit the module; a float layer between int8 ones; or a part that has no writer.
    """
    contract, quantization = model.card.input, model.quantization
    module = _folded(model)
    reads = layer_inputs(module)
    if quantization is not None:
        try:
            check(module, quantization)
        except ValueError as error:
            raise ExportError(f"{model.card.variant}: {error}") from error
        if IMAGES in quantization.activations and (any(contract.mean) or set(contract.std) != {1.0}):
            raise ExportError(
                f"the input has mean {contract.mean} and std {contract.std}; a stem in int8 reads bytes and "
                "needs mean 0 and std 1: name the stem in float_layers"
            )
        for name in quantization.float_layers:
            if {name, reads[name]} <= set(quantization.activations):
                raise ExportError(
                    f"float layer {name} lies between int8 ones and ONNX Runtime makes it int8 by itself; "
                    "float layers must lead without a gap from the input on"
                )
    traced = fx.symbolic_trace(module).graph
    graph = _Graph(quantization, reads, contract)
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
        model.card.variant,
        [helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [batch, size, size, 3])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [batch, len(model.card.labels)])],
        list(graph.constants.values()),
    )
    file = helper.make_model(
        proto,
        producer_name="distillery",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(file, dict(metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.SerializeToString())


def _folded(model: Model) -> nn.Module:
    """The module on the CPU, without batch norms."""
    module, _ = fold_batch_norm(model.module, model.card.architecture, model.card.arguments)
    return module.cpu().float()


def metadata_for(card: Card, quantization: Quantization | None) -> dict[str, str]:
    """What a shipped file says of itself; every value is a string, lists and objects as JSON."""
    contract = card.input
    how = {
        "size": contract.size,
        "crop": contract.crop,
        "interpolation": contract.interpolation,
        "rule": (
            f"Take the centred square whose side is {contract.crop:g} of the shorter side, resize it to "
            f"{contract.size} x {contract.size} pixels in one antialiased {contract.interpolation} step, and "
            "give its RGB bytes; the file normalises."
        ),
    }
    return {
        "labels": json.dumps(card.labels),
        "input": json.dumps(how),
        "variant": card.variant,
        "parent": card.parent,
        "teacher": card.teacher,
        "data_sha256": card.data_sha256,
        "calibration_sha256": card.calibration_sha256 or "",
        "git_commit": card.git_commit,
        "task": TASKS[card.task].onnx,
        "license": card.license,
        "float_layers": json.dumps(quantization.float_layers if quantization else ()),
    }


FLOAT_TOLERANCE = 1e-3
"""Greatest difference of logits from the module, as a share of the logits' spread."""
BATCH_TOLERANCE = 1e-3
"""Greatest difference between one batch and image by image, as a share of the logits' spread."""
ROUNDING_TOLERANCE = 1e-3
"""Greatest share of an int8 layer's outputs that may lie one step beside the simulator's."""
CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv")


def verify(path: Path, model: Model, images: UInt8[Tensor, "batch height width 3"]) -> dict[str, float]:
    """Check the file against the module that it came from, in ONNX Runtime on the CPU.

    The rungs: the ONNX checker; no external data; which kernels ONNX Runtime's optimiser chooses; one
    batch against image by image; logits against the module (float) or the simulator (int8). An int8 file
    is moreover compared layer by layer, each layer given the very integers that the runtime gave it, so
    that a rounding that falls the other way is counted once and not carried on: as it stands ("exact",
    without graph optimisation) and with the fused integer kernels ("fused").

    Fused kernels on an x86 processor without VNNI add products in 16 bits, and weights of more than 7
    bits can saturate there. Only then is a difference of the fused kernels reported and not an error.

    Returns the figures, in shares of 1: ``logits`` and ``batches`` are greatest differences over the
    logits' spread, ``argmax`` the share of equal answers, ``exact`` and ``fused`` the greatest share of a
    layer's integers that differ, ``exact_steps`` and ``fused_steps`` by how many steps.

    Raises:
        ExportError: a rung fails.
    """
    onnx.checker.check_model(str(path), full_check=True)
    file = onnx.load(path, load_external_data=False)
    if outside := [t.name for t in file.graph.initializer if t.data_location == TensorProto.EXTERNAL]:
        raise ExportError(f"{path} keeps {outside} outside the file; it must be one file")
    _check_kernels(path, model.quantization)

    session = layerwise.session(path, layerwise.FUSED)
    whole = layerwise.answers(session, images)
    single = np.concatenate([layerwise.answers(session, image) for image in images.split(1)])
    module, contract, quantization = _folded(model), model.card.input, model.quantization
    reference = module if quantization is None else simulate(module, quantization)
    normalised = contract.normalise(images)
    with torch.no_grad():
        wanted = reference(normalised).numpy()
    spread = max(float(np.ptp(wanted)), 1e-12)
    figures = {
        "batches": float(np.abs(whole - single).max()) / spread,
        "logits": float(np.abs(whole - wanted).max()) / spread,
        "argmax": float((whole.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
    }
    if quantization is None:
        _limit(path, figures, "logits", FLOAT_TOLERANCE)
        _limit(path, figures, "batches", BATCH_TOLERANCE)
        return figures
    for name, level in (("exact", layerwise.PLAIN), ("fused", layerwise.FUSED)):
        share = steps = 0.0
        integers = layerwise.integers_of_file(path, images, level)
        for stage in layerwise.stages(integers, reference, module, quantization, normalised):
            apart = stage.steps()
            # The first is forgiven: in a small layer, one tie that falls the other way is a large share.
            share = max(share, max(int((apart > 0).sum()) - 1, 0) / apart.numel())
            steps = max(steps, float(apart.max()))
        figures |= {name: share, f"{name}_steps": steps}
        if name == "exact" or quantization.weight_limit < 127 or not sums_may_saturate():
            _limit(path, figures, name, ROUNDING_TOLERANCE)
            _limit(path, figures, f"{name}_steps", 1.0)
    if not quantization.float_layers:
        # Float kernels may differ by the last bit between batch sizes, which then tips roundings;
        # integers may not.
        _limit(path, figures, "batches", BATCH_TOLERANCE)
    return figures


def _limit(path: Path, figures: Mapping[str, float], name: str, limit: float) -> None:
    if not figures[name] <= limit:  # a NaN fails as well
        raise ExportError(f"{path}: {name} is {figures[name]:.3g}; at most {limit:g} is allowed")


def _check_kernels(path: Path, quantization: Quantization | None) -> None:
    """Every convolution but the named float layers must become a QLinearConv, and the reverse."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimized.onnx"
        layerwise.session(path, layerwise.FUSED, saved=saved)
        optimized = onnx.load(saved)
    kinds = [node.op_type for node in optimized.graph.node if node.op_type in CONVOLUTIONS]
    written = [
        node.name.removesuffix(".sums") for node in onnx.load(path).graph.node if node.op_type == "Conv"
    ]
    whole = 0 if quantization is None else sum(name in quantization.weight_scales for name in written)
    if (kinds.count("QLinearConv"), len(kinds)) != (whole, len(written)):
        raise ExportError(
            f"{path}: ONNX Runtime runs {kinds.count('QLinearConv')} of {len(kinds)} convolutions in int8; "
            f"{whole} of {len(written)} are meant to"
        )


def sums_may_saturate() -> bool:
    """Whether this processor adds pairs of u8 x s8 products in 16 bits; yes where it cannot be known."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not {"avx512_vnni", "avx_vnni", "avx512vnni", "amx_int8"} & set(flags)
