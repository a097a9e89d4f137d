"""An int8 student in the shapes that ONNX Runtime's kernels run fastest, with the same results to the bit.

On x86, two int8 kernels read their input where it lies (onnxruntime/core/mlas/lib/convsym.cpp): a depthwise
one for multiples of 16 channels, and a dense one for multiples of 4. A layer that fits neither is gathered
into a matrix first, or computed channel by channel; the stem with its 3 channels and a depthwise layer with
24 are examples.
"""

from dataclasses import replace

import torch
from torch import nn

from pipeline.models.layers import Network, trace, unit
from pipeline.models.storage import Quantization

FILL = 16
"""Number of channels of which the depthwise kernel takes multiples."""
QUAD = 4
"""Number of neighbouring pixels that the stem reads as one pixel of 12 channels, as they lie in memory."""


def filled(channels: int) -> int:
    """Number of channels of an int8 activation that a depthwise layer reads, zeros included."""
    return -(-channels // FILL) * FILL


def fill(network: Network, quantization: Quantization) -> tuple[Network, Quantization]:
    """A copy whose int8 depthwise layers have multiples of 16 channels; the added channels hold zeros.

    The layer before makes the zeros and the layer after multiplies them by zero, so both must be dense
    convolutions, and the first must be in int8.
    """
    parts, reads = network.parts, network.reads
    dense = {name for name, layer in network.layers.items() if layer.kind == "dense"}
    more: dict[str, int] = {}
    for name, layer in network.layers.items():
        source, readers = layer.reads, {reader for reader in reads if reads[reader] == name}
        between = source in dense and readers and readers <= dense
        if between and layer.kind == "depthwise" and {name, source} <= quantization.weight_scales.keys():
            more[source] = more[name] = filled(len(parts[name].weight)) - len(parts[name].weight)
    copied = network.copy()
    for name, part in copied.parts.items():
        if isinstance(part, nn.Conv2d):
            grouped = network.layers[name].kind == "depthwise"
            _widen(part, 0 if grouped else more.get(reads[name], 0), more.get(name, 0), grouped=grouped)
    scales = {
        name: nn.functional.pad(scale, (0, more.get(name, 0)), value=1.0)
        for name, scale in quantization.weight_scales.items()
    }
    return copied, replace(quantization, weight_scales=scales)


def _widen(part: nn.Conv2d, inputs: int, outputs: int, *, grouped: bool) -> None:
    """Add channels with weights and biases of zero; those of a depthwise layer are groups of their own."""
    part.weight = nn.Parameter(nn.functional.pad(part.weight.detach(), (0, 0, 0, 0, 0, inputs, 0, outputs)))
    part.groups += outputs if grouped else 0
    part.in_channels += outputs if grouped else inputs
    part.out_channels += outputs
    if part.bias is not None:
        part.bias = nn.Parameter(nn.functional.pad(part.bias.detach(), (0, outputs)))


def paired_stem(network: Network, quantization: Quantization, size: int) -> tuple[int, int, int, int] | None:
    """The zeros around the images (left, right, top, bottom), or None if ``pair_columns`` leaves the stem.

    ``size`` is the side of the images in pixels.
    """
    stem = network.stem
    part = network.part(stem.name)
    if stem.name not in quantization.weight_scales or not isinstance(part, nn.Conv2d):
        return None
    around = nn.ZeroPad2d(0) if stem.padding is None else network.module.get_submodule(stem.padding)
    assert isinstance(around, nn.ZeroPad2d)
    assert not isinstance(part.padding, str)
    vertical, horizontal = part.padding
    left, right, top, bottom = around.padding
    zeros = (left + horizontal, right + horizontal, top + vertical, bottom + vertical)
    fits = (size + zeros[0] + zeros[1] - part.kernel_size[1]) // 2 + 1 == size // 2 and size % QUAD == 0
    plain = part.stride == (2, 2) and part.dilation == (1, 1) and part.groups == 1
    return zeros if fits and plain else None


def pair_columns(
    network: Network, quantization: Quantization, size: int
) -> tuple[Network, Quantization, int]:
    """A copy whose int8 stem, of stride 2, reads four pixels at once and writes two columns at once.

    Memory stays as it is; only the shapes are read differently. The bytes of a row of the image are::

        pixel 0  pixel 1  pixel 2  pixel 3  pixel 4  pixel 5  pixel 6  pixel 7
        R G B    R G B    R G B    R G B    R G B    R G B    R G B    R G B
        |--- quad 0: 12 channels ---------|  |--- quad 1: 12 channels ---------|

    With stride 2 an output column stands on every second pixel, so a quad carries two of them. Both become
    channels of one output pixel, the left column's first::

        column 0    column 1              column 2    column 3
        C channels  C channels            C channels  C channels
        |- pair 0: 2C channels -|         |- pair 1: 2C channels -|

    For example, 192 x 192 images with C = 24, in channels-first notation::

        images [1, 3, 192, 192] -> quads [1, 12, 192, 48] -> pairs [1, 48, 96, 48] = map [1, 24, 96, 96]

    The kernel of 3 columns becomes one of 2 quads (columns without a weight hold zeros) with stride (2, 1).
    It is faster because 12 channels are a multiple of 4, which ONNX Runtime's dense kernel reads where they
    lie, while 3 channels are gathered into a matrix first; and because each quad is read once for two
    columns.

    Returns:
        The network, its quantisation, and the number of channels of one column (C). If the stem is float or
        of another shape, the former two are returned as they came, and 0.
    """
    zeros = paired_stem(network, quantization, size)
    if zeros is None:
        return network, quantization, 0
    left, _, top, bottom = zeros
    stem = network.stem
    part = network.part(stem.name)
    assert isinstance(part, nn.Conv2d)
    rows, columns = part.kernel_size
    # Quads that the kernel reaches, counted from the one that holds the pair's own pixels.
    first, last = -left // QUAD, (columns + 1 - left) // QUAD
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
    module = network.copy().module
    act = network.module.get_submodule(network.output(stem.name))
    module.set_submodule(stem.name, unit(paired, act, nn.ZeroPad2d((-first, last, top, bottom))))
    scales = {**quantization.weight_scales, stem.name: quantization.weight_scales[stem.name].repeat(2)}
    return trace(module), replace(quantization, weight_scales=scales), part.out_channels
