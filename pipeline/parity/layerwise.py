"""The integers inside an int8 network, layer by layer, against the simulator's arithmetic."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from jaxtyping import Bool, Float, Num, UInt8
from onnx import TensorProto, helper
from torch import Tensor, nn

from pipeline.models.layers import IMAGES, Network
from pipeline.models.storage import Quantization
from pipeline.onnx.graph import LOGITS
from pipeline.onnx.sessions import open_session
from pipeline.quantization.grid import LEVELS, integer_bias, product_scale

TIE = 1e-3
"""Greatest distance of a tie from the middle between two steps, in steps; the greatest that occurred is
2e-4."""
LOGIT_DRIFT = 1e-5
"""Greatest difference of logits that are computed from the same integers, as a share of the greatest one."""
NOISE = 8.0
"""Greatest distance of floating-point sums in two orders, in units of the greatest distance that single
precision moves such sums from double precision. It is more than ``TIE`` and the drifts allow where great
terms cancel, or where the range of an activation is small beside its terms."""


@dataclass(frozen=True)
class Stage:
    """One quantised activation, computed from the integers that the other network read.

    Differences of earlier activations therefore do not add up.
    """

    name: str
    reference: Float[Tensor, "batch channels *pixels"]
    """The simulator's value in steps, before it is rounded and clamped."""
    integers: Num[Tensor, "batch channels *pixels_of_the_other"]
    """The integers of the other network, whose map has another size if its padding is wrong."""
    slack: Float[Tensor, " channels"] | None = None
    """Distance in steps by which the other network's value may differ for known reasons: its sums are of
    floating-point numbers, or its biases are not rounded. None where both networks add integers."""

    def fits(self) -> bool:
        """Whether the other network's map has the size of the simulator's."""
        return self.reference.shape == self.integers.shape

    def steps(self) -> Float[Tensor, "batch channels *pixels"]:
        """Number of steps between the simulator's integers and the other's."""
        return (self.reference.round().clamp(0, LEVELS) - self.integers).abs()

    def beyond_half(self) -> Float[Tensor, "batch channels *pixels"]:
        """Distance in steps, beyond half a step, between a value and the integer that the other made of it.

        Apart from the slack, only the last bits of a product in single precision can bring this above 0.
        """
        beyond = (self.reference.clamp(0, LEVELS) - self.integers).abs() - 0.5
        return beyond if self.slack is None else beyond - self.slack.view(-1, *[1] * (beyond.dim() - 2))

    def wrong(self) -> Bool[Tensor, "batch channels *pixels"]:
        """Which integers are neither the simulator's nor those of a tie; NaN is wrong."""
        return (self.steps() != 0) & ~(self.beyond_half() <= TIE)


def answers(session: ort.InferenceSession, images: UInt8[Tensor, "batch height width 3"]) -> np.ndarray:
    """The logits of a session."""
    return np.asarray(session.run([LOGITS], {IMAGES: images.numpy()})[0])


def integers_of_file(
    path: Path,
    network: Network,
    images: UInt8[Tensor, "batch height width 3"],
    level: ort.GraphOptimizationLevel,
) -> dict[str, Tensor]:
    """Quantised activations of a network's file, by name, as ONNX Runtime computes them; and ``logits``."""
    written = {
        name.removesuffix(".integers").removesuffix(".sums"): name
        for node in onnx.load(path).graph.node
        for name in node.output
        if name.endswith(".integers")
    }
    outputs = _run(path, images, level, written, TensorProto.UINT8)
    for name, part in network.parts.items():
        if name in outputs:
            outputs[name] = outputs[name][:, : len(part.weight)]  # Channels that fill up a kernel hold zeros.
    return outputs


@torch.no_grad()
def integers_of_module(
    module: nn.Module,
    network: Network,
    quantization: Quantization,
    normalised: Float[Tensor, "batch 3 height width"],
) -> dict[str, Tensor]:
    """Quantised activations of a module that rounds them, by name, and ``logits``.

    Args:
        module: the module, in the shape of ``network``.
        network: the folded network.
        quantization: the scales of both.
        normalised: the images, as the module takes them.
    """
    scales = {name: scale for name, scale in quantization.activation_scales.items() if name != IMAGES}
    outputs = outputs_of_module(module, network, list(scales), normalised)
    integers = {name: (outputs[name] / scale).round() for name, scale in scales.items()}
    return {**integers, LOGITS: outputs[LOGITS]}


