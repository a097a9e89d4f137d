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
from pipeline.models.layers import IMAGES, Network, trace
from pipeline.models.storage import Quantization
from pipeline.quantization import grid, ranges, wrappers
from pipeline.quantization.observation import Batches
from pipeline.quantization.simulator import check


@dataclass(frozen=True)
class Prepared:
    """A network in training for int8."""

    module: nn.Module
    """Trains like any other module, in 32-bit precision, with an optimiser that is built after it."""
    aware: wrappers.QuantizationAware
    parent: Network
    """The network that was prepared; its layers are those of ``module``."""
    weight_limit: int
    float_layers: tuple[str, ...]
    activations: tuple[str, ...]
    """Names of the activations that are rounded, in order; ``images`` are whole bytes already."""


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
    greatest value, and weights span their whole range. With ``learn_ranges`` the steps of both start at the
    least squared error instead and are parameters like any other. Training is resumed by loading a state
    dict into a network that was prepared anew.

    Raises:
        NetworkError: the student is not a chain of layers.
        ValueError: the weight limit is neither 127 nor 63, a float layer does not exist, or there are
            no images.
    """
    if weight_limit not in grid.WEIGHT_LIMITS:
        raise ValueError(f"weight_limit is {weight_limit}; allowed are {grid.WEIGHT_LIMITS}")
    network = trace(module)
    activations = grid.int8_activations(network, float_layers)
    training = module.training
    module.eval()
    scales = ranges.activation_scales(network, batches, float_layers)
    module.train(training)
    rounded = [name for name in network.layers if name not in float_layers]
    shares = None
    if learn_ranges:
        # A share of the range is the same before and after a batch norm's gain is folded in.
        steps = grid.weight_scales(network, weight_limit, float_layers)
        shares = {
            network.layers[name].weights: _share_of_range(
                network.part(name).weight.detach(), steps[name], weight_limit
            )
            for name in rounded
        }
    aware = wrappers.wrap(
        module,
        norms={layer.weights: layer.norm for layer in network.layers.values()},
        rounded=[network.layers[name].weights for name in rounded],
        outputs={network.output(name): scales[name] for name in activations if name != IMAGES},
        weight_limit=weight_limit,
        batches=batches(),
        shares=shares,
    )
    return Prepared(aware.module, aware, network, weight_limit, tuple(float_layers), activations)


def freeze_norm(module: nn.Module) -> None:
    """Stop the running moments of the batch norms for good; scale and shift remain trainable.

    The state dict does not keep this, so it must be called again after resumption.
    """
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0


def finish(
    prepared: Prepared, architecture: str, arguments: dict[str, Any]
) -> tuple[Network, dict[str, Any], Quantization]:
    """The trained network without batch norms and with its weights on their grid.

    Args:
        prepared: the network in training.
        architecture: key of ``students.ARCHITECTURES``.
        arguments: keyword arguments that build the network that was prepared.

    Returns:
        The folded network in evaluation mode, the arguments that build it, and its quantisation.
    """
    folded_arguments = {**arguments, "norm": False}
    folded = students.build(architecture, folded_arguments)
    network = prepared.parent.without_norms(folded)
    weight_scales = {}
    tensors = {}
    for name, layer in network.layers.items():
        path = layer.weights
        weight, bias = prepared.aware.parameters(path)
        tensors[f"{path}.weight"], tensors[f"{path}.bias"] = weight.cpu(), bias.cpu()
        if name not in prepared.float_layers:
            weight_scales[name] = prepared.aware.scale(path, "weight").flatten().cpu()
    folded.load_state_dict(tensors)
    activation_scales = {
        name: grid.PIXEL_SCALE
        if name == IMAGES
        else float(prepared.aware.scale(network.output(name), "_output_0"))
        for name in prepared.activations
    }
    fitting = grid.fit_biases(network, weight_scales, activation_scales)
    if any((fitting[name] > step).any() for name, step in weight_scales.items()):
        network = grid.bake(network, fitting, prepared.weight_limit)
    quantization = Quantization(fitting, prepared.weight_limit, activation_scales, prepared.float_layers)
    check(network, quantization)
    network.module.eval()
    return network, folded_arguments, quantization


def _share_of_range(
    weight: Tensor, step: Float[Tensor, " channels"], limit: int
) -> Float[Tensor, " channels"]:
    full = weight.flatten(1).abs().amax(dim=1) / limit
    return (step / full.clamp_min(torch.finfo(full.dtype).tiny)).clamp(max=1)
