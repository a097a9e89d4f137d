"""Decoded images on a device, for as long as their split is in use, if they take a share of its memory at
most."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from weakref import WeakKeyDictionary

import numpy as np
import psutil
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline import pixels
from pipeline.data.arrow import Rows
from pipeline.data.rendering import renderers
from pipeline.data.rendering.device_views import Pictures
from pipeline.data.store import ImageSet
from pipeline.running import progress

SHARE = 0.4
"""Greatest share of the free memory of a device that the images of a split may take; the rest is for the
network, its activations and other splits."""
MEASURED = 1024
"""Number of images that a worker measures at a time."""
BLOCK = 2**22
"""Number of bytes from which a worker hands decoded images over."""

_on_devices: WeakKeyDictionary[Rows, dict[torch.device, Pictures | None]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Sizes(Dataset[list[int]]):
    """The number of pixels of each image, by a range of them."""

    images: ImageSet

    def __getitem__(self, rows: range) -> list[int]:
        sizes = (pixels.measure(self.images.rows.encoded(row)) for row in rows)
        return [width * height for width, height in sizes]


@dataclass(frozen=True)
class _Decoded(Dataset[tuple[Tensor, Tensor]]):
    """The pixels of a range of images, one behind the other, and the width and height of each."""

    images: ImageSet

    def __getitem__(self, rows: range) -> tuple[UInt8[Tensor, "pixels 3"], Int64[Tensor, "images 2"]]:
        arrays = [np.asarray(self.images.image(row)) for row in rows]
        sizes = [(array.shape[1], array.shape[0]) for array in arrays]
        flat = np.concatenate([array.reshape(-1, 3) for array in arrays])
        return torch.from_numpy(flat), torch.tensor(sizes)


def held(device: torch.device, images: ImageSet) -> Pictures | None:
    """The images of a split, if they lie on the device already."""
    return _on_devices.get(images.rows, {}).get(device)


def choose(device: torch.device, images: ImageSet, views: int, workers: int) -> Pictures | None:
    """The images of a split on a device, if views are to be rendered there; None if not.

    They are decoded to it once, unless they would take too much of its memory, and stay there for as long as
    the split is in use; a warning says if they would and ``device`` is preferred.

    Args:
        device: where views are needed.
        images: the split.
        views: number of views that are needed.
        workers: number of processes that decode.
    """
    preferred = renderers.preferred()
    if not views or preferred == "workers" or (preferred == "auto" and device.type != "cuda"):
        return None
    known = _on_devices.setdefault(images.rows, {})
    # To decode a whole split for a few of its images takes longer than to render these.
    if device not in known and (preferred == "device" or views >= len(images) / 2):
        known[device] = _decode(device, images, workers)
    return held(device, images)


def _decode(device: torch.device, images: ImageSet, workers: int) -> Pictures | None:
    free = _free(device)
    sizes = _measure(images, workers, most=int(free * SHARE) // 3)
    if sizes is None:
        if renderers.preferred() == "device":
            print(
                f"warning: compute.views = device: {len(images)} decoded images take above {SHARE:.0%} of "
                f"the {free / 1e9:.1f} GB that are free; processes render the views",
                file=sys.stderr,
            )
        return None
    starts = np.array([0, *accumulate(sizes)])
    try:
        flat = torch.empty((int(starts[-1]), 3), dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:  # what is free is in pieces
        return None
    shapes = []
    blocks = _blocks(sizes)
    with progress.bar("decode", len(images)) as bar:
        for rows, (decoded, shape) in zip(blocks, _loaded(_Decoded(images), blocks, workers), strict=True):
            flat[starts[rows.start] : starts[rows.stop]].copy_(decoded)
            shapes.append(shape.numpy())
            bar.update(len(rows))
    widths, heights = np.concatenate(shapes).T
    return Pictures(flat, starts[:-1], np.ascontiguousarray(widths), np.ascontiguousarray(heights))


def _measure(images: ImageSet, workers: int, most: int) -> list[int] | None:
    """The number of pixels of each image; None if there are more than ``most`` together."""
    ranges = [range(first, min(first + MEASURED, len(images))) for first in range(0, len(images), MEASURED)]
    sizes: list[int] = []
    total = 0
    for some in _loaded(_Sizes(images), ranges, workers):
        sizes += some
        total += sum(some)
        if total > most:
            return None
    return sizes


def _blocks(sizes: Sequence[int]) -> list[range]:
    """Ranges of images of some megabytes each, or of one image."""
    blocks, first, count = [], 0, 0
    for row, size in enumerate(sizes):
        count += 3 * size
        if count >= BLOCK:
            blocks.append(range(first, row + 1))
            first, count = row + 1, 0
    return [*blocks, range(first, len(sizes))] if first < len(sizes) else blocks


def _loaded(dataset: Dataset, ranges: Sequence[range], workers: int) -> Iterator:
    """The items of a data set for some ranges, in order."""
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=ranges,  # pyright: ignore[reportArgumentType]
            num_workers=min(workers, len(ranges)),
            generator=torch.Generator(),  # the loader draws a seed
        )
    )


def _free(device: torch.device) -> int:
    """Number of free bytes."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
