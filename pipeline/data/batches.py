"""Batches of views, rendered in worker processes; their pixels do not depend on which process renders
them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64, UInt8
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from pipeline.data import views
from pipeline.data.store import ImageSet
from pipeline.data.views import View, ViewSpace
from pipeline.tasks import SINGLE_LABEL
from teachers.contract import InputContract

CENTRED_BATCH = 128
"""Number of images that are scored at once."""
CACHE_BYTES = 2**28
"""Most memory, in bytes, for rendered images that are scored again and again."""


class Batch(NamedTuple):
    """Images with their labels and the teachers' answers."""

    images: UInt8[Tensor, "batch height width 3"]
    labels: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]
    """Class of each image; or the share of each class or attribute that a view shows, if views are mixed or
    some images lack labels. An image without a label has a row of zeros for classes, of NaN for
    attributes."""
    answers: Float16[Tensor, "batch classes"] | None
    """The teacher's stored logits for exactly these views."""
    for_teachers: tuple[UInt8[Tensor, "batch _ _ 3"], ...] = ()
    """The same views, rendered for the input contract of each live teacher."""


class Request(NamedTuple):
    """The images and the view that a worker renders as one batch."""

    indices: Sequence[int] | Int64[np.ndarray, " batch"]
    view: int | None
    """View number; None for the centred square on which networks are evaluated."""
    size: int
    """Side of the view in pixels."""


