"""Sensitivity of each layer to eight bits: scores with one layer in int8, and with all layers but one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import Network
from pipeline.models.storage import Model, Quantization
from pipeline.quantization import grid, ranges, stem
from pipeline.quantization.observation import Batches
from pipeline.quantization.simulator import leave_float, simulate

Score = TypeVar("Score")


@dataclass(frozen=True)
class LayerScores(Generic[Score]):
    """Scores that show the cost of quantising one layer, seen from both sides."""

    alone: Score
    """Score with this layer in int8 and all others in float."""
    spared: Score
    """Score with this layer in float and all others in int8."""


def score_layers(
    model: Model, batches: Batches, *, weight_limit: int, score: Callable[[nn.Module], Score]
) -> dict[str, LayerScores[Score]]:
    """Score a student with one layer quantised at a time, and with all but one.

    Weights and ranges are by least squares, without any further step; a layer brings the activations that
    it reads and writes. The stem is quantised unless ``stem.reason_for_float`` has a reason.

    Args:
        model: a student in float, with batch norms or without.
        batches: normalised calibration images.
        weight_limit: 127 or 63.
        score: scores a network for images that are normalised as the student's are, on the CPU, that computes
            as the runtime does.

    Raises:
        ValueError: the weight limit is not allowed, or calibration is not possible.
    """
    network, batches, front, fixed = _in_bytes(model, batches)
    quantization = quantize_plainly(network, batches, weight_limit, fixed)

    def score_with(float_layers: list[str]) -> Score:
        simulated = simulate(network, leave_float(network, quantization, float_layers))
        return score(nn.Sequential(front, simulated))

    return {
        name: LayerScores(
            alone=score_with([other for other in network.layers if other != name]),
            spared=score_with([*fixed, name]),
        )
        for name in network.layers
        if name not in fixed
    }


def simulate_together(model: Model, batches: Batches, *, weight_limit: int) -> nn.Module:
    """The simulator with all layers in int8 that ``score_layers`` quantises one at a time.

    Raises:
        ValueError: see ``score_layers``.
    """
    network, batches, front, fixed = _in_bytes(model, batches)
    quantization = quantize_plainly(network, batches, weight_limit, fixed)
    return nn.Sequential(front, simulate(network, quantization))


def quantize_plainly(
    network: Network, batches: Batches, weight_limit: int, float_layers: list[str]
) -> Quantization:
    """The quantisation of a folded network by least squares, without any further step.

    Raises:
        ValueError: the weight limit or a float layer is not allowed, or calibration is not possible.
    """
    scales = ranges.activation_scales(network, batches, float_layers)
    steps = grid.fit_biases(network, grid.weight_scales(network, weight_limit, float_layers), scales)
    return Quantization(steps, weight_limit, scales, tuple(float_layers))


def _in_bytes(model: Model, batches: Batches) -> tuple[Network, Batches, nn.Module, list[str]]:
    """A student ready for an int8 stem.

    Returns:
        The folded network, its images, the module that makes them of the student's own, and the layers that
        must stay in float.
    """
    network = fold_batch_norm(model)
    if model.card.input.zero_point is not None:
        return network, batches, nn.Identity(), []
    if stem.reason_for_float(network, model.card.input):
        return network, batches, nn.Identity(), [network.stem.name]
    front = stem.ReadNormalised(model.card.input)
    return fold_batch_norm(stem.read_bytes(model)), lambda: map(front, batches()), front, []
