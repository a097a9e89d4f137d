"""Batch norm with the statistics of a batch that several processes share."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

from pipeline.training import batch_statistics


class SharedStatistics(TorchFunctionMode):
    """While active, batch norms in training mode normalise with the statistics of all ranks.

    All kinds of modules are covered that call ``torch.nn.functional.batch_norm``, such as those of timm with
    an activation inside, and the modules stay as they are. On a GPU, the kernels are those of
    ``torch.nn.SyncBatchNorm``, which PyTorch 2.14 has for no CPU.
    """

    def __init__(self, fabric: Fabric) -> None:
        super().__init__()
        self.ranks = fabric.world_size

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, or batch norm with shared statistics."""
        if func is functional.batch_norm:
            return _batch_norm(self.ranks, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    ranks: int,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` with its own names, over all ranks in training."""
    if not training:
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    channels, device = input.shape[1], input.device
    weight = torch.ones(channels, device=device) if weight is None else weight
    bias = torch.zeros(channels, device=device) if bias is None else bias
    if device.type == "cpu":
        return _SharedBatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return SyncBatchNorm.apply(
        input, weight, bias, running_mean, running_var, eps, momentum, distributed.group.WORLD, ranks
    )


class _SharedBatchNorm(Function):
    """The two passes of batch norm, with one exchange of sums in each.

    PyTorch's kernels for evaluation do the rest: they normalise with given statistics, and their gradients of
    weight and bias are the sums that the gradient of the input needs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        count = input.numel() // input.shape[1]
        mean, var, images = _statistics(input, count)
        batch_statistics.update(running_mean, running_var, mean, var, images, momentum)
        ctx.save_for_backward(input, weight, mean, var)
        ctx.eps, ctx.images = eps, images
        return functional.batch_norm(input, mean, var, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, weight, mean, var = ctx.saved_tensors
        to_input, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], input, weight, mean, var, mean, var, False, ctx.eps, (True, True, True)
        )
        sums = torch.stack([to_weight, to_bias])
        distributed.all_reduce(sums)
        # So far as if mean and variance were constants; that they are not is an affine function of the input.
        share = weight * (var + ctx.eps).rsqrt() / ctx.images
        to_input -= functional.batch_norm(input, mean, var, share * sums[0], share * sums[1], eps=ctx.eps)
        return to_input, to_weight, to_bias, None, None, None, None


def _statistics(
    input: Float[Tensor, "batch channels *size"], count: int
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"], float]:
    """Mean and biased variance per channel over all ranks, and the number of values per channel.

    Each rank sends its own mean and variance, which are joined.
    """
    dims = (0, *range(2, input.dim()))
    var, mean = torch.var_mean(
        input.to(torch.promote_types(input.dtype, torch.float32)), dim=dims, correction=0
    )
    own = torch.cat([mean, var, mean.new_tensor([count])])
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    every = torch.stack(parts)
    means, variances, counts = every[:, : len(mean)], every[:, len(mean) : -1], every[:, -1:].double()
    whole_mean, whole_var = batch_statistics.join(means, variances, counts / counts.sum())
    return whole_mean.to(mean.dtype), whole_var.to(var.dtype), float(counts.sum())