@dataclass(frozen=True)
class ViewSet(Dataset[Batch]):
    """A split seen through a view space, with the teacher's stored answers if there are any."""

    images: ImageSet
    space: ViewSpace | None
    contract: InputContract
    answers: Callable[[Int64[np.ndarray, " batch"], int], Float16[np.ndarray, "batch classes"]] | None = None
    """Function from image indices and a view number to the stored logits."""
    teachers: tuple[InputContract, ...] = ()
    """Input contracts of the teachers that answer while the student trains."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, request: Request) -> Batch:
        contracts = replace(self.contract, size=request.size), *self.teachers
        indices = np.asarray(request.indices)
        pixels = [np.empty((len(indices), c.size, c.size, 3), np.uint8) for c in contracts]
        for row, index in enumerate(indices.tolist()):
            for array, image in zip(pixels, self._pictures(index, request.view, contracts), strict=True):
                array[row] = np.asarray(image)
        answers = None
        if self.answers is not None and request.view is not None:
            answers = torch.from_numpy(self.answers(indices, request.view))
        images, *for_teachers = map(torch.from_numpy, pixels)
        return Batch(images, self._labels(indices, request.view), answers, tuple(for_teachers))

    def _pictures(
        self, index: int, number: int | None, contracts: Sequence[InputContract]
    ) -> list[Image.Image]:
        """One view at the size of each contract."""
        pictures = self._renderings(index, number, contracts)
        mixture = self._mixture(index, number)
        if mixture is None:
            return pictures
        partners = self._renderings(mixture.partner, number, contracts)
        return [
            views.mix(picture, partner, mixture) for picture, partner in zip(pictures, partners, strict=True)
        ]

    def _renderings(
        self, index: int, number: int | None, contracts: Sequence[InputContract]
    ) -> list[Image.Image]:
        image = self.images.image(index)
        if number is None or self.space is None:
            view = View(self.contract.centre_box(*image.size), flip=False)
        else:
            view = views.draw(self.space, int(self.images.keys[index]), number, *image.size)
        return [views.render(image, view, contract) for contract in contracts]

    def _mixture(self, index: int, number: int | None) -> views.Mixture | None:
        if number is None or self.space is None:
            return None
        # What a verified image is mixed with is verified, too: of a mixture, both labels are learned.
        verified = index in self._verified
        images = len(self.images.verified) if verified else len(self)
        mixture = views.draw_mixture(self.space, int(self.images.keys[index]), number, images)
        if mixture is None or not verified:
            return mixture
        return replace(mixture, partner=int(self.images.verified[mixture.partner]))

    @cached_property
    def _verified(self) -> frozenset[int]:
        return frozenset(self.images.verified.tolist())

    def _labels(
        self, indices: Int64[np.ndarray, " batch"], number: int | None
    ) -> Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]:
        labels = torch.from_numpy(self.images.labels[indices])
        mixed = number is not None and self.space is not None and self.space.mixes
        if not mixed and self.images.fully_labelled:
            return labels
        shares = self._shares(labels)
        if not mixed:
            return shares
        mixtures = [self._mixture(index, number) for index in indices.tolist()]
        pairs = [
            (i, 1.0) if m is None else (m.partner, m.weight) for i, m in zip(indices, mixtures, strict=True)
        ]
        partners = self._shares(torch.from_numpy(self.images.labels[[partner for partner, _ in pairs]]))
        return torch.lerp(partners, shares, torch.tensor([weight for _, weight in pairs])[:, None])

    def _shares(
        self, labels: Int64[Tensor, " batch"] | Float[Tensor, "batch attributes"]
    ) -> Float[Tensor, "batch classes"]:
        if self.images.task is not SINGLE_LABEL:
            return labels
        # Images without a label have the class -1: it gets a column of its own, which is left out again.
        return functional.one_hot(labels + 1, len(self.images.classes) + 1)[:, 1:].float()


@dataclass
class CentredViews:
    """The centred views of a split, kept in memory for the next time if they fit ``CACHE_BYTES``."""

    fabric: Fabric
    dataset: ViewSet
    workers: int
    _size: int = 0
    _cache: list[Batch] = field(default_factory=list)

    def at(self, size: int) -> Iterator[Batch]:
        """Yield the whole split at ``size`` pixels as batches, in order, on the device.

        Rank ``r`` of ``n`` yields the batches ``r``, ``r + n`` and so on.
        """
        if size == self._size:
            yield from self._cache
            return
        self._size, self._cache = 0, []
        fits = len(self.dataset) * size * size * 3 <= CACHE_BYTES
        requests = sequential(range(len(self.dataset)), None, size, CENTRED_BATCH)
        requests = requests[self.fabric.global_rank :: self.fabric.world_size]
        batches: list[Batch] = []
        for batch in load(self.fabric, self.dataset, requests, self.workers):
            if fits:
                batches.append(batch)
            yield batch
        if fits:
            self._size, self._cache = size, batches


@dataclass(frozen=True)
class Requests:
    """A sequence of requests in the form of a sampler for PyTorch's loader."""

    items: Sequence[Request]

    def __iter__(self) -> Iterator[Request]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def load(fabric: Fabric, dataset: ViewSet, requests: Sequence[Request], workers: int) -> Iterable[Batch]:
    """Yield the requests' batches in order, rendered in ``workers`` processes, on the device of
    ``fabric``."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=Requests(requests),
        num_workers=workers,
        # The loader draws a seed for its workers. From the global generator, that would change the dropout of
        # a training that is resumed.
        generator=torch.Generator(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_lower_priority,
        pin_memory=fabric.device.type == "cuda",
    )
    # The requests are those of this process: Fabric must not divide them.
    return cast(Iterable[Batch], fabric.setup_dataloaders(loader, use_distributed_sampler=False))


def _lower_priority(_worker: int) -> None:
    """Render at the lowest priority, in the time that training leaves.

    If a worker took time on one core from training, all training threads would wait for the slowest.
    """
    os.nice(19)


def sequential(
    indices: Sequence[int] | Int64[np.ndarray, " images"], view: int | None, size: int, batch_size: int
) -> list[Request]:
    """Make requests for one view of every image in ``indices``, in order."""
    return [
        Request(indices[first : first + batch_size], view, size)
        for first in range(0, len(indices), batch_size)
    ]


def shuffled(images: int, epoch: int, seed: int) -> Int64[np.ndarray, " images"]:
    """Draw the order of one epoch, a pure function of seed and epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(images)
