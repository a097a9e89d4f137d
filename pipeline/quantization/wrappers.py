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
"""Greatest integer weight to NNI's name of the type; its signed types are symmetric, so int7 is -63..63."""
ROUND = "distillery_round"
"""Name of our rounding in NNI's registry of methods."""
LEARNED = "_log_step"
"""Suffix of the parameter that holds a learned step."""
RANGE_SHARE = 0.01
"""Weight of a new batch in the moving average of an activation's greatest value, as in NNI."""


class _RoundToGrid(torch.autograd.Function):
    """Rounds to a grid with zero point 0; gradients pass where nothing was clipped (Jacob et al. 2018).

    With a least integer of 0 this is also the ReLU, in value and in gradient. A step that is learned gets the
    gradient of LSQ, scaled by 1 / sqrt(n * greatest integer), where n is the number of values of one image or
    channel (Esser et al. 2020, https://arxiv.org/abs/1902.08153).
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
        # Hardtanh's derivative is one fused pass, where a mask would take three. Its limits are plain
        # numbers, which can be read without waiting for a device only on the CPU.
        if scale.dim() == 0 and scale.device.type == "cpu":
            step = float(scale)
            least, greatest = least * step, greatest * step
        else:
            values = values.div(scale)
        within = torch.ops.aten.hardtanh_backward(gradients[0], values, least, greatest)
        if not rounded:
            return within, None, None, None
        # The gradient of a step s: (rounded - value) / s within the limits, rounded / s beyond them.
        pull = (gradients[0] * rounded[0]).addcmul_(within, original, value=-1)
        pull = pull.sum() if scale.dim() == 0 else pull.sum(dim=tuple(range(1, pull.dim())), keepdim=True)
        return within, pull.div_(scale * ctx.damping), None, None


def _round(values: Tensor, target: Any) -> Tensor:
    """Round a tensor to its grid.

    This replaces NNI's ``qat_clamp_round``. NNI's takes a dozen passes over every activation, with masks
    for the gradient; its LSQ rounding keeps a step itself as the parameter, which can become negative. Ours
    takes four passes in place and one in the gradient.
    """
    return _RoundToGrid.apply(values, _step(target), target.qmin, target.qmax)


def _step(target: Any) -> Tensor:
    """The step of a tensor, which follows its range or is learned.

    A learned step is kept as its logarithm, so it stays positive and one learning rate moves steps of any
    size by the same share.
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
    """Track the greatest magnitude of a weight's channels, or of an activation.

    This replaces NNI's ``track_min_max_val``. NNI takes moving averages of both. A weight's scale then lags
    behind the weight, which clips what has grown; here it is the present magnitude. An activation's range
    is a moving average as in NNI, but the least value is always 0, it never passes the clip of a ReLU6, and
    it keeps its ratio to the greatest value from calibration.
    """
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
    """Update a batch norm's running moments from the folded convolution's own output, undoing the fold.

    NNI's fold runs a second convolution with the plain weights in every forward pass, only for these
    moments. Here they follow from the output that is computed anyway, channel by channel. Since that is the
    output of the rounded weights, the running mean also absorbs the bias that rounding brings.
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
        # Where the gain has vanished, the output tells nothing about the values that it multiplied.
        alive = gain.abs() > torch.finfo(gain.dtype).eps
        safe = torch.where(alive, gain, 1.0)
        norm.running_mean.add_(torch.where(alive, (mean - norm.bias) / safe, 0.0))
        norm.running_var.copy_(torch.where(alive, variance / safe.square(), norm.running_var))


def _fold(
    part: Any, fused: Sequence[nn.Module], parameters: Mapping[str, Tensor], *_inputs: Tensor
) -> tuple[dict[str, Tensor], list[nn.Module]]:
    """Weight and bias of a convolution and its batch norm as one, from the running moments.

    This replaces NNI's ``fuse_conv_bn``, which runs the convolution once more to update the batch norm; see
    ``_track_moments``.
    """
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


# NNI looks up the rounding of a tensor by name. Ours is one more entry; see `_round`.
apply_method.quant_apply_methods[ROUND] = _round
# NNI looks up the fold by the types of the modules. Ours replaces its entry; see `_fold`.
fuse_modules._DEFAULT_OP_LIST_TO_FUSER_METHOD[(nn.Conv2d, nn.BatchNorm2d)] = _fold
# NNI has no setting for global average pooling and would not wrap it, but the runtime rounds its output.
QuantizationSetting.register("AdaptiveAvgPool2d", QuantizationSetting.activation_setting)


@dataclass(frozen=True)
class QuantizationAware:
    """A network under NNI's wrappers, which round the selected weights and activations."""

    module: nn.Module
    """Trains in an ordinary loop; its state dict contains the ranges and scales."""
    quantizer: QATQuantizer

    def target(self, path: str, name: str) -> Any:
        """NNI's record of one tensor that is rounded."""
        return self.quantizer._target_spaces[path][name]

    def scale(self, path: str, name: str) -> Tensor:
        """The present step of a tensor, in NNI's shape."""
        return _step(self.target(path, name)).detach()

    @torch.no_grad()
    def parameters(self, path: str) -> tuple[Tensor, Tensor]:
        """The present weight and bias of a layer: folded, and rounded if the layer's weights are rounded."""
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
        module: a network with batch norms that follow a convolution directly. norms: module path of every
        layer with weights to the path of the batch norm that is folded into it. rounded: paths of the
        layers whose weights are rounded; the others are only folded. outputs: path of each module whose
        output is rounded, to the step to start from; such an output must not
            be negative.
        weight_limit: 127 or 63. batches: images for the usual greatest value of each output; the step keeps
        its ratio to that value. shares: path of each rounded layer to the shares of its channels' ranges
        from which the steps start; all
            steps are then learned. Without shares, steps follow the ranges of weights and outputs.
    """
    subject = copy.deepcopy(module).eval()
    rounded = frozenset(rounded)
    for path, norm in norms.items():
        if norm is not None:
            # NNI assigns the folded bias as a tensor, which a registered parameter, even None, rejects. A
            # plain attribute takes it.
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
        # NNI's types demand a training loop, but only NNI's own compress() uses it.
        quantizer = QATQuantizer(subject, [*entries, output], cast(Any, None))
    wrappers: dict[str, Any] = dict(quantizer._module_wrappers)
    for path in norms:
        # NNI registers the weight of the last forward pass as a buffer, so state dicts would hold it a second
        # time and copies would fail on its graph. It is not state; a plain attribute does.
        layer = subject.get_submodule(path)
        used = layer.weight
        del layer.weight
        layer.weight = used.detach()
    for path in quantizer._target_spaces:
        part = wrappers[path]
        # NNI tracks shapes, and ranges by `track_min_max_val`; see `_track` for the difference.
        part._track_funcs[:] = [_track, quantizer.update_scale_zp, _track_moments]
        for target in quantizer._target_spaces[path].values():
            target.apply_method = "bypass"
    _calibrate(quantizer, outputs, batches)
    for path, targets in quantizer._target_spaces.items():
        for target in targets.values():
            target.apply_method = ROUND if path in rounded or path in outputs else "bypass"
        if path in outputs and type(wrappers[path].module) in CLIPPING:
            wrappers[path].module_forward = _leave  # Rounding clips as the activation does.
        if shares is not None:
            # Learned steps do not follow ranges, so only the moments are tracked.
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
    """Set every range and scale, and store each range's ratio to the usual greatest value."""
    parts: dict[str, Any] = {path: quantizer._module_wrappers[path] for path in quantizer._target_spaces}
    device = next(quantizer.bound_model.parameters()).device
    for part in parts.values():
        part.training = True  # Only the wrapper: batch norms and dropout stay in evaluation mode.
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
        usual = torch.stack(seen[path]).mean()
        # An activation that no image wakes has no usual value.
        parts[path].range_kept.copy_(torch.where(usual > 0, reached / usual, 1.0))
        target.tracked_max, target.scale = reached, torch.full_like(reached, scale)
    for part in parts.values():
        part.training = False
