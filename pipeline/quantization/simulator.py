"""Eight-bit arithmetic for students: batch norm folding, steps and ranges, and a simulator of the runtime.

A layer is a convolution's unit (``stem``, ``blocks.3.pointwise``) or the classifier. Weights are signed and
symmetric with one step per output channel, activations unsigned with one scale per tensor (Krishnamoorthi
2018, https://arxiv.org/abs/1806.08342).
"""

import copy
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, fx, nn

import students
from pipeline.models.storage import Affine, Quantization

Batches = Callable[[], Iterable[Float[Tensor, "batch 3 height width"]]]
"""Opens the same normalised calibration images anew at every call."""

IMAGES = "images"
"""Name of the network's input among the activations."""
RAW_PIXELS = Affine(1 / 255, 0)
"""Bytes of an image as they are; scale and zero point at which no rounding happens at all."""
WEIGHT_LIMITS = (127, 63)
"""All of int8; or seven bits, so that a sum of two products fits the 16 bits of ``vpmaddubsw``."""

LEVELS = 255
WEIGHT_RATIOS = torch.logspace(0, math.log10(0.5), 55).tolist()
ACTIVATION_RATIOS = torch.logspace(0, -1, 181).tolist()
"""Shares of the full range that are tried, in steps of 1.3 %; activations have the longer tails."""
BINS = 4096
"""Of a histogram; 16 for each of the 256 levels."""
LEAST_STEP_RATIO = 2.0**-12
CORRECTION_IMAGES = 64
"""Held in memory at once, activations included."""

CLIPPING: dict[type[nn.Module], float] = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}
"""Activations that uint8 rounding with zero point 0 does by itself, and where they saturate."""


