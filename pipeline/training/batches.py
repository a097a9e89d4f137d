"""Batches of views, rendered in worker processes, the same whoever renders them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline import views
from pipeline.data.store import ImageSet
from pipeline.views import View, ViewSpace
from teachers.contract import InputContract


class Batch(NamedTuple):
    """Images with what is known about them."""

    images: UInt8[Tensor, "batch height width 3"]
    labels: Int64[Tensor, " batch"] | Float32[Tensor, "batch attributes"]
    answers: Float16[Tensor, "batch classes"] | None
    """The teacher's stored logits for these very views."""


class Request(NamedTuple):
    """What a worker renders."""

    indices: Sequence[int] | Int64[np.ndarray, " batch"]
    view: int | None
    """View number; None is the centred square that evaluation looks at."""
    size: int
    """Pixels."""


@dataclass(frozen=True)
class ViewSet(Dataset[Batch]):
    """A split seen through a view space, with stored answers where there are some."""

    images: ImageSet
    space: ViewSpace | None
    contract: InputContract
    answers: Float16[np.ndarray, "images views classes"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, request: Request) -> Batch:
        contract = replace(self.contract, size=request.size)
        chosen = np.asarray(request.indices)
        pixels = np.empty((len(chosen), request.size, request.size, 3), np.uint8)
        for row, index in enumerate(request.indices):
            image = self.images.image(int(index))
            pixels[row] = np.asarray(
                views.render(image, self._view(image, int(index), request.view), contract)
            )
        answers = None
        if self.answers is not None and request.view is not None:
            answers = torch.from_numpy(self.answers[chosen, request.view])
        return Batch(torch.from_numpy(pixels), torch.from_numpy(self.images.labels[chosen]), answers)

    def _view(self, image: Image.Image, index: int, number: int | None) -> View:
        if number is None or self.space is None:
            return View(self.contract.centre_box(*image.size), flip=False)
        return views.draw(self.space, int(self.images.keys[index]), number, *image.size)


@dataclass(frozen=True)
class Requests:
    """A lazy sequence of requests, as PyTorch's loader wants its sampler."""

    items: Sequence[Request]

    def __iter__(self) -> Iterator[Request]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def load(fabric: Fabric, dataset: ViewSet, requests: Sequence[Request], workers: int) -> Iterable[Batch]:
    """The requests' batches in order, rendered in ``workers`` processes, on the device of ``fabric``."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=Requests(requests),
        num_workers=workers,
        # Its own: drawing from the global one would make dropout differ after a resumption.
        generator=torch.Generator(),
        prefetch_factor=4 if workers else None,
        pin_memory=fabric.device.type == "cuda",
    )
    return cast(Iterable[Batch], fabric.setup_dataloaders(loader))


def sequential(images: int, view: int | None, size: int, batch_size: int) -> list[Request]:
    """Requests for every image once, in order."""
    return [
        Request(range(first, min(first + batch_size, images)), view, size)
        for first in range(0, images, batch_size)
    ]


def shuffled(images: int, epoch: int, seed: int) -> Int64[np.ndarray, " images"]:
    """The order of one epoch: a pure function of seed and epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(images)
