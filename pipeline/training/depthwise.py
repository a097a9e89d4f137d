"""Convolutions on a CPU whose gradient PyTorch computes slowly, or wrongly.

PyTorch 2.14 is slow at three gradients of depthwise convolutions (milliseconds of PyTorch and of this module
for 32 images on two cores):

- that of the weights if the input is smaller than the kernel (1152 channels of 2 x 2 pixels, a 5 x 5 kernel,
  AVX2: 23 and 1);
- in bf16, that of an input that is read with a stride (96 channels of 48 x 48 pixels, AVX-512: 27 and 2);
- in bf16, that of the weights of large kernels (240 channels of 24 x 24 pixels, a 5 x 5 kernel, AVX-512: 30
  and 8).

PyTorch 2.14 writes outside of its memory when it computes the gradient of the weights of a convolution of one
pixel with a stride that reads fewer than 16 channels stored pixel by pixel (channels last), as the stems of
RepVGG, MobileOne and FastViT do; the process ends, or its numbers are wrong. There, the pixels that the
convolution reads are taken first, and its stride is 1.

Once all of this is mended in PyTorch itself, this module can be deleted; results then differ by rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

Pair = tuple[int, int]

SAFE_CHANNELS = 16
"""Number of input channels from which the gradient of a convolution of one pixel is safe."""

LARGE_KERNEL = 4
"""Side of a kernel in pixels from which the gradient of its weights is slow in bf16."""

CONVOLUTION = torch.conv2d
"""PyTorch's own convolution."""


def convolve(*args: Any, **kwargs: Any) -> Tensor:
    """``torch.conv2d``, or the same convolution with gradients that are fast and right (see the module)."""
    if not kwargs and len(args) == 7 and args[0].device.type == "cpu" and args[1].requires_grad:
        image, weight, bias, stride, padding, dilation, groups = args
        if _is_strided_pixel(weight, stride):
            return CONVOLUTION(_read(image, stride, padding), weight, bias, groups=groups)
        if _is_depthwise(image, weight, padding, dilation, groups):
            dtype, stride = _compute_type(image), _pair(stride)
            in_bf16 = dtype is torch.bfloat16
            if _is_small(image, weight) or (in_bf16 and (max(stride) > 1 or _is_large(weight))):
                operands = (part if part is None else part.to(dtype) for part in (image, weight, bias))
                return _Depthwise.apply(*operands, stride, _pair(padding))
    return CONVOLUTION(*args, **kwargs)


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _is_depthwise(
    image: Tensor, weight: Tensor, padding: str | int | Sequence[int], dilation: Any, groups: int
) -> bool:
    return (
        weight.shape[1] == 1
        and groups == image.shape[1] == weight.shape[0]
        and not isinstance(padding, str)
        and _pair(dilation) == (1, 1)
    )


def _compute_type(image: Tensor) -> torch.dtype:
    """Type in which the convolution is computed: that of autocast, if it is active and the input is not
    double."""
    if image.dtype is torch.float64 or not torch.is_autocast_enabled("cpu"):
        return image.dtype
    return torch.get_autocast_dtype("cpu")


def _is_strided_pixel(weight: Tensor, stride: int | Sequence[int]) -> bool:
    """Whether the gradient of the weights is not safe: see the class."""
    return weight.shape[1] < SAFE_CHANNELS and weight.shape[2:] == (1, 1) and max(_pair(stride)) > 1


def _read(image: Tensor, stride: int | Sequence[int], padding: str | int | Sequence[int]) -> Tensor:
    """The pixels that a convolution of one pixel reads."""
    rows, columns = _pair(stride)
    high, wide = (0, 0) if isinstance(padding, str) else _pair(padding)
    return functional.pad(image, (wide, wide, high, high))[..., ::rows, ::columns]


def _is_small(image: Tensor, weight: Tensor) -> bool:
    return min(image.shape[2:]) < max(weight.shape[2:])


def _is_large(weight: Tensor) -> bool:
    return max(weight.shape[2:]) >= LARGE_KERNEL


