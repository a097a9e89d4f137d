"""Quantisation-aware wrapping of a network by NNI, which owns the wrappers, targets and scales.

Inside those wrappers NNI runs functions of this file, through its own registries, because its own cost a
dozen passes over every activation, and cannot start from integers that were chosen before.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.layers import CLIPPING
from pipeline.nni_edge import QATQuantizer, QuantizationSetting, apply_method, quiet
from pipeline.quantization.grid import LEAST_STEP_RATIO

# Quantisation-aware training. What follows until `QuantizationAware` runs inside NNI's wrappers.

WEIGHT_DTYPES = {127: "int8", 63: "int7", 7: "int4"}
"""Greatest integer weight to NNI's name of the type; its signed types are symmetric, so int7 is -63..63."""
ROUND, WEIGHT, BIAS = "distillery_round", "distillery_weight", "distillery_bias"
"""Names of our functions in NNI's registry of methods."""
LEARNED = "_log_step"
"""Suffix of the parameter that holds a learned step."""
ONE = torch.ones(())


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
    """Round an activation to its grid.

    This replaces NNI's ``qat_clamp_round``. NNI's takes a dozen passes over every activation, with masks
    for the gradient; its LSQ rounding keeps a step itself as the parameter, which can become negative. Ours
    takes four passes in place and one in the gradient.
    """
    return _RoundToGrid.apply(values, _step(target), target.qmin, target.qmax)


def _weight(values: Tensor, target: Any) -> Tensor:
    """The rounded weights of a layer, from weights in steps of their channels.

    Kept in steps, a weight moves by the same share of a step at one learning rate, whatever its layer and
    channel. In real numbers, steps of channels differ by a hundred times once batch norms are folded.
    """
    return _RoundToGrid.apply(values, ONE, target.qmin, target.qmax) * _step(target)


def _bias(values: Tensor, target: Any) -> Tensor:
    """The bias of a layer, from one in steps of its output; it is not rounded."""
    return values * target.scale


def _step(target: Any) -> Tensor:
    """The step of a tensor, which stays as it was or is learned.

    A learned step is kept as its logarithm, so it stays positive and one learning rate moves steps of any
    size by the same share.
    """
    part = target._wrapper
    logarithm: Tensor | None = getattr(part, target._target_name + LEARNED, None)
    if logarithm is None:
        return target.scale
    if target._target_name != "weight":
        return logarithm.clamp(max=math.log(part.clips_at / target.qmax)).exp()
    step = logarithm.exp()
    return torch.maximum(step, step.detach().amax() * LEAST_STEP_RATIO)


def _leave(values: Tensor) -> Tensor:
    return values


# NNI looks up what it does to a tensor by name. Ours are more entries.
apply_method.quant_apply_methods.update({ROUND: _round, WEIGHT: _weight, BIAS: _bias})
# NNI has no setting for global average pooling and would not wrap it, but the runtime rounds its output.
QuantizationSetting.register("AdaptiveAvgPool2d", QuantizationSetting.activation_setting)


@dataclass(frozen=True)
class QuantizationAware:
    """A network under NNI's wrappers, which round the selected weights and activations."""

    module: nn.Module
    """Trains in an ordinary loop; its state dict contains weights in steps, and the steps."""
    quantizer: QATQuantizer

    @torch.no_grad()
    def step(self, path: str, name: str) -> Tensor:
        """The present step of the target ``name`` of a module: ``weight`` or ``_output_0``."""
        return _step(self.quantizer._target_spaces[path][name]).clone()

    @torch.no_grad()
    def parameters(self, path: str) -> tuple[Tensor, Tensor]:
        """The present rounded weight and the bias of a layer."""
        part: Any = self.quantizer._module_wrappers[path]
        targets: Mapping[str, Any] = self.quantizer._target_spaces[path]
        return _weight(part.weight, targets["weight"]), _bias(part.bias, targets["bias"])


def wrap(
    module: nn.Module,
    *,
    steps: Mapping[str, Float[Tensor, " channels"]],
    bias_steps: Mapping[str, float],
    outputs: Mapping[str, float],
    weight_limit: int,
    learn_steps: bool = False,
) -> QuantizationAware:
    """Wrap a copy of a network; the copy is in evaluation mode.

    Args:
        module: a network without batch norms, whose layers have biases.
        steps: path of each layer whose weights are rounded, to the steps of its channels. The parameters of
            all other layers stay as they are.
        bias_steps: path of the same layers to the unit of their biases.
        outputs: path of each module whose output is rounded, to its step; such an output must not be
            negative.
        weight_limit: greatest integer weight: 127, 63 or 7.
        learn_steps: whether steps are parameters like any other.
    """
    subject = copy.deepcopy(module).eval().requires_grad_(False)
    for path in steps:
        subject.get_submodule(path).requires_grad_(True)
    layers = {
        "op_names": list(steps),
        "target_names": ["weight", "bias"],
        "quant_dtype": WEIGHT_DTYPES[weight_limit],
        "quant_scheme": "symmetric",
        "granularity": "out_channel",
    }
    activations = {
        "op_names": list(outputs),
        "target_names": ["_output_"],
        "quant_dtype": "uint8",
        "quant_scheme": "affine",
    }
    with quiet():
        # NNI's types demand a training loop, but only NNI's own compress() uses it.
        quantizer = QATQuantizer(subject, [layers, activations], cast(Any, None))
    wrappers: dict[str, Any] = dict(quantizer._module_wrappers)
    for path in quantizer._target_spaces:
        # NNI tracks shapes and ranges in every forward pass; ours are known.
        wrappers[path]._track_funcs[:] = []
    for path, step in steps.items():
        part, targets = wrappers[path], quantizer._target_spaces[path]
        shaped = step.view(-1, *[1] * (part.weight.dim() - 1)).to(part.weight)
        _set(targets["weight"], WEIGHT, shaped, learn_steps)
        _set(targets["bias"], BIAS, torch.tensor(bias_steps[path]).to(part.weight))
        with torch.no_grad():
            part.weight.div_(shaped)
            part.bias.div_(bias_steps[path])
        # NNI registers the parameters of the last forward pass as buffers, so state dicts would hold them a
        # second time and copies would fail on their graph. They are not state; plain attributes do.
        for name in ("weight", "bias"):
            layer = subject.get_submodule(path)
            used = getattr(layer, name)
            delattr(layer, name)
            setattr(layer, name, used.detach())
    for path, scale in outputs.items():
        part = wrappers[path]
        part.clips_at = CLIPPING.get(type(part.module), math.inf)
        _set(quantizer._target_spaces[path]["_output_0"], ROUND, torch.tensor(scale), learn_steps)
        if type(part.module) in CLIPPING:
            part.module_forward = _leave  # Rounding clips as the activation does.
    return QuantizationAware(subject, quantizer)


def _set(target: Any, method: str, step: Tensor, learned: bool = False) -> None:
    """Set what NNI does to a tensor, and the step, which NNI keeps as a buffer."""
    target.apply_method = method
    target.scale, target.zero_point = step, torch.zeros_like(step)
    if learned:
        target._wrapper.register_parameter(target._target_name + LEARNED, nn.Parameter(step.log()))
