"""Views of whole splits on which networks are evaluated, again and again."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from pipeline.data import batches
from pipeline.data.batches import Batch, ViewSet

ON_CPU, ON_DEVICE = 16, 128
"""Numbers of images that are scored at once. The caches of a CPU hold the maps of few images: the student at
192 pixels scores 1.3 times as many images per second as in batches of 128, in simulated integers 1.8 times,
with the same bits."""
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
        together = ON_CPU if self.device.type == "cpu" else ON_DEVICE
        requests = batches.sequential(range(len(self.dataset)), None, size, together)
        requests = requests[self.rank :: self.ranks]
        shown: list[Batch] = []
        for batch in batches.load(self.device, self.dataset, requests, self.workers):
            if fits:
                shown.append(batch)
            yield batch
        if fits:
            self._size, self._cache = size, shown
