"""Layers of a float file, compared with those of its module."""

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.layers import Network
from pipeline.onnx.graph import LOGITS
from pipeline.parity.layerwise import NOISE, activations, outputs_of_module, shape_divergence

FLOAT_DRIFT = 1e-3
"""Greatest allowed difference of a float layer's outputs, as a share of their spread."""
CANCELLATION = 1e-2
"""Share of the magnitude of a logit's terms below which the spread of logits is no unit for differences."""


def float_divergence(
    network: Network,
    actual: Mapping[str, Tensor],
    spread: float,
    normalised: Float[Tensor, "batch 3 height width"],
    rounded: nn.Module | None = None,
) -> str | None:
    """The first layer of a float file that computes something else than the network's, in words; None if none
    does.

    Each layer of the network gets what the file's layer got. From image to logits, some networks amplify
    rounding errors until nothing is left of the answers, and that is no fault of the file.

    Args:
        network: the folded network.
        actual: the file's ``activations`` and logits, from ``outputs_of_file``.
        spread: greatest less least of all logits, of more images perhaps.
        normalised: the images, as the network takes them.
        rounded: the network in half precision, if the file has it. What it rounds is then the noise;
            otherwise the noise is what single precision loses of double precision.
    """
    expected = _outputs_layer_by_layer(network.module, network, actual, normalised)
    if isinstance(expected, str):
        return expected
    other: dict[str, Tensor] | str = {}
    for name, output in expected.items():
        unit = float(output.max() - output.min())
        if name == LOGITS:
            unit = logit_unit(network, actual, spread)
        drift = float((output - actual[name]).abs().max())
        if drift <= FLOAT_DRIFT * unit:
            continue
        other = other or _outputs_layer_by_layer(
            rounded or copy.deepcopy(network.module).double(), network, actual, normalised
        )
        assert not isinstance(other, str)
        if not drift <= NOISE * float((output - other[name]).abs().max()):
            return f"the first layer that diverges is {name}, by {drift / max(unit, 1e-12):.2g} of its spread"
    return None


@torch.no_grad()
def _outputs_layer_by_layer(
    module: nn.Module,
    network: Network,
    actual: Mapping[str, Tensor],
    normalised: Float[Tensor, "batch 3 height width"],
) -> dict[str, Tensor] | str:
    """What each layer of a module in the shape of ``network`` makes of the file's output of the layer before,
    and the logits; or the divergence of an output that has another shape."""
    names = {network.output(name): name for name in activations(network)}
    kind = next(module.parameters()).dtype
    outputs: dict[str, Tensor] = {}
    x = normalised.to(kind)
    for path in network.steps:
        x = module.get_submodule(path)(x)
        if path in names:
            name = names[path]
            if x.shape != actual[name].shape:
                return shape_divergence(name, x, actual[name])
            outputs[name], x = x, actual[name].to(kind)
    if x.shape != actual[LOGITS].shape:
        return shape_divergence(LOGITS, x, actual[LOGITS])
    return {**outputs, LOGITS: x}


def outputs_in_double(
    network: Network, names: Sequence[str], normalised: Float[Tensor, "batch 3 height width"]
) -> dict[str, Tensor]:
    """The same as ``outputs_of_module``, in double precision."""
    return outputs_of_module(copy.deepcopy(network.module).double(), network, names, normalised.double())


def logit_unit(network: Network, outputs: Mapping[str, Tensor], spread: float) -> float:
    """The unit of differences between logits: their spread, or a share of their terms if that is more.

    Rounding errors of a sum are relative to its terms. Where the terms cancel, as in a network that answers
    nearly the same to all images, the errors may be a great share of the spread.

    Args:
        network: the network in floating point.
        outputs: its last activation, by name, from ``outputs_of_module``.
        spread: greatest less least of all logits.
    """
    head = network.part(network.head.name)
    features = outputs[activations(network)[-1]].flatten(2).mean(2)
    bias = None if head.bias is None else head.bias.detach().abs()
    terms = functional.linear(features.abs(), head.weight.detach().abs(), bias)
    return max(spread, CANCELLATION * float(terms.max()))
