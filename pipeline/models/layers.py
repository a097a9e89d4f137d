"""The layers of a student in the order in which they run: traced once and handed on as a value.

A student is a chain. Each layer is a unit of modules: padding, a convolution, its batch norm and an
activation; the last layer is the classifier. This file is the only one that knows what the modules of a unit
are called and that traces a network; all others take a ``Network``.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx, nn
from torch.fx.proxy import TraceError

from pipeline.errors import DistilleryError

IMAGES = "images"
"""Name of the network's input among the activations."""

CLIPPING: dict[type[nn.Module], float] = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}
"""Activations that uint8 rounding with zero point 0 performs by itself, to the values at which they
saturate."""

PASSED = (nn.Flatten, nn.Dropout, nn.Identity)
"""Kinds of modules that hand an activation on as it is."""

Kind = Literal["dense", "depthwise", "grouped", "linear"]
"""How the output channels of a layer read its input channels: a convolution reads all (dense), only its own
(depthwise) or those of its group (grouped); ``linear`` is the classifier."""


class NetworkError(DistilleryError):
    """A network is not a chain of known modules; the message names the first part that does not fit."""


@dataclass(frozen=True)
class Layer:
    """A layer with weights, and the paths of its modules."""

    name: str
    """Path of the unit, such as ``blocks.3.pointwise``. It names the layer's output as well."""
    kind: Kind
    reads: str
    """Name of the activation that the layer reads: ``images``, another layer, or a pooling module."""
    weights: str
    """Path of the convolution or the linear module."""
    padding: str | None = None
    """Path of the module that puts zeros around the input, where the convolution itself cannot."""
    norm: str | None = None
    """Path of the batch norm that follows the convolution directly."""
    activation: str | None = None
    """Path of the activation module; the classifier has none."""
    clip: float | None = None
    """Value at which the activation saturates: 6 for ReLU6, infinity for ReLU, None without an activation."""

    @property
    def steps(self) -> tuple[str, ...]:
        """Paths of the layer's modules in the order in which they run."""
        paths = (self.padding, self.weights, self.norm, self.activation)
        return tuple(path for path in paths if path is not None)


@dataclass(frozen=True)
class Network:
    """A module together with the description of its layers; a changed copy shares the description."""

    module: nn.Module
    layers: Mapping[str, Layer]
    """Name to layer, in the order in which the layers run."""
    pools: Mapping[str, str]
    """Path of each global pooling module, which names its output, to the activation that it reads."""
    steps: tuple[str, ...]
    """Paths of all modules in the order in which they run; each reads the output of the one before."""

    @property
    def parts(self) -> dict[str, nn.Conv2d | nn.Linear]:
        """Name of each layer to the module that holds its weights, in order."""
        return {name: self.part(name) for name in self.layers}

    def part(self, name: str) -> nn.Conv2d | nn.Linear:
        """The module that holds a layer's weights."""
        part = self.module.get_submodule(self.layers[name].weights)
        assert isinstance(part, nn.Conv2d | nn.Linear)
        return part

    @property
    def stem(self) -> Layer:
        """The first layer, which reads the images."""
        return next(iter(self.layers.values()))

    @property
    def head(self) -> Layer:
        """The last layer, which gives the logits."""
        return list(self.layers.values())[-1]

    @property
    def reads(self) -> dict[str, str]:
        """Name of every layer and pooling to the activation that it reads, in the order in which they run."""
        names = {layer.weights: layer.name for layer in self.layers.values()}
        names |= {path: path for path in self.pools}
        sources = {**self.pools, **{name: layer.reads for name, layer in self.layers.items()}}
        return {names[path]: sources[names[path]] for path in self.steps if path in names}

    def output(self, name: str) -> str:
        """Path of the module that gives the named activation: an activation module or a pooling."""
        if name in self.pools:
            return name
        path = self.layers[name].activation
        assert path is not None, f"{name} gives logits, which are not an activation"
        return path

    def neighbours(self) -> list[tuple[Layer, Layer]]:
        """Pairs of layers of which the second reads the first's activation, perhaps pooled.

        Layers that read groups of several channels are left out.
        """
        pairs = []
        for layer in self.layers.values():
            source = layer.reads
            while source in self.pools:
                source = self.pools[source]
            if source != IMAGES and layer.kind != "grouped":
                pairs.append((self.layers[source], layer))
        return pairs

    def copy(self) -> "Network":
        """The same network with a copy of the module."""
        return replace(self, module=copy.deepcopy(self.module))

    def without_norms(self, module: nn.Module) -> "Network":
        """The description of a module that is built alike, but without batch norms."""
        norms = {layer.norm for layer in self.layers.values()}
        return Network(
            module,
            {name: replace(layer, norm=None) for name, layer in self.layers.items()},
            self.pools,
            tuple(path for path in self.steps if path not in norms),
        )


