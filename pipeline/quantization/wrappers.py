"""Quantisation-aware wrapping of a network by NNI, which owns the wrappers, targets and scales.

Inside those wrappers NNI runs functions of this file, through its own registries, because its own cost a
second convolution per layer, a dozen passes over every activation, and scales that lag behind the weights.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.layers import CLIPPING
from pipeline.nni_edge import QATQuantizer, QuantizationSetting, apply_method, fuse_modules, quiet
from pipeline.quantization.grid import LEAST_STEP_RATIO

# Quantisation-aware training. What follows until `QuantizationAware` runs inside NNI's wrappers.

WEIGHT_DTYPES = {127: "int8", 63: "int7"}
"""Greatest integer weight to NNI's name; its signed types are symmetric, so int7 is -63..63."""
ROUND = "distillery_round"
LEARNED = "_log_step"
"""Ending of the parameter that holds a learned step."""
RANGE_SHARE = 0.01
"""Weight of a new batch in the moving average of an activation's greatest value, as in NNI."""


class _RoundToGrid(torch.autograd.Function):
    """Round to a grid with zero point 0; gradients pass where nothing was clipped (Jacob et al. 2018).

    With a least integer of 0 this is the ReLU too, in value and in gradient. A step that is learned gets the
    gradient of LSQ, scaled by 1 / sqrt(values of one image or channel, times the greatest integer)
    (Esser et al. 2020, https://arxiv.org/abs/1902.08153).
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, least: int, greatest: int) -> Tensor:
        rounded = values.div(scale).round_().clamp_(least, greatest).mul_(scale)
        ctx.save_for_backward(values, scale, *([rounded] if ctx.needs_input_grad[1] else []))
        ctx.limits = least and least - 0.5, greatest + 0.5
        ctx.damping = math.sqrt(values[0].numel() * greatest) if ctx.needs_input_grad[1] else 1.0
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        values, scale, *rounded = ctx.saved_tensors
        original = values
        least, greatest = ctx.limits
        # Hardtanh's derivative is one fused pass, where a mask would be three. Its limits are plain numbers,
        # which only a CPU gives away without waiting for the device.
        if scale.dim() == 0 and scale.device.type == "cpu":
            step = float(scale)
            least, greatest = least * step, greatest * step
        else:
            values = values.div(scale)
        within = torch.ops.aten.hardtanh_backward(gradients[0], values, least, greatest)
        if not rounded:
            return within, None, None, None
        # Of a step s: (rounded - value) / s within the limits, rounded / s beyond them.
        pull = (gradients[0] * rounded[0]).addcmul_(within, original, value=-1)
        pull = pull.sum() if scale.dim() == 0 else pull.sum(dim=tuple(range(1, pull.dim())), keepdim=True)
        return within, pull.div_(scale * ctx.damping), None, None


def _round(values: Tensor, target: Any) -> Tensor:
    return _RoundToGrid.apply(values, _step(target), target.qmin, target.qmax)


def _step(target: Any) -> Tensor:
    """The step of a tensor: the one that follows its range, or the one that is learned, as its logarithm.

    So it stays positive, and one learning rate moves steps of any size by the same share.
    """
    part = target._wrapper
    logarithm: Tensor | None = getattr(part, target._target_name + LEARNED, None)
    if logarithm is None:
        return target.scale
    if target._scaler is None:
        return logarithm.clamp(max=math.log(part.clips_at / target.qmax)).exp()
    step = logarithm.exp().view_as(target.scale)
    return torch.maximum(step, step.detach().amax() * LEAST_STEP_RATIO)


def _track(part: Any, name: str, values: Any) -> None:
    """Keep the greatest magnitude: of a weight's channels as it is, of an activation on average."""
    if not part.training or name not in part.quantization_target_spaces:
        return
    target = part.quantization_target_spaces[name]
    values = values.detach()
    if target._scaler is not None:
        greatest = values.abs().amax(dim=tuple(range(1, values.dim())), keepdim=True)
        greatest = torch.maximum(greatest, greatest.amax() * LEAST_STEP_RATIO)
        target.tracked_min, target.tracked_max = -greatest, greatest
        return
    greatest = values.amax().clamp_(0, part.clips_at)
    if target.tracked_max is None:
        target.tracked_min, target.tracked_max = torch.zeros_like(greatest), greatest
    else:
        reached = (greatest * part.range_kept).clamp_(max=part.clips_at)
        target.tracked_max.lerp_(reached, RANGE_SHARE)


