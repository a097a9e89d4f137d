"""Quantisation-aware training: a network that any training loop can train, and its int8 twin afterwards.

Training begins where post-training quantisation ended: batch norms are folded, steps and ranges are chosen,
and every weight lies on its grid. Beginning with the float network instead, rounded to nearest, costs more
than a short training wins back (see docs/decisions.md).
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.models.layers import IMAGES, Network
from pipeline.models.storage import Quantization
from pipeline.quantization import grid, wrappers
from pipeline.quantization.simulator import check


@dataclass(frozen=True)
class Prepared:
    """A network in training for int8."""

    module: nn.Module
    """Trains like any other module, in 32-bit precision, with an optimiser that is built after it."""
    aware: wrappers.QuantizationAware
    network: Network
    """The network that was prepared; its layers are those of ``module``."""
    quantization: Quantization
    """The quantisation that it was prepared with."""


def prepare(network: Network, quantization: Quantization, *, learn_steps: bool = False) -> Prepared:
    """Make a copy whose int8 layers train with rounded weights and activations.

    Weights are trained in steps of their channels, and biases in steps of what their layer writes. Layers in
    float stay as they are. Training is resumed by loading a state dict into a network that was prepared anew.

    Args:
        network: a folded network with its weights on the grid, as ``post_training`` makes it.
        quantization: its steps and scales.
        learn_steps: whether the steps of weights and activations are trained too (LSQ, Esser et al. 2020,
            https://arxiv.org/abs/1902.08153).

    Raises:
        ValueError: see ``simulator.check``.
    """
    check(network, quantization)
    scales = quantization.activation_scales
    rounded = {name: network.layers[name] for name in quantization.weight_scales}
    aware = wrappers.wrap(
        network.module,
        steps={layer.weights: quantization.weight_scales[name] for name, layer in rounded.items()},
        bias_steps={
            layer.weights: scales[name if name in scales else layer.reads] for name, layer in rounded.items()
        },
        outputs={network.output(name): scale for name, scale in scales.items() if name != IMAGES},
        weight_limit=quantization.weight_limit,
        learn_steps=learn_steps,
    )
    return Prepared(aware.module, aware, network, quantization)


@torch.no_grad()
def finish(prepared: Prepared) -> tuple[Network, Quantization]:
    """The trained network with its weights on their grid, in evaluation mode, and its quantisation."""
    network, start = prepared.network.copy(), prepared.quantization
    steps = {}
    for name in start.weight_scales:
        path = network.layers[name].weights
        weight, bias = prepared.aware.parameters(path)
        part = network.part(name)
        part.weight, part.bias = (nn.Parameter(value.cpu(), requires_grad=False) for value in (weight, bias))
        steps[name] = prepared.aware.step(path, "weight").flatten().cpu()
    scales = {
        name: scale if name == IMAGES else float(prepared.aware.step(network.output(name), "_output_0"))
        for name, scale in start.activation_scales.items()
    }
    fitting = grid.fit_biases(network, steps, scales)
    if any((fitting[name] > step).any() for name, step in steps.items()):
        network = grid.bake(network, fitting, start.weight_limit)
    quantization = replace(start, weight_scales=fitting, activation_scales=scales)
    check(network, quantization)
    network.module.eval()
    return network, quantization
