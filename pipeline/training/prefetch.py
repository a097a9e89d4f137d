"""Batches that travel to a GPU while it computes."""

from collections.abc import Iterable, Iterator

import torch

from pipeline.data.batches import Batch


def on_own_stream(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches; those for a CUDA device are copied to it on a stream of their own.

    Kernels are launched ahead of the device, so the next batch is copied while it still computes.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream, iterator = torch.cuda.Stream(device), iter(batches)
    while True:
        with torch.cuda.stream(stream):
            batch = next(iterator, None)
        if batch is None:
            return
        here = torch.cuda.current_stream(device)
        here.wait_stream(stream)
        for tensor in (*batch[:3], *batch.for_teachers):
            if tensor is not None:
                # Its memory is given back to the other stream, but only after this one has used it.
                tensor.record_stream(here)
        yield batch
