"""MobileNetV1 (Howard et al. 2017, https://arxiv.org/abs/1704.04861)."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

BASE_CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Output channels at width 1.0: the stem, then the pointwise convolution of each of the 13 blocks."""

STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
"""Stride of the stem and of each block's depthwise convolution; 32 in total."""

MINIMUM_SIZE = 32
"""Least side of the image in pixels, at which the last map has a single pixel."""

KERNEL = 3
"""Side of the kernels of the stem and of the depthwise convolutions."""

Padding = Literal["symmetric", "same"]
"""``same`` is TensorFlow's padding, for which the published weights were trained: half of the zeros, rounded
down, come before the map."""

Activation = Literal["relu", "relu6"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}


def scaled_channels(width: float, divisor: int = 8, minimum: int = 8) -> tuple[int, ...]:
    """Compute the channels of every layer at a width multiplier, rounded as by TF-slim.

    Each count is the multiple of ``divisor`` nearest to ``base * width`` that is not more than
    10 % below it, and at least ``minimum``.
    """

    def scale(base: int) -> int:
        exact = base * width
        rounded = max(minimum, int(exact + divisor / 2) // divisor * divisor)
        return rounded + divisor if rounded < 0.9 * exact else rounded

    return tuple(scale(base) for base in BASE_CHANNELS)


def leading_zeros(side: int, stride: int, padding: Padding) -> int:
    """Number of zeros before a map of ``side`` pixels; after it there are always ``KERNEL // 2``."""
    if padding == "symmetric":
        return KERNEL // 2
    needed = (math.ceil(side / stride) - 1) * stride + KERNEL - side
    return max(needed, 0) // 2


class ConvUnit(nn.Sequential):
    """Convolution, batch norm and activation; without ``norm`` the convolution carries the bias.

    If the number of ``leading`` zeros is not ``kernel // 2``, a padding layer comes first.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int,
        leading: int,
        groups: int,
        activation: Activation,
        norm: bool,
        norm_eps: float,
        norm_momentum: float,
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        trailing = kernel // 2
        if leading != trailing:
            layers["pad"] = nn.ZeroPad2d((leading, trailing, leading, trailing))
        layers["conv"] = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=trailing if leading == trailing else 0,
            groups=groups,
            bias=not norm,
        )
        if norm:
            layers["norm"] = nn.BatchNorm2d(outputs, eps=norm_eps, momentum=norm_momentum)
        layers["act"] = ACTIVATIONS[activation]()
        super().__init__(layers)


class MobileNetV1(nn.Module):
    """A stem, 13 depthwise separable blocks, global average pooling and a linear classifier.

    Weights are initialised as in He et al. 2015 (fan out).

    Args:
        classes: number of logits.
        channels: the 14 numbers of output channels (stem, then each block's pointwise convolution); after
            pruning they can be irregular.
        activation: activation after every convolution.
        padding: where the zeros around a map go.
        size: side of the image in pixels that ``same`` padding is computed for. It depends on whether a map's
            side is even, so all multiples of 32 give the same network.
        dropout: probability that a feature of the classifier is dropped in training.
        norm: whether there are batch norms; False if they are folded into the convolutions.
        norm_eps: value that is added to the variance in batch norms.
        norm_momentum: weight of a batch in the running statistics of batch norms.

    Raises:
        ValueError: there are not 14 numbers of channels, or the size is below 32 pixels.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: Sequence[int] = scaled_channels(0.75),
        activation: Activation = "relu",
        padding: Padding = "symmetric",
        size: int = 192,
        dropout: float = 0.0,
        norm: bool = True,
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if len(channels) != len(BASE_CHANNELS):
            raise ValueError(
                f"`channels` must have {len(BASE_CHANNELS)} entries for MobileNetV1; it has {len(channels)}"
            )
        if size < MINIMUM_SIZE:
            raise ValueError(f"`size` (={size}) must be at least {MINIMUM_SIZE} pixels for MobileNetV1")
        unit = {
            "activation": activation,
            "norm": norm,
            "norm_eps": norm_eps,
            "norm_momentum": norm_momentum,
        }
        sides = list(
            itertools.accumulate(STRIDES, lambda side, stride: math.ceil(side / stride), initial=size)
        )
        spatial = [
            {"kernel": KERNEL, "stride": stride, "leading": leading_zeros(side, stride, padding)}
            for side, stride in zip(sides, STRIDES, strict=False)
        ]
        self.stem = ConvUnit(3, channels[0], groups=1, **spatial[0], **unit)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    OrderedDict(
                        depthwise=ConvUnit(inputs, inputs, groups=inputs, **geometry, **unit),
                        pointwise=ConvUnit(inputs, outputs, kernel=1, stride=1, leading=0, groups=1, **unit),
                    )
                )
                for inputs, outputs, geometry in zip(channels, channels[1:], spatial[1:], strict=False)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels[-1], classes)
        if not self.classifier.weight.is_meta:  # Weights without values are replaced by those of a file.
            self._initialise()

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        x = self.blocks(self.stem(x))
        return self.classifier(self.dropout(self.flatten(self.pool(x))))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
