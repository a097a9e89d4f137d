"""Batches of views, rendered on the device or in processes of the CPU, with the same pixels."""

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data import views
from pipeline.data.rendering import device_views, drawing, pictures, prefetching, renderers
from pipeline.data.rendering.device_views import Pictures, Plan, upload
from pipeline.data.rendering.drawing import Mixtures, Views
from pipeline.data.rendering.renderers import Renderer
from pipeline.data.store import ImageSet
from pipeline.data.views import View, ViewSpace
from pipeline.running import affinity
from pipeline.tasks import SINGLE_LABEL
from teachers.contract import InputContract

TOGETHER = 32
"""Number of batches whose views are drawn together for a device."""
AHEAD = 4
"""Number of batches that are prepared ahead for a device."""
CHEAP = 0.0005
"""Seconds per image below which a CPU renders in the process that computes. Worker processes would take its
cores at moments when all its threads wait for each other, which costs more than such images do."""
TIMED = 8
"""Number of images by which that is judged."""


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
        contracts = self.contracts(request.size)
        indices = np.asarray(request.indices)
        numbers = None if request.view is None else np.full(len(indices), request.view)
        mixtures = self.mixtures(indices, numbers)
        pixels = {c: np.empty((len(indices), c.size, c.size, 3), np.uint8) for c in contracts}
        for row, index in enumerate(indices.tolist()):
            mixture = mixtures and mixtures.at(row)
            pictures = self._pictures(index, request.view, pixels, mixture)
            for array, image in zip(pixels.values(), pictures, strict=True):
                array[row] = np.asarray(image)
        shown = {contract: torch.from_numpy(array) for contract, array in pixels.items()}
        images, *for_teachers = (shown[contract] for contract in contracts)
        labels = self.shown_labels(torch.from_numpy(self.images.labels), indices, mixtures)
        answers = self.stored_answers(indices, request.view)
        answers = None if answers is None else torch.from_numpy(answers)
        return Batch(images, labels, answers, tuple(for_teachers))

    def contracts(self, size: int) -> list[InputContract]:
        """What views are rendered for: the contract at ``size`` pixels, and those of the teachers."""
        return [replace(self.contract, size=size), *self.teachers]

    def stored_answers(
        self, indices: Int64[np.ndarray, " batch"], number: int | None
    ) -> Float16[np.ndarray, "batch classes"] | None:
        """The stored logits of a view of some images; None if there are none."""
        return None if self.answers is None or number is None else self.answers(indices, number)

    def mixtures(
        self, indices: Int64[np.ndarray, " views"], numbers: Int64[np.ndarray, " views"] | None
    ) -> Mixtures | None:
        """What each of some views is mixed with; None if none is mixed.

        Args:
            indices: index of the image of each view.
            numbers: number of each view; None for centred squares.
        """
        if numbers is None or self.space is None or not self.space.mixes:
            return None
        # What a verified image is mixed with is verified, too: of a mixture, both labels are learned.
        verified = self._verified[indices]
        images = np.where(verified, len(self.images.verified), len(self))
        mixtures = drawing.draw_mixtures(self.space, self.images.keys[indices], numbers, images)
        chosen = verified & (mixtures.partners >= 0)
        mixtures.partners[chosen] = self.images.verified[mixtures.partners[chosen]]
        return mixtures

    @cached_property
    def _verified(self) -> Bool[np.ndarray, " images"]:
        verified = np.zeros(len(self), bool)
        verified[self.images.verified] = True
        return verified

    def drawn_views(
        self,
        images: Pictures,
        indices: Int64[np.ndarray, " views"],
        numbers: Int64[np.ndarray, " views"] | None,
    ) -> Views:
        """Views of some images of the split, before they are mixed.

        Args:
            images: the images of the split.
            indices: index of the image of each view.
            numbers: number of each view; None for centred squares.
        """
        widths, heights = images.widths[indices], images.heights[indices]
        if numbers is not None and self.space is not None:
            return drawing.draw(self.space, self.images.keys[indices], numbers, widths, heights)
        sizes = zip(widths.tolist(), heights.tolist(), strict=True)
        boxes = np.array([self.contract.centre_box(*size) for size in sizes])
        return Views(boxes, np.zeros(len(boxes), bool), np.ones((len(boxes), 3)))

    def _pictures(
        self,
        index: int,
        number: int | None,
        contracts: Collection[InputContract],
        mixture: views.Mixture | None,
    ) -> list[Image.Image]:
        """One view at the size of each contract."""
        pictures = self._renderings(index, number, contracts)
        if mixture is None:
            return pictures
        partners = self._renderings(mixture.partner, number, contracts)
        return [
            views.mix(picture, partner, mixture) for picture, partner in zip(pictures, partners, strict=True)
        ]

    def _renderings(
        self, index: int, number: int | None, contracts: Collection[InputContract]
    ) -> list[Image.Image]:
        image = self.images.image(index, grey=True)
        if number is None or self.space is None:
            view = View(self.contract.centre_box(*image.size), flip=False)
        else:
            view = views.draw(self.space, int(self.images.keys[index]), number, *image.size)
        return [views.render(image, view, contract) for contract in contracts]

    def shown_labels(
        self,
        labels: Int64[Tensor, " images"] | Float[Tensor, "images attributes"],
        indices: Int64[np.ndarray, " batch"],
        mixtures: Mixtures | None,
    ) -> Int64[Tensor, " batch"] | Float[Tensor, "batch classes"]:
        """What ``Batch.labels`` says of some views, computed where the labels of the split lie.

        Args:
            labels: those of all images of the split, on any device.
            indices: index of the image of each view.
            mixtures: what each view is mixed with, if views are mixed.
        """
        own = labels.index_select(0, upload(indices, labels.device))
        if mixtures is None and self.images.fully_labelled:
            return own
        shares = self._shares(own)
        if mixtures is None:
            return shares
        partners = np.where(mixtures.partners < 0, indices, mixtures.partners)
        others = self._shares(labels.index_select(0, upload(partners, labels.device)))
        weights = upload(mixtures.weights.astype(np.float32), labels.device)
        return torch.lerp(others, shares, weights[:, None])

    def _shares(
        self, labels: Int64[Tensor, " batch"] | Float[Tensor, "batch attributes"]
    ) -> Float[Tensor, "batch classes"]:
        if self.images.task is not SINGLE_LABEL:
            return labels
        # Images without a label have the class -1, which equals none.
        classes = torch.arange(len(self.images.classes), device=labels.device)
        return (labels[:, None] == classes).float()