class _Depthwise(Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
    ) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return CONVOLUTION(image, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        image, weight = ctx.saved_tensors
        operands = image, gradient, weight, ctx.stride, ctx.padding
        in_bf16 = image.dtype is torch.bfloat16
        to_image = to_weight = None
        if ctx.needs_input_grad[0]:
            is_padded_less = all(pad < tap for pad, tap in zip(ctx.padding, weight.shape[2:], strict=True))
            if in_bf16 and max(ctx.stride) > 1 and is_padded_less:
                to_image = _spread(*operands)
            else:
                to_image, *_ = _pytorchs(*operands, (True, False, False))
        if _is_small(image, weight):
            to_weight = _tap_by_tap(image, gradient, weight.shape, ctx.stride, ctx.padding)
        elif in_bf16 and _is_large(weight):
            to_weight = _correlation(image, gradient, weight.shape, ctx.stride, ctx.padding)
        else:
            _, to_weight, _ = _pytorchs(*operands, (False, True, False))
        to_bias = gradient.sum((0, 2, 3)) if ctx.has_bias else None
        return to_image, to_weight, to_bias, None, None


def _pytorchs(
    image: Tensor, gradient: Tensor, weight: Tensor, stride: Pair, padding: Pair, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """PyTorch's own gradients: of the image, the weights and the bias, as ``wanted``."""
    return torch.ops.aten.convolution_backward(
        gradient, image, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), wanted
    )


def _spread(image: Tensor, gradient: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of the image as a convolution without a stride, of the gradient with zeros between its
    pixels and the turned kernel."""
    (height, width), (rows, columns) = image.shape[2:], weight.shape[2:]
    sides = height + 2 * padding[0] - rows + 1, width + 2 * padding[1] - columns + 1
    shape = *image.shape[:2], *sides
    spread = torch.empty(shape, dtype=image.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    rest = rows - 1 - padding[0], columns - 1 - padding[1]
    return CONVOLUTION(spread, weight.flip(2, 3), None, 1, rest, 1, len(weight))


def _correlation(image: Tensor, gradient: Tensor, shape: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of the weights as a convolution of the image with the gradient as its kernel, image by
    image, which are channels of one image here."""
    images, channels = image.shape[:2]
    together, kernels = (
        values.permute(2, 3, 0, 1).reshape(*values.shape[2:], -1).permute(2, 0, 1)
        for values in (image, gradient)
    )
    taps = CONVOLUTION(together[None], kernels[:, None], None, 1, padding, stride, len(kernels))
    taps = taps[:, :, : shape[2], : shape[3]].reshape(images, channels, 1, *shape[2:])
    return taps.sum(0)


def _tap_by_tap(image: Tensor, gradient: Tensor, shape: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """The gradient of the weights: one product and sum per tap of the kernel, over the outputs whose tap lies
    within the image."""
    image, gradient = image.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    result = gradient.new_zeros(shape)
    for row in range(shape[2]):
        for column in range(shape[3]):
            overlaps = [
                _overlap(image.shape[axis], gradient.shape[axis], tap, stride[axis - 1], padding[axis - 1])
                for axis, tap in ((1, row), (2, column))
            ]
            (rows_in, rows_out), (columns_in, columns_out) = overlaps
            products = image[:, rows_in, columns_in] * gradient[:, rows_out, columns_out]
            result[:, 0, row, column] = products.sum((0, 1, 2))
    return result


def _overlap(inputs: int, outputs: int, tap: int, stride: int, padding: int) -> tuple[slice, slice]:
    """Along one axis: the inputs that the tap reads, and the outputs that read them."""
    shift = tap - padding
    first = max(0, -(shift // stride))
    last = min(outputs - 1, (inputs - 1 - shift) // stride)
    count = max(0, last - first + 1)
    start = first * stride + shift
    return slice(start, start + (count - 1) * stride + 1 if count else start, stride), slice(
        first, first + count
    )
