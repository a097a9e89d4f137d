"""The int8 stem, which reads the bytes of an image as they are, less a zero point.

An input contract gives a byte p of channel c the value x = (p / 255 - mean_c) / std_c. An int8 layer reads
values of one scale and one zero point, (p - z) / 255 with a whole number z. The one is an affine function of
the other, so a stem that reads the latter gives the same sums: its weights contain 1 / std_c, and what lies
between z and the mean is in its bias. No byte is rounded.

Padding is the only difference. Zeros around the image stand for the mean before and for z after: half a byte
apart for a mean of 0.5, up to some ten where the channels have means of their own.
"""

import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.layers import Network, trace
from pipeline.models.storage import Model
from pipeline.quantization.grid import LEVELS
from teachers.contract import InputContract

GREATEST_BORDER = 0.25
"""Greatest distance, in standard deviations of the input, of the padding of an int8 stem from the zeros with
which a student was trained."""


def byte_contract(contract: InputContract) -> InputContract:
    """The contract of an int8 stem: a zero point near the means, and a standard deviation of 1.

    The zero point is the byte whose values lie nearest to 0 by least squares. A contract that has a zero
    point already is returned as it is.
    """
    if contract.zero_point is not None:
        return contract
    mean, std = (
        torch.tensor(contract.mean, dtype=torch.float64),
        torch.tensor(contract.std, dtype=torch.float64),
    )
    middle = float((mean / std.square()).sum() / std.square().reciprocal().sum())
    zero_point = min(max(round(middle * LEVELS), 0), LEVELS)
    return replace(contract, mean=(zero_point / LEVELS,) * 3, std=(1.0,) * 3)


def border(network: Network, contract: InputContract) -> float:
    """The greatest input value at which an int8 stem puts the padding, which is 0 in float.

    It is in the units of the contract, standard deviations, and 0 for a stem without padding.
    """
    return float(_values_at_zero_point(contract).abs().max()) if _pads(network) else 0.0


def reason_for_float(network: Network, contract: InputContract) -> str | None:
    """Why the stem of a student with this contract must stay in float, in words; None if it need not."""
    distance = border(network, contract)
    if distance <= GREATEST_BORDER:
        return None
    return (
        f"the means {contract.mean} of the input have no byte in common: padding would be "
        f"{distance:.2g} standard deviations from zero, and {GREATEST_BORDER:g} are allowed"
    )


@torch.no_grad()
def read_bytes(model: Model) -> Model:
    """The same student with the contract of an int8 stem, for which its first layer is written anew.

    It gives the same logits, apart from the padding and rounding errors of floating point. A student whose
    contract has a zero point is returned as it is.

    Args:
        model: a student in float, with batch norms or without.
    """
    contract = model.card.input
    if contract.zero_point is not None:
        return model
    module = copy.deepcopy(model.module)
    network = trace(module)
    stem = network.stem
    part = network.part(stem.name)
    weight = part.weight.double()
    shift = torch.einsum("oc...,c->o", weight, _values_at_zero_point(contract))
    part.weight.copy_(weight / torch.tensor(contract.std, dtype=torch.float64).view(3, 1, 1))
    if stem.norm is not None:
        norm = module.get_submodule(stem.norm)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        norm.running_mean.sub_(shift)
    else:
        assert part.bias is not None
        part.bias.add_(shift)
    return replace(model, module=module, card=replace(model.card, input=byte_contract(contract)))


class ReadNormalised(nn.Module):
    """Turns the values of a contract into those of its ``byte_contract``, without rounding errors."""

    def __init__(self, contract: InputContract) -> None:
        super().__init__()
        zero_point = byte_contract(contract).zero_point
        assert zero_point is not None
        self.zero_point = zero_point
        self.mean = torch.tensor(contract.mean).view(3, 1, 1)
        self.std = torch.tensor(contract.std).view(3, 1, 1)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        return ((x * self.std + self.mean) * LEVELS).round_().sub_(self.zero_point).div_(LEVELS)


def _values_at_zero_point(contract: InputContract) -> Float[Tensor, " channels"]:
    """The values of the contract for the zero point of its ``byte_contract``, in double precision."""
    mean, std = (
        torch.tensor(contract.mean, dtype=torch.float64),
        torch.tensor(contract.std, dtype=torch.float64),
    )
    return (torch.tensor(byte_contract(contract).mean, dtype=torch.float64) - mean) / std


def _pads(network: Network) -> bool:
    part = network.part(network.stem.name)
    return network.stem.padding is not None or (
        isinstance(part, nn.Conv2d) and part.padding not in (0, (0, 0))
    )