class _Job(NamedTuple):
    """What the host prepares of a batch that the device renders."""

    indices: Int64[np.ndarray, " batch"]
    contracts: list[InputContract]
    """See ``ViewSet.contracts``."""
    plans: dict[InputContract, Plan]
    """How the views, and after them the partners of those that are mixed, are rendered for each contract."""
    mixtures: Mixtures | None
    partners: Int64[np.ndarray, " batch"]
    """Place of the partner of each view among all that is rendered; its own place if it has none."""
    answers: Float16[np.ndarray, "batch classes"] | None


@dataclass(frozen=True)
class DeviceBatches:
    """Batches that the device renders from images that lie there."""

    device: torch.device
    dataset: ViewSet
    requests: Sequence[Request]
    images: Pictures

    def __iter__(self) -> Iterator[Batch]:
        labels = torch.from_numpy(self.dataset.images.labels).to(self.device)
        for job in prefetching.in_thread(self._jobs(), AHEAD):
            yield self._batch(job, labels)

    def __len__(self) -> int:
        return len(self.requests)

    def _jobs(self) -> Iterator[_Job]:
        """Prepare batches; the views of several are drawn together, since one by one they take longer."""
        for _, group in groupby(self.requests, lambda request: request.view is None):
            while some := list(islice(group, TOGETHER)):
                yield from self._prepare(some)

    def _prepare(self, requests: Sequence[Request]) -> Iterator[_Job]:
        """Prepare some batches that all have view numbers, or none."""
        dataset, lengths = self.dataset, [len(request.indices) for request in requests]
        indices = np.concatenate([np.asarray(request.indices) for request in requests])
        numbers = None
        if requests[0].view is not None:
            numbers = np.repeat([request.view or 0 for request in requests], lengths)
        mixtures = dataset.mixtures(indices, numbers)
        mixed = np.empty(0, np.int64) if mixtures is None else np.flatnonzero(mixtures.partners >= 0)
        rendered = indices
        if mixtures is not None and numbers is not None:
            rendered = np.concatenate([indices, mixtures.partners[mixed]])
            numbers = np.concatenate([numbers, numbers[mixed]])
        views = dataset.drawn_views(self.images, rendered, numbers)
        end = 0
        for request, length in zip(requests, lengths, strict=True):
            start, end = end, end + length
            first, last = np.searchsorted(mixed, [start, end])
            rows = np.concatenate([np.arange(start, end), len(indices) + np.arange(first, last)])
            partners = np.arange(length)
            partners[mixed[first:last] - start] = length + np.arange(last - first)
            contracts = dataset.contracts(request.size)
            plans = {
                contract: device_views.plan(self.images, rendered[rows], views.of(rows), contract)
                for contract in dict.fromkeys(contracts)
            }
            own = indices[start:end]
            answers = dataset.stored_answers(own, request.view)
            mixture = mixtures and mixtures.of(np.arange(start, end))
            yield _Job(own, contracts, plans, mixture, partners, answers)

    def _batch(self, job: _Job, labels: Tensor) -> Batch:
        rendered = {c: device_views.render(self.images, plan) for c, plan in job.plans.items()}
        if job.mixtures is not None:
            partners, count = upload(job.partners, self.device), len(job.indices)
            rendered = {
                contract: device_views.mix(views[:count], views.index_select(0, partners), job.mixtures)
                for contract, views in rendered.items()
            }
        images, *for_teachers = (rendered[contract] for contract in job.contracts)
        shown = self.dataset.shown_labels(labels, job.indices, job.mixtures)
        answers = None if job.answers is None else upload(job.answers, self.device)
        return Batch(images, shown, answers, tuple(for_teachers))


