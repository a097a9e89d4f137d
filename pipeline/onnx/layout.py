"""An int8 student in the shapes that ONNX Runtime's kernels like; what it computes stays the same to the bit.

On x86, two int8 kernels read their input where it lies (onnxruntime/core/mlas/lib/convsym.cpp): a depthwise
one for multiples of 16 channels, and a dense one for multiples of 4. What fits neither is gathered into a
matrix first, or done channel by channel; the stem's 3 channels and a depthwise layer's 24 are such.
"""

import copy
from collections import OrderedDict
from dataclasses import replace

import torch
from torch import nn

from pipeline.models.storage import Quantization
from pipeline.quantization.simulator import IMAGES, is_depthwise, layer_inputs, layers

FILL = 16
"""Channels of the depthwise kernel."""
QUAD = 4
"""Pixels of a row that are read as one of 12 channels, as they lie in memory."""


def filled(channels: int) -> int:
    """Channels of an int8 activation that a depthwise layer reads, zeros included."""
    return -(-channels // FILL) * FILL


def fill(module: nn.Module, quantization: Quantization) -> tuple[nn.Module, Quantization]:
    """A copy whose int8 depthwise layers have multiples of 16 channels; those added hold zeros.

    The layer before makes the zeros and the layer after multiplies them by zero, so both must be dense
    convolutions, and the first in int8.
    """
    parts, reads = layers(module), layer_inputs(module)
    dense = {name for name, part in parts.items() if isinstance(part, nn.Conv2d) and part.groups == 1}
    more: dict[str, int] = {}
    for name, part in parts.items():
        source, readers = reads[name], {reader for reader in reads if reads[reader] == name}
        between = source in dense and readers and readers <= dense
        if between and is_depthwise(part) and {name, source} <= quantization.weight_scales.keys():
            more[source] = more[name] = filled(len(part.weight)) - len(part.weight)
    copied = copy.deepcopy(module)
    for name, part in layers(copied).items():
        if isinstance(part, nn.Conv2d):
            _widen(part, more.get(reads[name], 0), more.get(name, 0))
    scales = {
        name: nn.functional.pad(scale, (0, more.get(name, 0)), value=1.0)
        for name, scale in quantization.weight_scales.items()
    }
    return copied, replace(quantization, weight_scales=scales)


def _widen(part: nn.Conv2d, inputs: int, outputs: int) -> None:
    """Add channels with weights and biases of zero."""
    grouped = is_depthwise(part)
    more = (0, 0, 0, 0, 0, 0 if grouped else inputs, 0, outputs)
    part.weight = nn.Parameter(nn.functional.pad(part.weight.detach(), more))
    part.groups += outputs if grouped else 0
    part.in_channels += inputs
    part.out_channels += outputs
    if part.bias is not None:
        part.bias = nn.Parameter(nn.functional.pad(part.bias.detach(), (0, outputs)))


def paired_stem(
    module: nn.Module, quantization: Quantization, size: int
) -> tuple[str, tuple[int, int, int, int]] | None:
    """The stem that ``pair_columns`` lays out, with the zeros around it: left, right, top, bottom."""
    stem = next(name for name, source in layer_inputs(module).items() if source == IMAGES)
    unit, part = module.get_submodule(stem), layers(module)[stem]
    if stem not in quantization.weight_scales or not isinstance(part, nn.Conv2d):
        return None
    around = unit.get_submodule("pad") if "pad" in dict(unit.named_children()) else nn.ZeroPad2d(0)
    assert isinstance(around, nn.ZeroPad2d)
    assert not isinstance(part.padding, str)
    left, right, top, bottom = (
        there + own
        for there, own in zip(around.padding, (*part.padding[1:] * 2, *part.padding[:1] * 2), strict=True)
    )
    fits = (size + left + right - part.kernel_size[1]) // 2 + 1 == size // 2 and size % QUAD == 0
    plain = part.stride == (2, 2) and part.dilation == (1, 1) and part.groups == 1
    if not (fits and plain and "act" in dict(unit.named_children())):
        return None
    return stem, (left, right, top, bottom)


def pair_columns(
    module: nn.Module, quantization: Quantization, size: int
) -> tuple[nn.Module, Quantization, int]:
    """A copy whose int8 stem, of stride 2, reads four pixels of a row as 12 channels.

    It gives two columns at once, as twice the channels: [batch, 12, size, size / 4] becomes [batch,
    2 * channels, size / 2, size / 4]. In channels-last memory both are the images and the map as they are.

    Returns:
        The module, its quantisation, and the channels of one column; where the stem is float or of another
        shape, the former two as they came, and 0.
    """
    found = paired_stem(module, quantization, size)
    if found is None:
        return module, quantization, 0
    stem, (left, _, top, bottom) = found
    unit, part = module.get_submodule(stem), layers(module)[stem]
    assert isinstance(part, nn.Conv2d)
    rows, columns = part.kernel_size
    first, last = -left // QUAD, (columns + 1 - left) // QUAD  # quads, from the one of the pair's own pixels
    weight = torch.zeros(2, part.out_channels, QUAD, 3, rows, last - first + 1)
    for pair in range(2):
        for column in range(columns):
            quad, pixel = divmod(2 * pair + column - left - QUAD * first, QUAD)
            weight[pair, :, pixel, :, :, quad] = part.weight.detach()[:, :, :, column]
    paired = nn.Conv2d(
        QUAD * 3, 2 * part.out_channels, (rows, last - first + 1), stride=(2, 1), bias=part.bias is not None
    )
    paired.weight = nn.Parameter(weight.reshape(paired.weight.shape))
    if part.bias is not None:
        paired.bias = nn.Parameter(part.bias.detach().repeat(2))
    copied = copy.deepcopy(module)
    copied.set_submodule(
        stem,
        nn.Sequential(
            OrderedDict(
                pad=nn.ZeroPad2d((-first, last, top, bottom)), conv=paired, act=unit.get_submodule("act")
            )
        ),
    )
    scales = {**quantization.weight_scales, stem: quantization.weight_scales[stem].repeat(2)}
    return copied, replace(quantization, weight_scales=scales), part.out_channels
