"""Cross-layer equalisation: the same network, whose channels fit the grids that they share more evenly.

A ReLU passes positive factors on, so a channel can be divided by any factor in one layer and multiplied by
it in the next (Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1). Their factors balance the
ranges of both layers' weights, of which each has one step. Here every output channel has a step of its own
and takes any factor; what channels share is the scale of the activation between two layers, and the steps of
the layer that reads it. Where that is depthwise, the activation is all that is shared, and its channels get
one range. Elsewhere the reader's seven bits are what is scarce, and the columns of its weights get one size.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from pipeline.quantization.simulator import CLIPPING, Batches, is_depthwise, layer_inputs, layers, observe

GREATEST_FACTOR = 256.0
"""Of a channel; a weaker one is left to the noise, since its bias must still be counted in 32 bits."""
TINY = 1e-12
"""Share of a layer's squared weights from which on they count as read."""
REACHED = 1 - 1e-4
"""Share of a clip from which on a channel counts as clipped."""


@dataclass(frozen=True)
class Maxima:
    """Of each channel of an activation."""

    greatest: Float[Tensor, " channels"]
    """Over all images."""
    mean: Float[Tensor, " channels"]
    """Over the images, of the greatest value in each; one odd pixel weighs little."""


@torch.no_grad()
def equalise(module: nn.Module, batches: Batches) -> nn.Module:
    """A copy of a folded module that gives the same logits, with equalised channels.

    Exact with ReLU. A ReLU6 clips at 6 whatever the factor: channels that reach it on the calibration images
    keep their scale, and no other is brought beyond it. The copy is exact on those images; on others a
    channel may clip above the greatest value that it had there.

    Raises:
        ValueError: there are no images, or a layer reads the sum of two activations.
    """
    equal = copy.deepcopy(module)
    parts = layers(equal)
    pairs = neighbours(module)
    seen = maxima(module, batches, [source for source, _ in pairs])
    for source, reader in pairs:
        first, second = parts[source], parts[reader]
        clip = CLIPPING[type(module.get_submodule(source).get_submodule("act"))]
        factor = factors(second, seen[source], clip)
        first.weight /= factor.view(-1, *[1] * (first.weight.dim() - 1))
        assert first.bias is not None
        first.bias.div_(factor)
        along = (-1, 1) if is_depthwise(second) else (1, -1)
        second.weight *= factor.view(*along, *[1] * (second.weight.dim() - 2))
    return equal


def factors(reader: nn.Conv2d | nn.Linear, seen: Maxima, clip: float) -> Float[Tensor, " channels"]:
    """What each channel is divided by before the layer that reads it, and multiplied by within.

    The activation's greatest value stays as it is.
    """
    if is_depthwise(reader):
        factor = seen.mean.clone()
    else:
        weight = reader.weight.flatten(2).square().sum(dim=2) if reader.weight.dim() > 2 else reader.weight**2
        # An output channel has a step of its own, so only shares of its weights tell columns apart.
        shares = weight / weight.sum(dim=1, keepdim=True).clamp_min(TINY)
        factor = shares.mean(dim=0).clamp_min(TINY).rsqrt()
    used = (seen.greatest > 0) & (factor > 0) & (factor < TINY**-0.5)
    if not used.any():
        return torch.ones_like(factor)
    factor *= (seen.greatest[used] / factor[used]).max() / seen.greatest.max()
    fixed = ~used | (seen.greatest >= clip * REACHED)
    return torch.where(fixed, 1.0, factor.clamp(1 / GREATEST_FACTOR, GREATEST_FACTOR))


def maxima(module: nn.Module, batches: Batches, names: list[str]) -> dict[str, Maxima]:
    """Greatest values of every channel of the named activations.

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

    if not observe(module, batches, names, look):
        raise ValueError("there are no calibration images; at least one is needed")
    return {name: Maxima(greatest[name], sums[name] / counts[name]) for name in names}


def neighbours(module: nn.Module) -> list[tuple[str, str]]:
    """Pairs of layers of which the second, and nothing else, reads the first's activation, perhaps pooled."""
    layer_inputs(module)  # raises where activations are added
    carried: dict[fx.Node, str] = {}
    pairs = []
    for node in fx.symbolic_trace(module).graph.nodes:
        if node.op != "call_module":
            continue
        part, source, target = module.get_submodule(node.target), node.args[0], str(node.target)
        alone = source in carried and len(source.users) == 1
        if isinstance(part, tuple(CLIPPING)):
            carried[node] = target.removesuffix(".act")
        elif alone and isinstance(part, nn.Conv2d | nn.Linear):
            if isinstance(part, nn.Linear) or part.groups == 1 or is_depthwise(part):
                pairs.append((carried[source], target.removesuffix(".conv")))
        elif alone:
            carried[node] = carried[source]
    return pairs
