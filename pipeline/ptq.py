"""Post-training quantisation: what is done to a student, and which of it helps."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pipeline import quantization
from pipeline.models import Model, Quantization
from pipeline.quantization import Batches


@dataclass(frozen=True)
class LayerScores:
    """What quantising one layer costs, seen from both sides."""

    alone: float
    """Score with this layer in int8 and all others in float."""
    spared: float
    """Score with this layer in float and all others in int8."""


def sensitivity(
    model: Model, batches: Batches, *, weight_limit: int, score: Callable[[nn.Module], float]
) -> dict[str, LayerScores]:
    """Score a student with one layer quantised at a time, and with all but one.

    Weights and ranges are by least squares, nothing else is done; a layer brings the activations that it
    reads and writes. The stem is quantised only where it reads plain bytes (mean 0, standard deviation 1).

    Args:
        model: in float, with batch norms or without.
        batches: normalised calibration images.
        weight_limit: 127 or 63.
        score: from a network for normalised images, on the CPU, that computes as the runtime does.

    Raises:
        ValueError: the weight limit is not allowed, or calibration is not possible.
    """
    folded, _ = quantization.fold_batch_norm(model.module, model.card.architecture, model.card.arguments)
    inputs = quantization.layer_inputs(folded)
    contract = model.card.input
    fixed = [
        name
        for name, read in inputs.items()
        if read == quantization.IMAGES and (any(contract.mean) or set(contract.std) != {1.0})
    ]
    whole = Quantization(
        quantization.weight_scales(folded, weight_limit, fixed),
        weight_limit,
        quantization.activation_ranges(folded, batches, fixed),
        tuple(fixed),
    )

    def without(float_layers: list[str]) -> float:
        part = quantization.leave_float(folded, whole, float_layers)
        return score(quantization.simulate(folded, part))

    return {
        name: LayerScores(
            alone=without([other for other in inputs if other != name]), spared=without([*fixed, name])
        )
        for name in inputs
        if name not in fixed
    }
