"""Calibration images, and a look at the activations that a network computes from them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.layers import Network

Batches = Callable[[], Iterable[Float[Tensor, "_ 3 height width"]]]
"""Opens the same normalised calibration images anew at every call."""


def observe(
    network: Network, batches: Batches, names: Collection[str], see: Callable[[str, Tensor], None]
) -> None:
    """Call ``see`` with the name and the values of every named activation, batch by batch.

    Raises:
        ValueError: there are no batches.
    """
    device = next(network.module.parameters()).device
    handles = []
    for name in names:

        def hook(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            see(name, output)

        part = network.module.get_submodule(network.output(name))
        handles.append(part.register_forward_hook(hook))
    empty = True
    try:
        for batch in batches():
            network.module(batch.to(device))
            empty = False
    finally:
        for handle in handles:
            handle.remove()
    if empty:
        raise ValueError("there are no calibration images; at least one is needed")


def first_images(batches: Batches, count: int) -> Float[Tensor, "batch 3 height width"]:
    """The first ``count`` calibration images, on the CPU."""

    def parts() -> Iterator[Tensor]:
        missing = count
        for batch in batches():
            yield batch[:missing].cpu()
            missing -= len(batch)
            if missing <= 0:
                return

    return torch.cat(list(parts()))
