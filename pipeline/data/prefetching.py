"""Items that are made before they are needed, in a thread or on a stream of a GPU."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def in_thread(items: Iterator[Item], count: int) -> Iterator[Item]:
    """Yield the same items, of which a thread makes up to ``count`` ahead."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, None) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, items, None))
            yield item


def on_stream(device: torch.device, items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items, tuples of tensors, of which a GPU computes one ahead on a stream of its own."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # for what the items are computed from

    def compute() -> tuple[Item | None, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return next(items, None), stream.record_event()

    item, finished = compute()
    while item is not None:
        current = torch.cuda.current_stream(device)
        current.wait_event(finished)
        for tensor in _tensors(item):
            tensor.record_stream(current)  # else its memory could be used again before it is read
        following = compute()
        yield item
        item, finished = following


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from _tensors(part)