def _track_moments(part: Any, name: str, values: Any) -> None:
    """Update running moments from the folded convolution's own output, undoing the fold channel by channel.

    NNI runs every convolution twice for this. The output here is also that of the rounded weights, so the
    running mean absorbs the bias that rounding brings.
    """
    if name != "_output_0" or not part.training or not part.fused_modules:
        return
    norm = part.fused_modules[1]
    if not norm.training or norm.momentum == 0.0:
        return
    with torch.no_grad():
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        mean, variance = norm.bias.clone(), norm.running_var * gain.square()
        torch.batch_norm_update_stats(values.detach(), mean, variance, norm.momentum)
        alive = gain.abs() > torch.finfo(gain.dtype).eps  # a vanished gain says nothing of what it multiplied
        safe = torch.where(alive, gain, 1.0)
        norm.running_mean.add_(torch.where(alive, (mean - norm.bias) / safe, 0.0))
        norm.running_var.copy_(torch.where(alive, variance / safe.square(), norm.running_var))


def _fold(
    part: Any, fused: Sequence[nn.Module], parameters: Mapping[str, Tensor], *_inputs: Tensor
) -> tuple[dict[str, Tensor], list[nn.Module]]:
    """Weight and bias of convolution and batch norm as one, from the running moments."""
    norm = fused[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = part.weight * gain.view(-1, 1, 1, 1)
    # A copy, because the moments change in place before the backward pass reads them.
    bias = norm.bias - norm.running_mean.clone() * gain
    return {**parameters, "weight": weight, "bias": bias}, []


def _leave(values: Tensor) -> Tensor:
    return values


apply_method.quant_apply_methods[ROUND] = _round
fuse_modules._DEFAULT_OP_LIST_TO_FUSER_METHOD[(nn.Conv2d, nn.BatchNorm2d)] = _fold
QuantizationSetting.register("AdaptiveAvgPool2d", QuantizationSetting.activation_setting)


@dataclass(frozen=True)
class QuantizationAware:
    """A network under NNI's wrappers, which rounds weights and activations wherever it is told to."""

    module: nn.Module
    """Trained by an ordinary loop; its state dict holds ranges and scales."""
    quantizer: QATQuantizer

    def target(self, path: str, name: str) -> Any:
        """NNI's record of one tensor that is rounded."""
        return self.quantizer._target_spaces[path][name]

    def scale(self, path: str, name: str) -> Tensor:
        """Present step of a tensor, in NNI's shape."""
        return _step(self.target(path, name)).detach()

    @torch.no_grad()
    def parameters(self, path: str) -> tuple[Tensor, Tensor]:
        """Weight and bias with which the layer computes at this moment: folded and, if told so, rounded."""
        part: Any = self.quantizer._module_wrappers[path]
        parameters = {"weight": part.weight, "bias": part.module.bias}
        if part.fused_modules:
            parameters, _ = _fold(part, part.fused_modules, parameters)
        target = self.target(path, "weight")
        if target.apply_method == ROUND:
            parameters["weight"] = _round(parameters["weight"], target)
        return parameters["weight"].clone(), parameters["bias"].clone()


def wrap(
    module: nn.Module,
    *,
    norms: Mapping[str, str | None],
    rounded: Iterable[str],
    outputs: Mapping[str, float],
    weight_limit: int,
    batches: Iterable[Float[Tensor, "batch 3 height width"]],
    shares: Mapping[str, Float[Tensor, " channels"]] | None = None,
) -> QuantizationAware:
    """Wrap a copy of a network; the copy is in evaluation mode.

    Args:
        module: a network with batch norms that follow a convolution directly.
        norms: every layer with weights, as module path, to the batch norm that is folded into it.
        rounded: layers whose weights are rounded; the others are folded only.
        outputs: modules whose output, which must not be negative, is rounded, to the step to start from.
        weight_limit: 127 or 63.
        batches: images that show the usual greatest value of each output; the step's ratio to it is kept.
        shares: rounded layer to the share of each channel's range that its step starts from; from there all
            steps are learned. Without, weights span their whole range and outputs follow theirs.
    """
    subject = copy.deepcopy(module).eval()
    rounded = frozenset(rounded)
    for path, norm in norms.items():
        if norm is not None:
            # A parameter of None would refuse the folded bias; as a plain attribute it takes it.
            layer: Any = subject.get_submodule(path)
            del layer.bias
            layer.bias = None
    weight = {
        "target_names": ["weight"],
        "quant_dtype": WEIGHT_DTYPES[weight_limit],
        "quant_scheme": "symmetric",
        "granularity": "out_channel",
    }
    output = {
        "op_names": list(outputs),
        "target_names": ["_output_"],
        "quant_dtype": "uint8",
        "quant_scheme": "affine",
    }
    entries = [
        {"op_names": [path], **weight, **({} if norm is None else {"fuse_names": [(path, norm)]})}
        for path, norm in norms.items()
    ]
    with quiet():
        # NNI types a training loop as required; it is used by NNI's own compress() alone.
        quantizer = QATQuantizer(subject, [*entries, output], cast(Any, None))
    wrappers: dict[str, Any] = dict(quantizer._module_wrappers)
    for path in norms:
        # NNI leaves the last used weight as a buffer, with its graph; it is no state, so it is no buffer.
        layer = subject.get_submodule(path)
        used = layer.weight
        del layer.weight
        layer.weight = used.detach()
    for path in quantizer._target_spaces:
        part = wrappers[path]
        part._track_funcs[:] = [_track, quantizer.update_scale_zp, _track_moments]
        for target in quantizer._target_spaces[path].values():
            target.apply_method = "bypass"
    _calibrate(quantizer, outputs, batches)
    for path, targets in quantizer._target_spaces.items():
        for target in targets.values():
            target.apply_method = ROUND if path in rounded or path in outputs else "bypass"
        if path in outputs and type(wrappers[path].module) in CLIPPING:
            wrappers[path].module_forward = _leave  # the rounding clips
        if shares is not None:
            wrappers[path]._track_funcs[:] = [_track_moments]
            for name, target in targets.items():
                if target.apply_method == ROUND:
                    scale: Any = target.scale
                    step = scale.flatten() * shares[path] if path in shares else scale
                    wrappers[path].register_parameter(name + LEARNED, nn.Parameter(step.log()))
    return QuantizationAware(subject, quantizer)


@torch.no_grad()
def _calibrate(
    quantizer: QATQuantizer,
    outputs: Mapping[str, float],
    batches: Iterable[Float[Tensor, "batch 3 height width"]],
) -> None:
    """Set every range and scale; a range's ratio to the usual greatest value becomes part of the state."""
    parts: dict[str, Any] = {path: quantizer._module_wrappers[path] for path in quantizer._target_spaces}
    device = next(quantizer.bound_model.parameters()).device
    for part in parts.values():
        part.training = True  # the wrapper alone: batch norms and dropout stay in evaluation mode
        part.register_buffer("range_kept", torch.ones((), device=device))
        part.clips_at = CLIPPING.get(type(part.module), float("inf"))
    seen: dict[str, list[Tensor]] = {path: [] for path in outputs}
    for batch in batches:
        for path in outputs:
            parts[path]._output_0_tracked_max = None
        quantizer.bound_model(batch.to(device))
        for path in outputs:
            seen[path].append(parts[path]._output_0_tracked_max)
    for path, scale in outputs.items():
        target: Any = parts[path].quantization_target_spaces["_output_0"]
        reached = torch.full_like(target.tracked_max, scale * (target.qmax - target.qmin))
        parts[path].range_kept.copy_(reached / torch.stack(seen[path]).mean())
        target.tracked_max, target.scale = reached, torch.full_like(reached, scale)
    for part in parts.values():
        part.training = False
