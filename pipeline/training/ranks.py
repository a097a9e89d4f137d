"""Several processes that train one network together, as one process would.

Each global batch is divided: a rank renders and computes its own share, and the loss is that of the whole
batch, computed by every rank from the logits of all. Gradients are averaged by DistributedDataParallel, and
batch norm has the statistics of the whole batch. With one process, nothing here does anything.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Num
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pipeline.data.batches import Batch, Request
from pipeline.data.requests import Lazily
from pipeline.errors import DistilleryError
from pipeline.training.shared_norms import SharedStatistics
from pipeline.training.step import LossTerms

Result = TypeVar("Result")
Whole = Callable[[Tensor], Tensor]
"""Function from a rank's share of a tensor to the whole, along the first dimension."""


class RankError(DistilleryError):
    """The processes cannot share this work."""


@runtime_checkable
class SharedTerms(Protocol):
    """Function from a network and a rank's share of a batch to named, unweighted loss terms, each a mean over
    the whole batch."""

    def __call__(self, module: nn.Module, batch: Batch, whole: Whole = ..., /) -> dict[str, Tensor]: ...


def alone(share: Tensor) -> Tensor:
    """The whole of a tensor where one process has all of it."""
    return share


def bounds(images: int, ranks: int) -> list[int]:
    """The first image of each rank's share of a batch, and the number of all: shares differ by one image at
    most."""
    return [images * rank // ranks for rank in range(ranks + 1)]


def shares(fabric: Fabric, requests: Sequence[Request]) -> Sequence[Request]:
    """The share of this rank of each batch."""
    if fabric.world_size == 1:
        return requests

    def share(number: int) -> Request:
        request = requests[number]
        first, end = bounds(len(request.indices), fabric.world_size)[fabric.global_rank :][:2]
        return request._replace(indices=request.indices[first:end])

    return Lazily(len(requests), share)


def check_batch(fabric: Fabric, batch_size: int, name: str) -> None:
    """Check that each rank has an image of every batch.

    Raises:
        RankError: there are more ranks than images.
    """
    if batch_size < fabric.world_size:
        raise RankError(
            f"{name}: a batch of {batch_size} images cannot be divided among {fabric.world_size} processes; "
            f"allowed: compute.devices times compute.nodes up to {batch_size}, or larger batches"
        )


def seed(fabric: Fabric, value: int) -> None:
    """Seed what is drawn in training, such as dropout: as one process does in the first rank, and otherwise
    in each other one, whose images are others."""
    torch.manual_seed(value + (fabric.global_rank << 32))


def on_whole_batches(fabric: Fabric, terms: SharedTerms, batch_size: int) -> LossTerms:
    """The same terms for a rank's share of a batch of ``batch_size`` images."""
    if fabric.world_size == 1:
        return terms
    first, end = bounds(batch_size, fabric.world_size)[fabric.global_rank :][:2]

    def whole(share: Tensor) -> Tensor:
        return _Whole.apply(share, first, end, batch_size, fabric.world_size)

    def shared(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with SharedStatistics(fabric):
            return terms(module, batch, whole)

    return shared


class _Whole(Function):
    """A tensor of which each rank has some rows.

    All ranks compute the same loss from it, so each takes the gradient of its own rows, times the number of
    ranks: the gradients of the weights are averaged afterwards, where the rows of all add up.
    """

    @staticmethod
    def forward(ctx: Any, share: Tensor, first: int, end: int, rows: int, ranks: int) -> Tensor:
        ctx.rows, ctx.ranks = slice(first, end), ranks
        whole = share.new_zeros((rows, *share.shape[1:]))
        whole[ctx.rows] = share
        distributed.all_reduce(whole)  # shares can differ in length, and a sum with zeros is exact
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradients[0][ctx.rows] * ctx.ranks, None, None, None, None


def gather(fabric: Fabric, batches: Sequence[Num[Tensor, "_ _"]]) -> list[Num[Tensor, "_ _"]]:
    """All batches in order, where rank ``r`` of ``n`` has those with the numbers ``r``, ``r + n``, ...

    Args:
        fabric: the ranks.
        batches: tensors on the CPU.
    """
    if fabric.world_size == 1:
        return list(batches)
    everything: list[Any] = [None] * fabric.world_size
    distributed.all_gather_object(everything, [batch.numpy() for batch in batches])
    rounds = range(max(map(len, everything)))
    return [torch.from_numpy(of[turn]) for turn in rounds for of in everything if turn < len(of)]


def on_first(fabric: Fabric, compute: Callable[[], Result]) -> Result:
    """What the first rank computes, in all ranks; the others wait, for hours if need be, and do nothing."""
    if fabric.world_size == 1:
        return compute()
    result: Any = None
    with fabric.rank_zero_first():
        if fabric.is_global_zero:
            threads = torch.get_num_threads()
            torch.set_num_threads(threads * fabric.strategy.num_processes)  # pyright: ignore[reportAttributeAccessIssue]
            result = compute()
            torch.set_num_threads(threads)
    return fabric.broadcast(result)


def check_equal(fabric: Fabric, value: object, what: str) -> None:
    """Check that all ranks have read the same.

    Raises:
        RankError: this one has read something else than the first one.
    """
    expected = fabric.broadcast(value)
    if value != expected:
        raise RankError(
            f"rank {fabric.global_rank} has read {what} {value}, and the first rank {expected}: all machines "
            "must see the same folder `artifacts`"
        )