def outputs_of_file(
    path: Path,
    names: Sequence[str],
    images: UInt8[Tensor, "batch height width 3"],
    level: ort.GraphOptimizationLevel,
) -> dict[str, Tensor]:
    """Outputs of the named layers of a float file after their activation, in ONNX Runtime, and ``logits``, in
    single precision."""
    stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    kind = TensorProto.FLOAT16 if TensorProto.FLOAT16 in stored else TensorProto.FLOAT
    outputs = _run(path, images, level, {name: name for name in names}, kind)
    return {name: output.float() for name, output in outputs.items()}


@torch.no_grad()
def outputs_of_module(
    module: nn.Module,
    network: Network,
    names: Sequence[str],
    normalised: Float[Tensor, "batch 3 height width"],
) -> dict[str, Tensor]:
    """The named activations of a module in the shape of ``network``, and ``logits``."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            outputs[name] = output

        handles.append(module.get_submodule(network.output(name)).register_forward_hook(keep))
    try:
        outputs[LOGITS] = module(normalised)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _run(
    path: Path,
    images: UInt8[Tensor, "batch height width 3"],
    level: ort.GraphOptimizationLevel,
    tensors: Mapping[str, str],
    kind: int,
) -> dict[str, Tensor]:
    """Inner tensors of a file by name, and its logits."""
    file = onnx.load(path)
    for tensor in tensors.values():
        file.graph.output.append(helper.make_tensor_value_info(tensor, kind, None))
    session = open_session(file.SerializeToString(), level=level)
    arrays = session.run([*tensors.values(), LOGITS], {IMAGES: images.numpy()})
    return {name: torch.from_numpy(np.asarray(a)) for name, a in zip([*tensors, LOGITS], arrays, strict=True)}


def stages(
    integers: Mapping[str, Tensor],
    simulated: nn.Module,
    network: Network,
    quantization: Quantization,
    normalised: Float[Tensor, "batch 3 height width"],
    *,
    whole_sums: bool,
    whole_biases: bool = True,
) -> Iterator[Stage]:
    """Every quantised activation in the order of the network.

    Args:
        integers: the activations of another network, from ``integers_of_file`` or ``integers_of_module``.
        simulated: ``simulator.simulate`` of ``network``.
        network: the folded network.
        quantization: the steps and scales of both.
        normalised: the images, as the module takes them.
        whole_sums: whether the other network adds integers, like the simulator; otherwise it adds floats
            of the same grid, and what single precision loses of them is the slack.
        whole_biases: whether its biases are whole steps of its sums; otherwise what rounding them changes is
            added to the slack.
    """
    scales, module = quantization.activation_scales, network.module
    for name, source in network.reads.items():
        if name not in scales:
            continue
        slack = None
        if source in integers:
            steps = network.layers[name].steps if name in network.layers else (name,)
            read = integers[source] * scales[source]
        else:
            # The stem, or the last of the float layers, which lead from the images on.
            steps, read = network.steps[: network.steps.index(network.output(name)) + 1], normalised
        reference = _in_steps(simulated, steps, read)
        if not whole_biases and name in quantization.weight_scales:
            slack = _bias_error(network, quantization, name) / scales[name]
        stage = Stage(name, reference, integers[name], slack)
        if (source not in scales or not whole_sums) and stage.fits() and stage.wrong().any():
            # In double precision, which takes time, only where it matters.
            noise = NOISE * _noise(module, steps, read) / scales[name]
            stage = replace(stage, slack=noise if slack is None else slack + noise)
        yield stage


@dataclass(frozen=True)
class Comparison:
    """All integers of another network beside the simulator's."""

    wrong: float
    """Greatest share of an activation's integers that are wrong; see ``Stage.wrong``."""
    steps: float
    """Greatest number of steps between two integers, ties included."""
    divergence: str | None
    """The first layer with wrong values, in words; None if there is none."""


