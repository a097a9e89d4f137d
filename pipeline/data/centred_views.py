"""Views of whole splits on which networks are evaluated, again and again."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from pipeline.data import batches
from pipeline.data.batches import Batch, ViewSet

CENTRED_BATCH = 128
"""Number of images that are scored at once."""
CACHE_BYTES = 2**28
"""Most memory, in bytes, for rendered images that are scored again and again."""


@dataclass
class CentredViews:
    """The centred views of a split, kept in memory for the next time if they fit ``CACHE_BYTES``."""

    device: torch.device
    dataset: ViewSet
    workers: int
    rank: int = 0
    ranks: int = 1
    """Number of processes that share the batches."""
    _size: int = 0
    _cache: list[Batch] = field(default_factory=list)

    def at(self, size: int) -> Iterator[Batch]:
        """Yield the whole split at ``size`` pixels as batches, in order, on the device.

        Rank ``r`` of ``n`` yields the batches ``r``, ``r + n`` and so on, counted from 0.
        """
        if size == self._size:
            yield from self._cache
            return
        self._size, self._cache = 0, []
        fits = len(self.dataset) * size * size * 3 <= CACHE_BYTES
        requests = batches.sequential(range(len(self.dataset)), None, size, CENTRED_BATCH)
        requests = requests[self.rank :: self.ranks]
        shown: list[Batch] = []
        for batch in batches.load(self.device, self.dataset, requests, self.workers):
            if fits:
                shown.append(batch)
            yield batch
        if fits:
            self._size, self._cache = size, shown