def trace(module: nn.Module) -> Network:
    """Describe a student.

    Raises:
        NetworkError: the network is not a chain of modules (residual additions and branches are not supported
            yet), a module is of an unknown kind, or a layer other than the last lacks its activation.
    """
    try:
        nodes = fx.symbolic_trace(module).graph.nodes
    except TraceError as error:
        raise NetworkError(f"the network cannot be traced: {error}") from error
    layers: dict[str, Layer] = {}
    pools: dict[str, str] = {}
    steps: list[str] = []
    activation, layer, previous = IMAGES, None, None
    for node in nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder" and previous is None:
            previous = node
            continue
        if node.op != "call_module" or node.args != (previous,) or node.kwargs:
            raise NetworkError(
                f"`{node.name}` ({node.op}) reads {', '.join(map(str, node.all_input_nodes)) or 'nothing'}; "
                "a network must be a chain of modules, each of which reads the one before: residual "
                "additions and branches are not supported"
            )
        path, part, previous = str(node.target), module.get_submodule(str(node.target)), node
        before = steps[-1] if steps else None
        if path in steps:
            raise NetworkError(f"module {path} runs twice; each module of a network must run once")
        if isinstance(part, nn.Conv2d | nn.Linear):
            if layer is not None and (layer.activation is None or layer.kind == "linear"):
                raise NetworkError(
                    f"layer {path} follows {layer.name}, which has no ReLU or ReLU6 of its own or is linear; "
                    "only convolutions with an activation may have a layer after them"
                )
            padded = before is not None and isinstance(module.get_submodule(before), nn.ZeroPad2d)
            name = path.removesuffix(".conv")
            layer = Layer(name, _kind(part), activation, path, padding=before if padded else None)
        elif isinstance(part, nn.BatchNorm2d) and layer is not None and before == layer.weights:
            layer = replace(layer, norm=path)
        elif type(part) in CLIPPING and layer is not None and before in (layer.weights, layer.norm):
            layer = replace(layer, activation=path, clip=CLIPPING[type(part)])
            activation = layer.name
        elif isinstance(part, nn.AdaptiveAvgPool2d) and (layer is None or layer.activation is not None):
            pools[path] = activation
            activation = path
        elif not isinstance(part, (nn.ZeroPad2d, *PASSED)):
            raise NetworkError(
                f"module {path} is a {type(part).__name__} after {before}, which no layer has there; a layer "
                "is a ZeroPad2d (if any), a Conv2d or Linear, a BatchNorm2d (if any) and a ReLU or ReLU6, "
                "and between layers AdaptiveAvgPool2d, Flatten, Dropout and Identity are allowed"
            )
        steps.append(path)
        if layer is not None:
            layers[layer.name] = layer
    return Network(module, layers, pools, tuple(steps))


def _kind(part: nn.Conv2d | nn.Linear) -> Kind:
    if isinstance(part, nn.Linear):
        return "linear"
    if part.groups == 1:
        return "dense"
    return "depthwise" if part.groups == part.in_channels == part.out_channels else "grouped"


def unit(conv: nn.Conv2d, act: nn.Module, pad: nn.ZeroPad2d | None = None) -> nn.Sequential:
    """The modules of a layer under the names that students give them, without a batch norm."""
    padding = {} if pad is None else {"pad": pad}
    return nn.Sequential(OrderedDict[str, nn.Module](**padding, conv=conv, act=act))