def compare(
    integers: Mapping[str, Tensor],
    simulated: nn.Module,
    network: Network,
    quantization: Quantization,
    normalised: Float[Tensor, "batch 3 height width"],
    *,
    whole_sums: bool,
    whole_biases: bool = True,
    whole_logits: bool = True,
) -> Comparison:
    """Compare all activations and the logits; see ``stages`` for the arguments.

    Without ``whole_logits``, the other network computes its logits in floating point from its last integers,
    whatever its other sums are.
    """
    share = steps = 0.0
    divergence = None
    sums = {"whole_sums": whole_sums, "whole_biases": whole_biases}
    for stage in stages(integers, simulated, network, quantization, normalised, **sums):
        if not stage.fits():
            divergence = divergence or shape_divergence(stage.name, stage.reference, stage.integers)
            break
        wrong, apart = stage.wrong(), float(stage.steps().max())
        share, steps = max(share, float(wrong.double().mean())), max(steps, apart)
        if divergence is None and wrong.any():
            divergence = (
                f"the first layer that diverges is {stage.name}, in {int(wrong.sum())} of {wrong.numel()} "
                f"integers, by up to {apart:g}"
            )
    if divergence is None:
        sums["whole_sums"] = whole_sums and whole_logits
        divergence = _logit_divergence(integers, simulated, network, quantization, normalised, **sums)
    return Comparison(share, steps, divergence)


@torch.no_grad()
def _logit_divergence(
    integers: Mapping[str, Tensor],
    simulated: nn.Module,
    network: Network,
    quantization: Quantization,
    normalised: Float[Tensor, "batch 3 height width"],
    *,
    whole_sums: bool,
    whole_biases: bool,
) -> str | None:
    """The head in words, if its logits are not those of the last integers; see ``stages``."""
    head, scales = network.head, quantization.activation_scales
    source = head.reads
    while source not in integers and source != IMAGES:  # past pools and layers in float
        source = network.reads[source]
    steps = network.steps[0 if source == IMAGES else network.steps.index(network.output(source)) + 1 :]
    read = normalised if source == IMAGES else integers[source] * scales[source]
    expected = nn.Sequential(*(simulated.get_submodule(path) for path in steps))(read)
    allowed = LOGIT_DRIFT * expected.abs().max()
    if head.name not in quantization.weight_scales or not whole_sums:
        allowed = allowed + NOISE * _noise(network.module, steps, read)
    if head.name in quantization.weight_scales and not whole_biases:
        allowed = allowed + _bias_error(network, quantization, head.name)
    apart = (expected - integers[LOGITS]).abs()
    if (apart <= allowed).all():
        return None
    return f"the first layer that diverges is {head.name}, by up to {float(apart.max()):.2g}"


def activations(network: Network) -> list[str]:
    """Names of the layers with an activation, in order: those whose outputs a float file has."""
    return [name for name, layer in network.layers.items() if layer.activation is not None]


def shape_divergence(name: str, expected: Tensor, actual: Tensor) -> str:
    """The divergence of a layer whose output has another shape, in words."""
    return (
        f"the first layer that diverges is {name}, whose output has the shape {list(actual.shape)} and not "
        f"{list(expected.shape)}"
    )


def _bias_error(network: Network, quantization: Quantization, name: str) -> Float[Tensor, " channels"]:
    """Error of a layer's biases when they are rounded to whole steps of its sums."""
    bias = network.part(name).bias
    step, read = quantization.weight_scales[name], quantization.activation_scales[network.layers[name].reads]
    if bias is None:
        return torch.zeros_like(step)
    whole = integer_bias(bias, read, step).double() * product_scale(read, step).double()
    return (bias.detach().double() - whole).abs().float()


@torch.no_grad()
def _noise(module: nn.Module, steps: Sequence[str], x: Tensor) -> Float[Tensor, " channels"]:
    """Greatest distance, by channel, of some modules' output in single precision from that in double.

    A single image may show less by luck; one rounding of the sum of the last layer's magnitudes is the least.
    """
    single, double, least = x, x.double(), torch.zeros(())
    for path in steps:
        part = module.get_submodule(path)
        if isinstance(part, nn.Conv2d | nn.Linear):
            magnitudes = copy.deepcopy(part)
            for parameter in magnitudes.parameters():
                parameter.abs_()
            least = torch.finfo(single.dtype).eps / 2 * _greatest(magnitudes(single.abs()))
        single, double = part(single), copy.deepcopy(part).double()(double)
    return torch.maximum(_greatest((single - double).abs().float()), least)


def _greatest(values: Float[Tensor, "batch channels *pixels"]) -> Float[Tensor, " channels"]:
    return values.transpose(0, 1).flatten(1).amax(dim=1)


@torch.no_grad()
def _in_steps(simulated: nn.Module, steps: Sequence[str], x: Tensor) -> Tensor:
    """The values that the last of some modules of the simulator, run one after another, is about to round."""
    *before, rounding = (simulated.get_submodule(path) for path in steps)
    for module in before:
        x = module(x)
    last: Any = rounding
    return last.in_steps(x)