@dataclass(frozen=True)
class WorkerBatches:
    """Batches that worker processes render, and that are then copied to the device."""

    device: torch.device
    dataset: ViewSet
    requests: Sequence[Request]
    workers: int
    """Number of processes; 0 renders in this one."""

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=self.requests,
            num_workers=self.workers,
            # The loader draws a seed for its workers. From the global generator, that would change the
            # dropout of a training that is resumed.
            generator=torch.Generator(),
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_lower_priority,
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            yield _copied(batch, self.device)

    def __len__(self) -> int:
        return len(self.requests)


def _copied(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; a copy to a GPU goes on while the host does."""
    ahead = device.type != "cpu"
    return Batch(
        batch.images.to(device, non_blocking=ahead),
        batch.labels.to(device, non_blocking=ahead),
        None if batch.answers is None else batch.answers.to(device, non_blocking=ahead),
        tuple(images.to(device, non_blocking=ahead) for images in batch.for_teachers),
    )


def load(
    device: torch.device, dataset: ViewSet, requests: Sequence[Request], workers: int
) -> DeviceBatches | WorkerBatches:
    """The requests' batches in order, on a device.

    They are rendered there if the images lie there (see ``pictures.choose``), else in worker processes.

    Args:
        device: where the batches are needed.
        dataset: the split.
        requests: the batches.
        workers: greatest number of worker processes. Each has a core to itself: on fewer cores there are
            fewer, and on a CPU there are none for images that are quickly rendered, with the same pixels.
    """
    workers = affinity.limit_workers(workers)
    images = pictures.choose(device, dataset.images, _views(requests), workers)
    if images is not None:
        return DeviceBatches(device, dataset, requests, images)
    if workers and device.type == "cpu" and requests and _seconds_per_image(dataset, requests[0]) < CHEAP:
        workers = 0
    return WorkerBatches(device, dataset, requests, workers)


def _seconds_per_image(dataset: ViewSet, request: Request) -> float:
    """Time to render an image of a request in this process: the shorter of two tries."""
    few = request._replace(indices=request.indices[:TIMED])
    times: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        dataset[few]
        times.append(time.perf_counter() - began)
    return min(times) / len(few.indices)


def renderer(device: torch.device, dataset: ViewSet) -> Renderer:
    """What rendered the batches of a data set that were loaded last."""
    on_device = renderers.preferred() != "workers" and pictures.held(device, dataset.images)
    return "device" if on_device else "workers"


def _views(requests: Sequence[Request]) -> int:
    """About how many views are asked for; requests may be made only when they are needed."""
    return len(requests) * len(requests[0].indices) if requests else 0


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