def fold_batch_norm(
    module: nn.Module, architecture: str, arguments: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The same function without batch norms, and the arguments that build it; on the CPU, for evaluation.

    The statistics are those of evaluation, so the module that came in is left as it was and need not
    be in evaluation mode.
    """
    folded_arguments = {**arguments, "norm": False}
    folded = students.build(architecture, folded_arguments)
    tensors = {name: value.cpu() for name, value in module.state_dict().items()}
    for name, norm in module.named_modules():
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        conv = name.removesuffix("norm") + "conv"
        mean, variance = tensors[f"{name}.running_mean"].double(), tensors[f"{name}.running_var"].double()
        gain = tensors[f"{name}.weight"].double() / (variance + norm.eps).sqrt()
        bias = tensors.get(f"{conv}.bias", torch.zeros_like(mean)).double()
        shifted = (bias - mean) * gain + tensors[f"{name}.bias"].double()
        weight = tensors[f"{conv}.weight"]
        tensors[f"{conv}.weight"] = (weight.double() * gain.view(-1, 1, 1, 1)).to(weight.dtype)
        tensors[f"{conv}.bias"] = shifted.to(weight.dtype)
        for key in norm.state_dict():
            del tensors[f"{name}.{key}"]
    folded.load_state_dict(tensors)
    return folded.eval(), folded_arguments


def layers(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every layer that has weights, by name, in the order of definition."""
    return {
        name.removesuffix(".conv"): part
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    }


def is_depthwise(part: nn.Module) -> bool:
    """Whether each channel is convolved for itself."""
    return isinstance(part, nn.Conv2d) and part.groups == part.in_channels == part.out_channels > 1


def layer_inputs(module: nn.Module) -> dict[str, str]:
    """Layer to the activation that it reads: ``images``, another layer's output, or ``pool``.

    Raises:
        ValueError: a layer reads something else, such as the sum of two activations.
    """
    carried: dict[fx.Node, str] = {}
    inputs: dict[str, str] = {}
    for node in fx.symbolic_trace(module).graph.nodes:
        if node.op == "placeholder":
            carried[node] = IMAGES
        elif node.op == "call_module":
            part, target = module.get_submodule(node.target), str(node.target)
            source = node.args[0]
            if isinstance(part, nn.Conv2d | nn.Linear):
                if source not in carried:
                    raise ValueError(f"layer {target} reads {source}, which is no activation with one scale")
                inputs[target.removesuffix(".conv")] = carried[source]
            elif isinstance(part, tuple(CLIPPING)):
                carried[node] = target.removesuffix(".act")
            elif isinstance(part, nn.AdaptiveAvgPool2d):
                carried[node] = target
            elif source in carried:
                carried[node] = carried[source]
    return inputs


def int8_activations(module: nn.Module, float_layers: Collection[str]) -> tuple[str, ...]:
    """Activations that an int8 layer reads or writes, in order; logits are never among them.

    Raises:
        ValueError: a float layer does not exist.
    """
    inputs = layer_inputs(module)
    if unknown := [name for name in float_layers if name not in inputs]:
        raise ValueError(f"float layers {unknown} do not exist; the layers are {list(inputs)}")
    whole = [name for name in inputs if name not in float_layers]
    written = [name for name in whole if isinstance(layers(module)[name], nn.Conv2d)]
    return tuple(dict.fromkeys(itertools.chain((inputs[name] for name in whole), written)))


def weight_scales(
    module: nn.Module, weight_limit: int, float_layers: Collection[str] = (), *, search: bool = True
) -> dict[str, Float[Tensor, " channels"]]:
    """Each output channel's step of least squared error, by search over the share of its range that is kept.

    Without the search a step spans the whole range. No step is less than 2^-12 of the layer's greatest: a
    channel whose weights all but vanish would need a bias of more than 32 bits.

    Raises:
        ValueError: the limit is neither 127 nor 63.
    """
    if weight_limit not in WEIGHT_LIMITS:
        raise ValueError(f"weight_limit is {weight_limit}; allowed are {WEIGHT_LIMITS}")
    ratios = WEIGHT_RATIOS if search else WEIGHT_RATIOS[:1]
    return {
        name: _least_squares_steps(layer.weight.detach().flatten(1), weight_limit, ratios)
        for name, layer in layers(module).items()
        if name not in float_layers
    }


def _least_squares_steps(
    weight: Float[Tensor, "channels fan_in"], limit: int, ratios: Iterable[float]
) -> Float[Tensor, " channels"]:
    full = weight.abs().amax(dim=1, keepdim=True) / limit
    full = full.clamp_min(torch.finfo(weight.dtype).tiny)
    best, best_error = full, torch.full_like(full, float("inf"))
    for ratio in ratios:
        step = full * ratio
        rounded = (weight / step).round().clamp(-limit, limit) * step
        error = (weight - rounded).square().sum(dim=1, keepdim=True)
        best = torch.where(error < best_error, step, best)
        best_error = torch.minimum(error, best_error)
    return best.squeeze(1).clamp_min(best.max().item() * LEAST_STEP_RATIO)


def bake(module: nn.Module, scales: Mapping[str, Float[Tensor, " channels"]], weight_limit: int) -> nn.Module:
    """A copy of a folded module whose weights lie on the grid; layers without steps are untouched."""
    baked = copy.deepcopy(module)
    for name, layer in layers(baked).items():
        if name in scales:
            integers = integer_weight(layer.weight.detach(), scales[name], weight_limit)
            step = scales[name].to(layer.weight).view(-1, *[1] * (layer.weight.dim() - 1))
            layer.weight = nn.Parameter(integers * step, requires_grad=layer.weight.requires_grad)
    return baked


def integer_weight(weight: Tensor, scale: Float[Tensor, " channels"], limit: int) -> Tensor:
    """A layer's weights as whole numbers of at most ``limit``, in the weight's own type and shape."""
    step = scale.to(weight).view(-1, *[1] * (weight.dim() - 1))
    return (weight / step).round().clamp(-limit, limit)


def integer_bias(
    bias: Float[Tensor, " channels"], input_scale: float, scale: Float[Tensor, " channels"]
) -> Int64[Tensor, " channels"]:
    """A layer's bias in steps of its products: the input's scale times the channel's weight step.

    Raises:
        ValueError: a bias does not fit 32 bits.
    """
    integers = (bias.detach().double() / product_scale(input_scale, scale).double()).round()
    if integers.abs().max() >= 2**31:
        channel = int(integers.abs().argmax())
        raise ValueError(
            f"bias {float(bias[channel]):.3g} of channel {channel} is {float(integers[channel]):.3g} steps "
            f"of {input_scale:.3g} x {float(scale[channel]):.3g}; an int32 bias holds fewer than 2^31"
        )
    return integers.long()


def product_scale(input_scale: float, scale: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """The step of a layer's integer sums, as the runtime multiplies it: in single precision."""
    return torch.tensor(input_scale, dtype=torch.float32, device=scale.device) * scale.float()


@dataclass(frozen=True)
class Histogram:
    """The positive values of an activation over all calibration images; zeros are exact at any scale."""

    counts: Float[Tensor, " bins"]
    greatest: float
    """Where the last bin ends; the first begins at 0."""

    @property
    def centres(self) -> Float[Tensor, " bins"]:
        """The middle of each bin."""
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * (self.greatest / BINS)


Clip = Callable[[Histogram], float]
"""Chooses the value that an activation's greatest integer stands for."""


def activation_ranges(
    module: nn.Module, batches: Batches, float_layers: Collection[str] = ()
) -> dict[str, Affine]:
    """The scale of every activation that is quantised, by least expected squared error.

    Raises:
        ValueError: as ``activation_histograms``.
    """
    histograms = activation_histograms(module, batches, float_layers)
    return ranges(module, histograms, float_layers, least_squares_clip)


def ranges(
    module: nn.Module, histograms: Mapping[str, Histogram], float_layers: Collection[str], clip: Clip
) -> dict[str, Affine]:
    """The scale of every activation that is quantised.

    Ranges start at 0 with zero point 0, since every activation follows a ReLU. ``images`` keeps raw bytes.
    """
    return {
        name: RAW_PIXELS if name == IMAGES else Affine(clip(histograms[name]) / LEVELS, 0)
        for name in int8_activations(module, float_layers)
    }


@torch.no_grad()
def activation_histograms(
    module: nn.Module, batches: Batches, float_layers: Collection[str] = ()
) -> dict[str, Histogram]:
    """The values of every activation that is quantised, but ``images``.

    Goes through the calibration images twice, once for the greatest value of each activation and once for
    its histogram, so memory does not grow with their number.

    Raises:
        ValueError: there are no images, or an activation is negative or never positive.
    """
    observed = [name for name in int8_activations(module, float_layers) if name != IMAGES]
    greatest = dict.fromkeys(observed, 0.0)
    least = dict.fromkeys(observed, 0.0)

    def widen(name: str, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        least[name], greatest[name] = min(least[name], float(low)), max(greatest[name], float(high))

    if not observe(module, batches, observed, widen):
        raise ValueError("there are no calibration images; at least one is needed")
    for name in observed:
        if least[name] < 0 or greatest[name] <= 0:
            raise ValueError(
                f"activation {name} ranges from {least[name]:.3g} to {greatest[name]:.3g}; "
                "an activation must follow a ReLU and be positive somewhere"
            )
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in observed}

    def count(name: str, values: Tensor) -> None:
        counts[name] += torch.histc(values.float().cpu(), BINS, 0, greatest[name]).double()
        counts[name][0] -= int((values == 0).sum())

    observe(module, batches, observed, count)
    return {name: Histogram(counts[name], greatest[name]) for name in observed}


def observe(
    module: nn.Module, batches: Batches, names: Collection[str], see: Callable[[str, Tensor], None]
) -> int:
    """Show every named activation of every batch; returns the number of batches."""
    device = next(module.parameters()).device
    hooks = []
    for name in names:
        part = module.get_submodule(name)
        part = getattr(part, "act", part)

        def hook(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            see(name, output)

        hooks.append(part.register_forward_hook(hook))
    seen = 0
    try:
        for batch in batches():
            module(batch.to(device))
            seen += 1
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def least_squares_clip(histogram: Histogram) -> float:
    """The clip of least expected squared error, by search over the share of the range that is kept."""
    centres = histogram.centres
    best, best_error = histogram.greatest, float("inf")
    for ratio in ACTIVATION_RATIOS:
        clip = histogram.greatest * ratio
        step = clip / LEVELS
        apart = centres - (centres / step).round().clamp(0, LEVELS) * step
        error = float((histogram.counts * apart.square()).sum())
        if error < best_error:
            best, best_error = clip, error
    return best


class Sums(nn.Module):
    """An int8 layer up to its 32-bit sums: reads real values on the input's grid, returns whole numbers.

    The numbers travel in single precision, which MobileNet's sums fit: up to 2^24 they are exact.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, read: Affine, scale: Tensor, limit: int) -> None:
        super().__init__()
        self.apply_weights = copy.deepcopy(layer)
        self.apply_weights.weight = nn.Parameter(integer_weight(layer.weight.detach(), scale, limit))
        bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
        self.apply_weights.bias = nn.Parameter(integer_bias(bias, read.scale, scale).to(layer.weight))
        self.input_scale = read.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_weights((x / self.input_scale).round_())


class _Rescaled(nn.Module):
    """Whole numbers to real ones by a factor per channel."""

    def __init__(self, factor: Float[Tensor, " channels"]) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: Float[Tensor, "batch channels"]) -> Float[Tensor, "batch channels"]:
        return x * self.get_buffer("factor")


class _Requantized(nn.Module):
    """Sums to real values on the output's grid; rounds half to even and saturates, which is the ReLU."""

    def __init__(self, factor: Float[Tensor, " channels"], written: Affine) -> None:
        super().__init__()
        self.register_buffer("factor", (factor / written.scale).view(-1, 1, 1))
        self.scale = written.scale

    def in_steps(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("factor")

    def forward(self, x: Tensor) -> Tensor:
        return self.in_steps(x).round_().clamp_(0, LEVELS).mul_(self.scale)


class _Rounded(nn.Module):
    """A float part whose output is brought to a grid."""

    def __init__(self, part: nn.Module, written: Affine) -> None:
        super().__init__()
        self.part = part
        self.scale = written.scale

    def in_steps(self, x: Tensor) -> Tensor:
        return self.part(x) / self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.in_steps(x).round_().clamp_(0, LEVELS).mul_(self.scale)


class _AveragedSums(nn.Module):
    """Global average of integers with one rounding at the end."""

    def __init__(self, read: Affine, written: Affine) -> None:
        super().__init__()
        self.read, self.written = read.scale, written.scale

    def in_steps(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels 1 1"]:
        sums = (x / self.read).round_().sum(dim=(2, 3), keepdim=True)
        return sums * (self.read / (self.written * x.shape[2] * x.shape[3]))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels 1 1"]:
        return self.in_steps(x).round_().clamp_(0, LEVELS).mul_(self.written)


def check(module: nn.Module, quantization: Quantization) -> None:
    """Check that a quantisation covers a folded module and that integers can do its activations.

    Raises:
        ValueError: steps or scales are missing or too many; a zero point is not 0; a scale reaches past
            the ReLU6 that it stands for; a weight is off the grid's limit.
    """
    expected = set(layers(module)) - set(quantization.float_layers)
    if set(quantization.weight_scales) != expected:
        raise ValueError(
            f"weight steps and int8 layers differ in {sorted(set(quantization.weight_scales) ^ expected)}"
        )
    needed = int8_activations(module, quantization.float_layers)
    if set(quantization.activations) != set(needed):
        raise ValueError(
            f"scales and int8 activations differ in {sorted(set(quantization.activations) ^ set(needed))}"
        )
    if quantization.activations.get(IMAGES, RAW_PIXELS) != RAW_PIXELS:
        raise ValueError(f"images have {quantization.activations[IMAGES]}; an int8 stem needs {RAW_PIXELS}")
    for name, affine in quantization.activations.items():
        if affine.zero_point != 0:
            raise ValueError(f"activation {name} has zero point {affine.zero_point}; after a ReLU it is 0")
        if name == IMAGES:
            continue
        act = getattr(module.get_submodule(name), "act", None)
        saturates = CLIPPING[type(act)] if act is not None else float("inf")
        if affine.scale * LEVELS > saturates * (1 + 1e-5):
            raise ValueError(
                f"activation {name} reaches {affine.scale * LEVELS:.4g}; its clip allows {saturates:g}"
            )


def leave_float(module: nn.Module, quantization: Quantization, layers: Collection[str]) -> Quantization:
    """The same quantisation of a folded module with these layers in float instead, and no others.

    Raises:
        ValueError: a layer does not exist.
    """
    scales = {name: step for name, step in quantization.weight_scales.items() if name not in layers}
    activations = {name: quantization.activations[name] for name in int8_activations(module, layers)}
    return Quantization(scales, quantization.weight_limit, activations, tuple(layers))


def simulate(module: nn.Module, quantization: Quantization) -> nn.Module:
    """The folded module with the runtime's own integer arithmetic, for normalised images.

    Products are summed as integers with an int32 bias, rescaled once in single precision, rounded half to
    even and clamped to 0..255, as ONNX Runtime's ``QLinearConv``, ``QGemm`` and
    ``QLinearGlobalAveragePool`` do. No gradient passes the rounding.

    Raises:
        ValueError: as ``check``, or a bias does not fit 32 bits.
    """
    check(module, quantization)
    simulated = copy.deepcopy(module).eval().requires_grad_(False)
    inputs = layer_inputs(module)
    scales = quantization.activations
    for name, layer in layers(module).items():
        unit = simulated.get_submodule(name)
        if name in quantization.weight_scales:
            step, read = quantization.weight_scales[name], scales[inputs[name]]
            sums = Sums(layer, read, step, quantization.weight_limit).requires_grad_(False)
            factor = product_scale(read.scale, step)
            if isinstance(layer, nn.Conv2d):
                unit.conv, unit.act = sums, _Requantized(factor, scales[name])
            else:
                simulated.set_submodule(name, nn.Sequential(sums, _Rescaled(factor)))
        elif name in scales:
            unit.act = _Rounded(unit.get_submodule("act"), scales[name])
    for node in fx.symbolic_trace(module).graph.nodes:
        if node.op == "call_module" and node.target in scales:
            source = str(node.args[0].target).removesuffix(".act")
            pool = module.get_submodule(node.target)
            if isinstance(pool, nn.AdaptiveAvgPool2d):
                written = scales[node.target]
                whole = source in scales
                stage = _AveragedSums(scales[source], written) if whole else _Rounded(pool, written)
                simulated.set_submodule(node.target, stage)
    return simulated.eval()


def fake_quantize(module: nn.Module, quantization: Quantization) -> nn.Module:
    """The folded module with its activations rounded and all else in floating point, for normalised images.

    With its weights on the grid this is what quantisation-aware training computes, and what other tools call
    fake quantisation: no integer sums, and no bias in whole steps.

    Raises:
        ValueError: as ``check``.
    """
    check(module, quantization)
    rounded = copy.deepcopy(module).eval().requires_grad_(False)
    for name, written in quantization.activations.items():
        if name != IMAGES:
            unit = rounded.get_submodule(name)
            place = f"{name}.act" if hasattr(unit, "act") else name
            rounded.set_submodule(place, _Rounded(getattr(unit, "act", unit), written))
    return rounded


@torch.no_grad()
def correct_biases(
    module: nn.Module,
    reference: nn.Module,
    quantization: Quantization,
    images: Float[Tensor, "batch 3 height width"],
) -> nn.Module:
    """A copy whose biases make each int8 layer's mean per channel that of the float reference.

    Both see the same images, and each layer is corrected before its output goes on, so that later layers
    see earlier corrections: empirical bias correction (Nagel et al. 2019,
    https://arxiv.org/abs/1906.04721) in one pass.
    """
    wanted: dict[str, Tensor] = {}
    handles = []
    for name, layer in layers(reference).items():

        def record(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            wanted[name] = _channel_means(output)

        handles.append(layer.register_forward_hook(record))
    try:
        reference(images)
    finally:
        for handle in handles:
            handle.remove()

    corrected = copy.deepcopy(module)
    targets = layers(corrected)
    inputs = layer_inputs(module)
    simulated = simulate(module, quantization)
    for name, scale in quantization.weight_scales.items():
        unit = simulated.get_submodule(name)
        sums = next(part for part in unit.modules() if isinstance(part, Sums))
        step = product_scale(quantization.activations[inputs[name]].scale, scale)

        def correct(
            _module: nn.Module,
            _inputs: Any,
            output: Tensor,
            name: str = name,
            step: Tensor = step,
            sums: Sums = sums,
        ) -> Tensor:
            error = (wanted[name].double() / step.double() - _channel_means(output)).round()
            bias = sums.apply_weights.bias
            assert bias is not None
            targets[name].bias = nn.Parameter(((bias + error) * step.double()).to(bias))
            return output + error.to(output).view(-1, *[1] * (output.dim() - 2))

        sums.register_forward_hook(correct)
    simulated(images)
    return corrected


def _channel_means(values: Tensor) -> Float[Tensor, " channels"]:
    return values.double().transpose(0, 1).flatten(1).mean(dim=1)
