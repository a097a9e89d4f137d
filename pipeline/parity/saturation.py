"""Saturation on x86 processors without VNNI, which add products of uint8 and int8 in pairs, in 16 bits.

Their instruction is ``vpmaddubsw``: two neighbours of the reduction are multiplied and added, and the sum
is cut to -32768..32767 before it is added to the others in 32 bits. ONNX Runtime reduces over the input
channels within each place of the kernel, so neighbours are channels; depthwise convolutions have no pairs.
A stem that reads four pixels at once (`layout.pair_columns`) has neighbours within each row of the kernel.
"""

import copy
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from pipeline.quantization.grid import LEVELS
from pipeline.quantization.simulator import Sums

LEAST, GREATEST = -(2**15), 2**15 - 1
"""Range of 16 bits."""
Rows = Mapping[str, int]
"""Path of each convolution that reads whole rows of pixels, to the number of zeros on the left of the
image."""
ZeroPoints = Mapping[str, int]
"""Path of each layer whose input has a zero point, to that point; of all others it is 0."""
AT_ONCE = 64
"""Number of pairs that are computed together, which bounds the memory."""
VNNI = {"avx512_vnni", "avx_vnni", "avx512vnni", "amx_int8"}
"""Flags of processors that add such products in 32 bits."""


@dataclass(frozen=True)
class Pairs:
    """Neighbours of a layer's reduction whose sum of products can leave 16 bits."""

    channels: Int64[Tensor, " pairs"]
    """Output channel of each pair."""
    places: Int64[Tensor, "pairs 2"]
    """Places in the reduction, in PyTorch's order: input channel, row, column."""
    weights: Float[Tensor, "pairs 2"]
    """Weights at these places, as whole numbers."""


def sums_may_saturate() -> bool:
    """Whether this processor adds pairs of uint8 x int8 products in 16 bits; True if that is unknown."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not VNNI & set(flags)


def extremes(simulated: nn.Module, rows: Rows = MappingProxyType({})) -> tuple[int, int]:
    """The least and the greatest sum of two products that any layer can have, for any images.

    If they lie within -32768..32767, this proves that nothing saturates on any processor.

    Args:
        simulated: a network of ``simulator.simulate``.
        rows: convolutions that read whole rows.
    """
    sums = [_reach(layer, _order(layer, rows.get(path))) for path, layer in _layers(simulated).items()]
    return (
        min((int(least.min()) for least, _ in sums), default=0),
        max((int(greatest.max()) for _, greatest in sums), default=0),
    )


def saturate(
    simulated: nn.Module,
    rows: Rows = MappingProxyType({}),
    zero_points: ZeroPoints = MappingProxyType({}),
) -> nn.Module:
    """A copy of a simulator that adds in 16 bits, as processors without VNNI do; see ``extremes``.

    Processors multiply the integers as they are, and subtract the zero point's share from the sums later.
    """
    saturating = copy.deepcopy(simulated)
    for path, layer in _layers(saturating).items():
        pairs = _risky(layer, _order(layer, rows.get(path)))
        if len(pairs.channels):
            saturating.set_submodule(path, _Saturating(layer, pairs, zero_points.get(path, 0)))
    return saturating


def _risky(layer: Sums, order: Int64[Tensor, "pairs 2"]) -> Pairs:
    """The pairs of a layer that can saturate, for inputs from 0 to 255."""
    least, greatest = _reach(layer, order)
    channels, pair = torch.nonzero((least < LEAST) | (greatest > GREATEST), as_tuple=True)
    order = order[pair]
    weights = layer.apply_weights.weight.detach().flatten(1)
    padded = functional.pad(weights, (0, 1))  # The last of an odd number has no neighbour.
    return Pairs(channels, order, torch.stack([padded[channels, order[:, side]] for side in (0, 1)], dim=1))


class _Saturating(nn.Module):
    """The sums of an int8 layer without the part that saturation cuts off from its pairs."""

    def __init__(self, layer: Sums, pairs: Pairs, zero_point: int) -> None:
        super().__init__()
        self.layer = layer
        self.pairs = pairs
        self.zero_point = zero_point

    def forward(self, x: Tensor) -> Tensor:
        sums = self.layer(x)
        integers = self._columns((x / self.layer.input_scale).round_()) + self.zero_point
        read = functional.pad(integers, (0, 0, 0, 1))
        flat = sums.flatten(2) if sums.dim() > 2 else sums[:, :, None]
        for part in torch.arange(len(self.pairs.channels)).split(AT_ONCE):
            first, second = self.pairs.places[part].unbind(1)
            left, right = self.pairs.weights[part, :, None].unbind(1)
            pair = read[:, first] * left + read[:, second] * right
            flat = flat.index_add(1, self.pairs.channels[part], pair.clamp(LEAST, GREATEST) - pair)
        return flat.reshape(sums.shape)

    def _columns(self, x: Tensor) -> Float[Tensor, "batch reduction pixels"]:
        weights = self.layer.apply_weights
        if isinstance(weights, nn.Linear):
            return x[:, :, None]
        assert not isinstance(weights.padding, str)
        return functional.unfold(x, weights.kernel_size, weights.dilation, weights.padding, weights.stride)


def _layers(simulated: nn.Module) -> dict[str, Sums]:
    """Path of every int8 layer that adds products in pairs to its sums."""
    return {
        name: part
        for name, part in simulated.named_modules()
        if isinstance(part, Sums) and getattr(part.apply_weights, "groups", 1) == 1
    }


def _order(layer: Sums, before: int | None) -> Int64[Tensor, "pairs 2"]:
    """The two places of the reduction that meet in each pair; an odd one meets the place past the end.

    Args:
        layer: the layer, whose weights give the number of places.
        before: number of zeros before each row, of a layer that reads whole rows; None for other layers.
    """
    weight = layer.apply_weights.weight
    places = torch.arange(weight[0].numel()).view(weight.shape[1], -1).T
    end = places.numel()
    if before is None:
        return functional.pad(places.flatten(), (0, end % 2), value=end).view(-1, 2)
    rows = places.reshape(weight.shape[2], -1)
    # A row has an odd number of values. The file has a weight of 0 beside it, before the row if the row
    # begins at an odd byte.
    return functional.pad(rows, (1, 0) if before % 2 else (0, 1), value=end).view(-1, 2)


def _reach(
    layer: Sums, order: Int64[Tensor, "pairs 2"]
) -> tuple[Float[Tensor, "channels pairs"], Float[Tensor, "channels pairs"]]:
    """The least and the greatest sum of every pair, for inputs from 0 to 255."""
    weight = functional.pad(layer.apply_weights.weight.detach().flatten(1), (0, 1))
    pairs = weight[:, order]
    return pairs.clamp(max=0).sum(dim=2) * LEVELS, pairs.clamp(min=0).sum(dim=2) * LEVELS
