"""Batches of views, rendered in worker processes, the same whoever renders them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
"""Images that are scored at once."""
KEPT_BYTES = 2**28
"""Most memory for rendered images that are scored again and again."""


class Batch(NamedTuple):
    """Images with what is known about them."""

    images: UInt8[Tensor, "batch height width 3"]
    labels: Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]
    """Class of each image; or how much of each class or attribute a view shows, where views are mixed or
    images lack labels (then a row of zeros for classes, of NaN for attributes)."""
    answers: Float16[Tensor, "batch classes"] | None
    """The teacher's stored logits for these very views."""
    for_teachers: tuple[UInt8[Tensor, "batch _ _ 3"], ...] = ()
    """The same views as each live teacher takes them."""


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
    answers: Callable[[Int64[np.ndarray, " batch"], int], Float16[np.ndarray, "batch classes"]] | None = None
    """Logits of some images' view of a number."""
    teachers: tuple[InputContract, ...] = ()
    """Teachers that are asked while the student trains."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, request: Request) -> Batch:
        contracts = replace(self.contract, size=request.size), *self.teachers
        chosen = np.asarray(request.indices)
        pixels = [np.empty((len(chosen), c.size, c.size, 3), np.uint8) for c in contracts]
        for row, index in enumerate(chosen.tolist()):
            for whole, image in zip(pixels, self._pictures(index, request.view, contracts), strict=True):
                whole[row] = np.asarray(image)
        answers = None
        if self.answers is not None and request.view is not None:
            answers = torch.from_numpy(self.answers(chosen, request.view))
        own, *others = map(torch.from_numpy, pixels)
        return Batch(own, self._labels(chosen, request.view), answers, tuple(others))

    def _pictures(
        self, index: int, number: int | None, contracts: Sequence[InputContract]
    ) -> list[Image.Image]:
        """One view at the size of each contract."""
        shown = self._renderings(index, number, contracts)
        mixture = self._mixture(index, number)
        if mixture is None:
            return shown
        partners = self._renderings(mixture.partner, number, contracts)
        return [views.mix(own, other, mixture) for own, other in zip(shown, partners, strict=True)]

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
        return views.draw_mixture(self.space, int(self.images.keys[index]), number, len(self))

    def _labels(
        self, chosen: Int64[np.ndarray, " batch"], number: int | None
    ) -> Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]:
        labels = torch.from_numpy(self.images.labels[chosen])
        mixed = number is not None and self.space is not None and self.space.mixes
        if not mixed and self.images.labelled:
            return labels
        shares = self._shares(labels)
        if not mixed:
            return shares
        mixtures = [self._mixture(index, number) for index in chosen.tolist()]
        pairs = [
            (i, 1.0) if m is None else (m.partner, m.weight) for i, m in zip(chosen, mixtures, strict=True)
        ]
        partners = self._shares(torch.from_numpy(self.images.labels[[partner for partner, _ in pairs]]))
        return torch.lerp(partners, shares, torch.tensor([weight for _, weight in pairs])[:, None])

    def _shares(
        self, labels: Int64[Tensor, " batch"] | Float[Tensor, "batch attributes"]
    ) -> Float[Tensor, "batch classes"]:
        if self.images.task is not SINGLE_LABEL:
            return labels
        # One class more, for images that nobody labelled, and left out again.
        return functional.one_hot(labels + 1, len(self.images.classes) + 1)[:, 1:].float()


@dataclass
class CentredViews:
    """The centred views of a split at a size, kept in memory for the next time if they are not too many."""

    fabric: Fabric
    dataset: ViewSet
    workers: int
    _size: int = 0
    _kept: list[Batch] = field(default_factory=list)

    def at(self, size: int) -> Iterator[Batch]:
        """Batches of the whole split, in order, on the device."""
        if size == self._size:
            yield from self._kept
            return
        self._size, self._kept = 0, []
        fits = len(self.dataset) * size * size * 3 <= KEPT_BYTES
        requests = sequential(range(len(self.dataset)), None, size, CENTRED_BATCH)
        kept: list[Batch] = []
        for batch in load(self.fabric, self.dataset, requests, self.workers):
            if fits:
                kept.append(batch)
            yield batch
        if fits:
            self._size, self._kept = size, kept


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
        worker_init_fn=_give_way,
        pin_memory=fabric.device.type == "cuda",
    )
    return cast(Iterable[Batch], fabric.setup_dataloaders(loader))


def _give_way(_worker: int) -> None:
    """Render at the lowest priority, in the gaps that training leaves.

    A worker that takes one core's time from training makes all threads wait for the slowest.
    """
    os.nice(19)


def sequential(
    chosen: Sequence[int] | Int64[np.ndarray, " images"], view: int | None, size: int, batch_size: int
) -> list[Request]:
    """Requests for every chosen image once, in order."""
    return [
        Request(chosen[first : first + batch_size], view, size) for first in range(0, len(chosen), batch_size)
    ]


def shuffled(images: int, epoch: int, seed: int) -> Int64[np.ndarray, " images"]:
    """The order of one epoch: a pure function of seed and epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(images)
