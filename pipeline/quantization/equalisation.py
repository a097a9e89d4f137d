"""Cross-layer equalisation: the same network with channels that fit the grids they share more evenly.

A ReLU passes positive factors on, so a channel can be divided by any factor in one layer and multiplied by
it in the next (Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1). In the paper each layer's
weights have one step, and the factors balance the weight ranges of both layers. Here every output channel
has a step of its own and takes any factor; what channels share is the scale of the activation between two
layers, and the steps of the layer that reads it. Where the reader is depthwise, only the activation is
shared, and its channels get one range. Elsewhere the seven bits of the reader are the bottleneck, and the
columns of its weights get one size.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.layers import Network
from pipeline.quantization.observation import Batches, observe

GREATEST_FACTOR = 256.0
"""Greatest factor of a channel. A weaker channel is left to the noise, since its bias must still fit 32
bits."""
TINY = 1e-12
"""Share of a layer's squared weights below which an input channel counts as unread."""
REACHED = 1 - 1e-4
"""Share of a clip from which on a channel counts as clipped."""


@dataclass(frozen=True)
class Maxima:
    """The greatest values of each channel of an activation."""

    greatest: Float[Tensor, " channels"]
    """Greatest value over all images."""
    mean: Float[Tensor, " channels"]
    """Greatest value in each image, averaged over the images; one odd pixel weighs little."""


@torch.no_grad()
def equalise(network: Network, batches: Batches) -> Network:
    """A copy of a folded network that gives the same logits, with equalised channels.

    The copy is exact with ReLU. A ReLU6 clips at 6 whatever the factor: channels that reach it on the
    calibration images keep their scale, and the others stay below it. Such a copy is exact on those images;
    on others a channel may clip above the greatest value that it had there.

    Raises:
        ValueError: there are no images.
    """
    equal = network.copy()
    pairs = network.neighbours()
    maxima = channel_maxima(network, batches, [source.name for source, _ in pairs])
    for source, reader in pairs:
        first, second = equal.part(source.name), equal.part(reader.name)
        assert source.clip is not None
        factor = factors(second, maxima[source.name], source.clip, depthwise=reader.kind == "depthwise")
        rescale(first, second, factor, depthwise=reader.kind == "depthwise")
    return equal


@torch.no_grad()
def rescale(
    first: nn.Conv2d | nn.Linear,
    second: nn.Conv2d | nn.Linear,
    factor: Float[Tensor, " channels"],
    *,
    depthwise: bool,
) -> None:
    """Divide a layer's channels by factors and multiply them by the same in the layer that reads them."""
    assert first.bias is not None
    first.weight /= factor.view(-1, *[1] * (first.weight.dim() - 1))
    first.bias.div_(factor)
    along = (-1, 1) if depthwise else (1, -1)
    second.weight *= factor.view(*along, *[1] * (second.weight.dim() - 2))


def factors(
    reader: nn.Conv2d | nn.Linear, maxima: Maxima, clip: float, *, depthwise: bool
) -> Float[Tensor, " channels"]:
    """The factors by which channels are divided before the layer that reads them, and multiplied within it.

    The activation's greatest value stays as it is.
    """
    if depthwise:
        factor = maxima.mean.clone()
    else:
        weight = reader.weight.flatten(2).square().sum(dim=2) if reader.weight.dim() > 2 else reader.weight**2
        # An output channel has a step of its own, so only shares of its weights tell columns apart.
        shares = weight / weight.sum(dim=1, keepdim=True).clamp_min(TINY)
        factor = shares.mean(dim=0).clamp_min(TINY).rsqrt()
    used = (maxima.greatest > 0) & (factor > 0) & (factor < TINY**-0.5)
    if not used.any():
        return torch.ones_like(factor)
    factor *= (maxima.greatest[used] / factor[used]).max() / maxima.greatest.max()
    fixed = ~used | (maxima.greatest >= clip * REACHED)
    return torch.where(fixed, 1.0, factor.clamp(1 / GREATEST_FACTOR, GREATEST_FACTOR))


def channel_maxima(network: Network, batches: Batches, names: list[str]) -> dict[str, Maxima]:
    """The greatest values of every channel of the named activations.

    Raises:
        ValueError: there are no images.
    """
    greatest: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def look(name: str, values: Tensor) -> None:
        most = values.flatten(2).amax(dim=2)
        high = most.amax(dim=0)
        greatest[name] = torch.maximum(greatest[name], high) if name in greatest else high
        sums[name] = sums.get(name, 0) + most.sum(dim=0)
        counts[name] += len(most)

    observe(network, batches, names, look)
    return {name: Maxima(greatest[name], sums[name] / counts[name]) for name in names}
