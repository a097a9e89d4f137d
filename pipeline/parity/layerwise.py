"""The integers inside an int8 network, layer by layer, against the simulator's arithmetic."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from jaxtyping import Float, Num, UInt8
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from pipeline.models.storage import Quantization
from pipeline.onnx.graph import LOGITS
from pipeline.quantization.simulator import IMAGES, LEVELS, layer_inputs, layers

PLAIN = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
"""The graph as it is written: floating-point layers between quantise and dequantise nodes."""
FUSED = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
"""As it ships: integer kernels."""


@dataclass(frozen=True)
class Stage:
    """One quantised activation, from the very integers that another network read: nothing is carried on."""

    name: str
    wanted: Float[Tensor, "batch channels *pixels"]
    """The simulator's value in steps, before it is rounded and clamped."""
    found: Num[Tensor, "batch channels *pixels"]
    """The other's integers."""

    def steps(self) -> Float[Tensor, "batch channels *pixels"]:
        """How many steps the simulator's integers and the other's lie apart."""
        return (self.wanted.round().clamp(0, LEVELS) - self.found).abs()

    def beyond_half(self) -> Float[Tensor, "batch channels *pixels"]:
        """How much farther than half a step a value lies from the integer that the other made of it.

        Nothing but the order of floating-point sums lets this be above 0.
        """
        return (self.wanted.clamp(0, LEVELS) - self.found).abs() - 0.5


def session(
    file: Path | bytes, level: ort.GraphOptimizationLevel, *, threads: int = 1, saved: Path | None = None
) -> ort.InferenceSession:
    """A session on the CPU; ``saved`` is where the optimised graph goes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # saving an optimised graph warns that it fits this machine alone
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def answers(opened: ort.InferenceSession, images: UInt8[Tensor, "batch height width 3"]) -> np.ndarray:
    """The logits of a session."""
    return np.asarray(opened.run([LOGITS], {IMAGES: images.numpy()})[0])


def integers_of_file(
    path: Path,
    module: nn.Module,
    images: UInt8[Tensor, "batch height width 3"],
    level: ort.GraphOptimizationLevel,
) -> dict[str, Tensor]:
    """Quantised activations of a module's file, by name, as ONNX Runtime computes them; and ``logits``."""
    written = {
        name.removesuffix(".integers").removesuffix(".sums"): name
        for node in onnx.load(path).graph.node
        for name in node.output
        if name.endswith(".integers")
    }
    found = _run(path, images, level, written, TensorProto.UINT8)
    for name, layer in layers(module).items():
        if name in found:
            found[name] = found[name][:, : len(layer.weight)]  # what fills up a kernel is zeros
    return {IMAGES: images.permute(0, 3, 1, 2), **found}


@torch.no_grad()
def integers_of_module(
    module: nn.Module,
    quantization: Quantization,
    images: UInt8[Tensor, "batch height width 3"],
    normalised: Float[Tensor, "batch 3 height width"],
) -> dict[str, Tensor]:
    """All quantised activations of a module that rounds them, by name, and ``logits``."""
    names = [name for name in quantization.activations if name != IMAGES]
    found = outputs_of_module(module, names, normalised)
    integers = {name: (found[name] / quantization.activations[name].scale).round() for name in names}
    return {IMAGES: images.permute(0, 3, 1, 2), **integers, LOGITS: found[LOGITS]}


def outputs_of_file(
    path: Path,
    names: Sequence[str],
    images: UInt8[Tensor, "batch height width 3"],
    level: ort.GraphOptimizationLevel,
) -> dict[str, Tensor]:
    """What layers of a float file give after their activation, in ONNX Runtime, and ``logits``."""
    return _run(path, images, level, {name: name for name in names}, TensorProto.FLOAT)


@torch.no_grad()
def outputs_of_module(
    module: nn.Module, names: Sequence[str], normalised: Float[Tensor, "batch 3 height width"]
) -> dict[str, Tensor]:
    """What layers of a module give after their activation, and ``logits``."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            found[name] = output

        unit = module.get_submodule(name)
        handles.append(getattr(unit, "act", unit).register_forward_hook(keep))
    try:
        found[LOGITS] = module(normalised)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _run(
    path: Path,
    images: UInt8[Tensor, "batch height width 3"],
    level: ort.GraphOptimizationLevel,
    tensors: Mapping[str, str],
    kind: int,
) -> dict[str, Tensor]:
    """A file's inner tensors by name, and its logits."""
    file = onnx.load(path)
    for tensor in tensors.values():
        file.graph.output.append(helper.make_tensor_value_info(tensor, kind, None))
    arrays = session(file.SerializeToString(), level).run(
        [*tensors.values(), LOGITS], {IMAGES: images.numpy()}
    )
    return {name: torch.from_numpy(np.asarray(a)) for name, a in zip([*tensors, LOGITS], arrays, strict=True)}


def stages(
    integers: Mapping[str, Tensor],
    simulated: nn.Module,
    module: nn.Module,
    quantization: Quantization,
    normalised: Float[Tensor, "batch 3 height width"],
) -> Iterator[Stage]:
    """Every quantised activation in the order of the network.

    Args:
        integers: what another network computed, from ``integers_of_file`` or ``integers_of_module``.
        simulated: ``quantization.simulate`` of ``module``.
        module: the folded network.
        quantization: of both.
        normalised: the images, as the module takes them.
    """
    for name, source in _sources(module).items():
        if name in quantization.activations:
            unit = simulated.get_submodule(name)
            if source in quantization.activations:
                wanted = _in_steps(unit, unit, integers[source] * quantization.activations[source].scale)
            else:  # the last of the float layers, which lead from the images on
                wanted = _in_steps(simulated, unit, normalised)
            yield Stage(name, wanted, integers[name])


@torch.no_grad()
def _in_steps(run: nn.Module, unit: nn.Module, x: Tensor) -> Tensor:
    """What a unit of the simulator is about to round, while ``run`` computes."""
    rounding: Any = getattr(unit, "act", unit)
    caught: list[Tensor] = []
    handle = rounding.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    try:
        run(x)
    finally:
        handle.remove()
    return rounding.in_steps(caught[0])


def _sources(module: nn.Module) -> dict[str, str]:
    """Activation to the one that it is made from, pooling included, in the order of the network."""
    sources = dict(layer_inputs(module))
    order: dict[str, str] = {}
    for node in fx.symbolic_trace(module).graph.nodes:
        if node.op != "call_module":
            continue
        target = str(node.target)
        if isinstance(module.get_submodule(target), nn.AdaptiveAvgPool2d):
            order[target] = str(node.args[0].target).removesuffix(".act")
        elif (layer := target.removesuffix(".conv")) in sources:
            order[layer] = sources[layer]
    return order
