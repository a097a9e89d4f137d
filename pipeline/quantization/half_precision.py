"""A student in half precision (float16): weights, biases and everything between layers have 16 bits.

Float16 has 11 significant bits and ends at 65504, beyond which it is infinite. Products are added in single
precision, as GPUs do (https://docs.nvidia.com/deeplearning/performance/mixed-precision-training).
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.errors import DistilleryError
from pipeline.models.layers import Network

GREATEST = torch.finfo(torch.float16).max
"""Greatest finite number of float16: 65504."""


class HalfPrecisionError(DistilleryError):
    """A number is too great for float16; the message names the layer and the number."""


def round_weights(network: Network) -> Network:
    """A copy whose weights and biases are numbers of float16, stored in single precision.

    Raises:
        HalfPrecisionError: a weight or a bias is beyond 65504 or is not a number.
    """
    copied = network.copy()
    for name, part in copied.parts.items():
        for kind, parameter in part.named_parameters():
            _check(f"a {kind} of {name}", _magnitude(parameter.detach()))
            parameter.data = parameter.detach().half().float()
    return copied


def round_outputs(network: Network) -> nn.Module:
    """The network with its input and the output of every layer and pooling rounded to float16, for normalised
    images: what a device computes that adds the products of float16 in single precision."""
    rounded = copy.deepcopy(network.module).eval().requires_grad_(False)
    first = rounded.get_submodule(network.steps[0])
    first.register_forward_pre_hook(lambda _module, inputs: tuple(x.half().float() for x in inputs))
    for path in (*(layer.weights for layer in network.layers.values()), *network.pools):
        rounded.get_submodule(path).register_forward_hook(lambda _module, _inputs, x: x.half().float())
    return rounded


@torch.no_grad()
def greatest_output(
    network: Network, batches: Iterable[Float[Tensor, "_ 3 height width"]]
) -> tuple[str, float]:
    """The layer with the greatest magnitude before its activation on some normalised images, and the
    magnitude.

    Raises:
        HalfPrecisionError: it is beyond 65504, or is not a number.
    """
    greatest = dict.fromkeys(network.layers, 0.0)

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen = _magnitude(output)
            _check(f"an output of {name}", seen)
            greatest[name] = max(greatest[name], seen)

        return hook

    module = copy.deepcopy(network.module).eval()
    for name, layer in network.layers.items():
        module.get_submodule(layer.weights).register_forward_hook(record(name))
    for images in batches:
        module(images)
    return max(greatest.items(), key=lambda item: item[1])


def _magnitude(values: Tensor) -> float:
    return float(values.abs().max())


def _check(what: str, magnitude: float) -> None:
    if not magnitude <= GREATEST:  # NaN is refused as well.
        raise HalfPrecisionError(
            f"{what} has the magnitude {magnitude:.6g}; float16 (method: fp16) ends at {GREATEST:g}"
        )
