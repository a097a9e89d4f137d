"""Quantisation-aware training: a network that any training loop can train, and its int8 twin afterwards.

Batch norms are folded into the weights before these are rounded, from running moments in training as in
evaluation (Jacob et al. 2018, https://arxiv.org/abs/1712.05877), so what is validated is what is shipped.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import students
from pipeline.models.storage import Affine, Quantization
from pipeline.quantization import simulator, wrappers
from pipeline.quantization.simulator import Batches


@dataclass(frozen=True)
class Prepared:
    """A network in training for int8."""

    module: nn.Module
    """To be trained like any other, in 32-bit precision, with an optimiser built after this."""
    aware: wrappers.QuantizationAware
    weight_limit: int
    float_layers: tuple[str, ...]
    activations: tuple[str, ...]
    """Activations that are rounded, in order; ``images`` are whole bytes as they come."""


def prepare(
    module: nn.Module,
    *,
    weight_limit: int,
    float_layers: Collection[str],
    batches: Batches,
    learn_ranges: bool = False,
) -> Prepared:
    """Make a copy that rounds weights and activations as int8 will, with ranges set from the images.

    Activation ranges start where the squared error is least. From there they follow a moving average of the
    greatest value, and weights span their whole range; or, with ``learn_ranges``, the steps of both start
    at the least squared error and are parameters like any other. Training is resumed by loading a state dict
    into a network that was prepared anew.

    Raises:
        ValueError: the weight limit is neither 127 nor 63, a float layer does not exist, or there are
            no images.
    """
    if weight_limit not in simulator.WEIGHT_LIMITS:
        raise ValueError(f"weight_limit is {weight_limit}; allowed are {simulator.WEIGHT_LIMITS}")
    activations = simulator.int8_activations(module, float_layers)
    training = module.training
    ranges = simulator.activation_ranges(module.eval(), batches, float_layers)
    module.train(training)
    outputs = {_output(module, name): ranges[name].scale for name in activations if name != simulator.IMAGES}
    layers = simulator.layers(module)
    rounded = {name: layer for name, layer in layers.items() if name not in float_layers}
    shares = None
    if learn_ranges:
        # A share of the range is the same before and after a batch norm's gain is folded in.
        steps = simulator.weight_scales(module, weight_limit, float_layers)
        shares = {
            _weights(name, layer): _share_of_range(layer.weight.detach(), steps[name], weight_limit)
            for name, layer in rounded.items()
        }
    aware = wrappers.wrap(
        module,
        norms={_weights(name, layer): _norm(name, layer) for name, layer in layers.items()},
        rounded=[_weights(name, layer) for name, layer in rounded.items()],
        outputs=outputs,
        weight_limit=weight_limit,
        batches=batches(),
        shares=shares,
    )
    return Prepared(aware.module, aware, weight_limit, tuple(float_layers), activations)


def freeze_norm(module: nn.Module) -> None:
    """Stop the batch norms' running moments for good; scale and shift go on being trained.

    Not part of the state dict: after resumption it is to be called again.
    """
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0


def finish(
    prepared: Prepared, architecture: str, arguments: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any], Quantization]:
    """The trained network without batch norms and with its weights on their grid; what was prepared stays.

    Args:
        prepared: the network in training.
        architecture: key of ``students.ARCHITECTURES``.
        arguments: keyword arguments that build the network that was prepared.

    Returns:
        The folded network in evaluation mode, the arguments that build it, and its quantisation.
    """
    folded_arguments = {**arguments, "norm": False}
    folded = students.build(architecture, folded_arguments)
    weight_scales = {}
    tensors = {}
    for name, layer in simulator.layers(folded).items():
        path = _weights(name, layer)
        weight, bias = prepared.aware.parameters(path)
        tensors[f"{path}.weight"], tensors[f"{path}.bias"] = weight.cpu(), bias.cpu()
        if name not in prepared.float_layers:
            weight_scales[name] = prepared.aware.scale(path, "weight").flatten().cpu()
    folded.load_state_dict(tensors)
    activations = {
        name: simulator.RAW_PIXELS
        if name == simulator.IMAGES
        else Affine(float(prepared.aware.scale(_output(folded, name), "_output_0")), 0)
        for name in prepared.activations
    }
    found = Quantization(weight_scales, prepared.weight_limit, activations, prepared.float_layers)
    simulator.check(folded, found)
    return folded.eval(), folded_arguments, found


def _share_of_range(
    weight: Tensor, step: Float[Tensor, " channels"], limit: int
) -> Float[Tensor, " channels"]:
    full = weight.flatten(1).abs().amax(dim=1) / limit
    return (step / full.clamp_min(torch.finfo(full.dtype).tiny)).clamp(max=1)


def _weights(name: str, layer: nn.Module) -> str:
    return f"{name}.conv" if isinstance(layer, nn.Conv2d) else name


def _norm(name: str, layer: nn.Module) -> str | None:
    return f"{name}.norm" if isinstance(layer, nn.Conv2d) else None


def _output(module: nn.Module, name: str) -> str:
    return f"{name}.act" if hasattr(module.get_submodule(name), "act") else name
