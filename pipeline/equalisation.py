"""Cross-layer equalisation: the same network, whose channels share the grid of their activation more evenly.

A ReLU passes positive factors on, so a channel can be divided by any factor in one layer and multiplied by
it in the next (Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1). Their factors equalise the
ranges of both layers' weights. Here every output channel has a step of its own, which makes its factor
harmless; what channels share is the scale of the activation between the layers, so that range takes the place
of the first layer's weights.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from pipeline.quantization import CLIPPING, Batches, layer_inputs, layers, observe

GREATEST_FACTOR = 256.0
"""A channel that is weaker than this is left to the noise: its bias must still be counted in 32 bits."""
REACHED = 1 - 1e-4
"""Share of a clip from which on a channel counts as clipped."""


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
    greatest = channel_maxima(module, batches, [source for source, _ in pairs])
    for source, reader in pairs:
        first, second = parts[source], parts[reader]
        clip = CLIPPING[type(module.get_submodule(source).get_submodule("act"))]
        factor = factors(greatest[source], second, clip)
        first.weight /= factor.view(-1, *[1] * (first.weight.dim() - 1))
        assert first.bias is not None
        first.bias /= factor
        if is_depthwise(second):
            second.weight *= factor.view(-1, 1, 1, 1)
        else:
            second.weight *= factor.view(1, -1, *[1] * (second.weight.dim() - 2))
    return equal


def factors(
    greatest: Float[Tensor, " channels"], reader: nn.Conv2d | nn.Linear, clip: float
) -> Float[Tensor, " channels"]:
    """What each channel is divided by before, and multiplied by in, the layer that reads it.

    Where the reader is depthwise, its steps take any factor, and all channels get the same range. Otherwise a
    channel's range becomes proportional to that of the weights that read it, as in the paper; each output's
    weights count relative to their greatest. The greatest range stays as it is.
    """
    if is_depthwise(reader):
        read = torch.ones_like(greatest)
        factor = greatest
    else:
        weight = (
            reader.weight.abs().flatten(2).amax(dim=2) if reader.weight.dim() > 2 else reader.weight.abs()
        )
        read = (weight / weight.amax(dim=1, keepdim=True).clamp_min(1e-12)).amax(dim=0)
        factor = (greatest / read.clamp_min(1e-12)).sqrt()
    used = (greatest > 0) & (read > 0)
    if not used.any():
        return torch.ones_like(greatest)
    factor = factor * (greatest[used] / factor[used]).max() / greatest.max()
    factor = factor.clamp(1 / GREATEST_FACTOR, GREATEST_FACTOR)
    kept = ~used | (greatest >= clip * REACHED)
    return torch.where(kept, 1.0, factor)


def channel_maxima(
    module: nn.Module, batches: Batches, names: list[str]
) -> dict[str, Float[Tensor, " channels"]]:
    """The greatest value of every channel of each named activation.

    Raises:
        ValueError: there are no images.
    """
    greatest: dict[str, Tensor] = {}

    def widen(name: str, values: Tensor) -> None:
        most = values.amax(dim=[0, *range(2, values.dim())])
        greatest[name] = torch.maximum(greatest[name], most) if name in greatest else most

    if not observe(module, batches, names, widen):
        raise ValueError("there are no calibration images; at least one is needed")
    return greatest


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


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel is read by one output channel alone."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels
