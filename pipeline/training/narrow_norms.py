"""Batch norms of few channels on a CPU, which PyTorch computes slowly.

PyTorch 2.14 normalises maps that are stored pixel by pixel (channels last) one pixel at a time, in pieces as
wide as a vector register: 16 channels in fp32, 32 in bf16. What is left over is slow. For 32 images in bf16,
on two cores with AVX-512, a batch norm of 24 channels of 96 x 96 pixels takes 15 ms forward and backward, and
one of 96 channels of 48 x 48 pixels, which has as many values, 3 ms. Here, neighbouring pixels are read as
one pixel with several times as many channels, which fill whole registers, and the statistics of what was one
channel are joined: 4 ms.

Once this is mended in PyTorch itself, this module can be deleted; results then differ by rounding.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pipeline.training import batch_statistics

BATCH_NORM = torch.batch_norm
"""PyTorch's own batch norm."""

REGISTER = 32
"""Number of channels in bf16 that fill a vector register of 512 bits."""

NARROW = 64
"""Number of channels from which what is left over is a small part of the work."""

Maps = Float[Tensor, "_ _ _ _"]


def normalise(*args: Any, **kwargs: Any) -> Tensor:
    """``torch.batch_norm``, or the same in whole registers (see the module)."""
    if not kwargs and len(args) == 9 and args[5] and args[1] is not None and args[2] is not None:
        image, weight, bias, running_mean, running_var, _, momentum, eps, _ = args
        together = _pixels_together(image)
        if together > 1:
            return _NarrowNorm.apply(image, weight, bias, running_mean, running_var, momentum, eps, together)
    return BATCH_NORM(*args, **kwargs)


def _pixels_together(image: Tensor) -> int:
    """Number of neighbouring pixels whose channels fill whole registers; 1 if PyTorch is as fast."""
    if image.device.type != "cpu" or image.dim() != 4:
        return 1
    channels, width = image.shape[1], image.shape[3]
    together = REGISTER // math.gcd(REGISTER, channels)
    is_narrow = channels < NARROW and channels % (REGISTER // 2)
    stored_by_pixel = image.is_contiguous(memory_format=torch.channels_last)
    return together if is_narrow and width % together == 0 and stored_by_pixel else 1


class _NarrowNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Maps,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        together: int,
    ) -> Maps:
        joined = _join(image, together)
        # With parameters in fp32, the statistics of maps in bf16 are in fp32, too.
        parameters = weight.repeat(together), bias.repeat(together)
        _, means, deviations = torch.native_batch_norm(joined, *parameters, None, None, True, 0.0, eps)
        means = means.double().view(together, -1)
        variances = deviations.double().view(together, -1) ** -2 - eps
        mean, var = batch_statistics.join(means, variances, 1 / together)
        var = var.clamp(min=0)
        batch_statistics.update(running_mean, running_var, mean, var, image.numel() / len(weight), momentum)
        mean, var = mean.to(weight), var.to(weight)
        ctx.save_for_backward(image, weight, mean, var)
        ctx.eps, ctx.together = eps, together
        output = _part(_scale(joined, weight, bias, mean, var, eps), image.shape)
        # Not a view, which an activation could not change in place.
        own = output.new_empty(0)
        return own.set_(output.untyped_storage(), 0, output.shape, output.stride())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        image, weight, mean, var = ctx.saved_tensors
        joined, together = _join(image, ctx.together), ctx.together
        to_image, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            _join(gradient.contiguous(memory_format=torch.channels_last), together),
            joined,
            weight.repeat(together),
            mean.repeat(together),
            var.repeat(together),
            None,
            None,
            False,
            ctx.eps,
            (True, True, True),
        )
        to_weight, to_bias = (sums.view(together, -1).sum(0) for sums in (to_weight, to_bias))
        # So far as if mean and variance were constants; that they are not is an affine function of the image.
        share = weight * (var + ctx.eps).rsqrt() * (len(weight) / image.numel())
        to_image -= _scale(joined, share * to_weight, share * to_bias, mean, var, ctx.eps)
        return _part(to_image, image.shape), to_weight, to_bias, None, None, None, None, None


def _scale(joined: Maps, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Maps:
    """Batch norm with given statistics of the channels before they were joined."""
    together = joined.shape[1] // len(weight)
    weight, bias, mean, var = (values.repeat(together) for values in (weight, bias, mean, var))
    return torch.native_batch_norm(joined, weight, bias, mean, var, False, 0.0, eps)[0]


def _join(image: Maps, together: int) -> Maps:
    """The same memory, read with several neighbouring pixels as one pixel of all their channels."""
    images, channels, height, width = image.shape
    pixels = image.permute(0, 2, 3, 1).view(images, height, width // together, together * channels)
    return pixels.permute(0, 3, 1, 2)


def _part(joined: Maps, shape: torch.Size) -> Maps:
    """The same memory, read with the pixels and channels of before."""
    images, channels, height, width = shape
    return joined.permute(0, 2, 3, 1).view(images, height, width, channels).permute(0, 3, 1, 2)
