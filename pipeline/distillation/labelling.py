"""Asking the teacher for its outputs on fixed views of every training image, block by block.

A finished block is a file with a checksum. An interrupted run goes on with the others, with any number of
processes, and the blocks together are the store.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16
from lightning_fabric import Fabric
from torch import nn

from pipeline import files
from pipeline.data import batches
from pipeline.data.batches import Batch, Request, ViewSet, WorkerBatches
from pipeline.data.rendering import prefetching
from pipeline.data.requests import Lazily
from pipeline.distillation import labels
from pipeline.distillation.labels import Answers, LabelError
from pipeline.running import progress

BATCH = 128
"""Number of images that are shown to the teacher at once."""
BLOCK = 4 * BATCH
"""Number of images whose answers are one file: whole batches, so that every number of processes shows the
teacher the same batches, whose size affects the last bits of its answers."""
AHEAD = 2
"""Number of batches that this process renders while the teacher answers, where no other process does."""


@dataclass(frozen=True)
class Blocks:
    """The answers to all images as files, one per block of images."""

    folder: Path
    images: int
    classes: int

    def __len__(self) -> int:
        return -(-self.images // BLOCK)

    def __iter__(self) -> Iterator[Answers]:
        """Read one block after the other.

        Raises:
            LabelError: a block is missing or damaged.
        """
        for block in range(len(self)):
            if not files.intact(self.file(block), "these images are labelled again"):
                raise LabelError(
                    f"{self.file(block)} is missing, although its images were labelled: all processes need "
                    "the same folder; run `dvc repro label`"
                )
            rows = np.load(self.file(block))
            top_classes = rows["classes"] if "classes" in (rows.dtype.names or ()) else None
            yield Answers(rows["values"], top_classes, self.classes)

    def file(self, block: int) -> Path:
        """The file of a block."""
        return self.folder / f"{block:06}.npy"

    def rows(self, block: int) -> range:
        """The images of a block."""
        return range(block * BLOCK, min((block + 1) * BLOCK, self.images))


@torch.no_grad()
def compute(
    fabric: Fabric,
    networks: Sequence[nn.Module],
    view_set: ViewSet,
    *,
    views: int,
    classes: int,
    top: int | None,
    partial: Path,
    workers: int,
) -> Blocks:
    """Compute the answers to ``views`` views of every image, of which a block at a time is in memory.

    The processes of ``fabric`` share the blocks that ``partial`` does not hold yet; all of them must see the
    same folder. When this function returns, all blocks are there.

    Args:
        fabric: where the teacher runs.
        networks: the members of the teacher, from normalised images to logits. The first reads views by the
            contract of ``view_set``, the others by those of its ``teachers``.
        view_set: the images.
        views: number of views per image.
        classes: number of logits of each network.
        top: see ``labels.compact``.
        partial: folder of the finished blocks.
        workers: number of processes that render views, for each process of ``fabric``.

    Raises:
        LabelError: a logit is not finite in float16.
    """
    partial.mkdir(parents=True, exist_ok=True)
    blocks = Blocks(partial, len(view_set), classes)
    pending = _pending(fabric, blocks)
    rows = [batch for block in pending for batch in _batches(blocks.rows(block))]
    networks = [
        fabric.to_device(network.eval()).to(memory_format=torch.channels_last) for network in networks
    ]
    size = view_set.contract.size
    requests = Lazily(len(rows) * views, lambda n: Request(rows[n // views], n % views, size))
    loaded = batches.load(fabric.device, view_set, requests, workers)
    stream = iter(loaded)
    if isinstance(loaded, WorkerBatches) and not loaded.workers:
        stream = prefetching.in_thread(stream, AHEAD)
    row_type = _row_type(classes, top)
    # A helper compacts answers while a GPU computes the next ones.
    with progress.bar("label", views * sum(map(len, rows)), "views") as bar, ThreadPoolExecutor(1) as helper:
        for block in pending:
            images = blocks.rows(block)
            answers = np.empty((len(images), views), row_type)
            copies = []
            for batch in _batches(images):
                place = slice(batch.start - images.start, batch.stop - images.start)
                for view, shown in enumerate(islice(stream, views)):
                    logits = _ask(networks, view_set, shown)
                    _check_finite(logits, view_set, batch)
                    copies.append(helper.submit(_keep, answers[place, view], logits, top))
                    bar.update(len(batch))
            for copy in copies:
                copy.result()
            files.write_array(blocks.file(block), answers, sealed=True)
    fabric.barrier()
    return blocks


def _batches(images: range) -> list[range]:
    return [range(first, min(first + BATCH, images.stop)) for first in images[::BATCH]]


def _keep(rows: np.ndarray, logits: Float16[np.ndarray, "batch classes"], top: int | None) -> None:
    """Copy the compacted answers to one view into rows of a block."""
    answers = labels.compact(logits[:, None], top)
    rows["values"] = answers.values[:, 0]
    if answers.top_classes is not None:
        rows["classes"] = answers.top_classes[:, 0]


def _pending(fabric: Fabric, blocks: Blocks) -> list[int]:
    """The unfinished blocks of this process.

    Each process looks at the checksums of its share, and none begins before all know which blocks are there:
    so all divide the same list.
    """
    for block in range(fabric.global_rank, len(blocks), fabric.world_size):
        files.intact(blocks.file(block), "these images are labelled again")
    fabric.barrier()
    there = {file.name for file in blocks.folder.iterdir()}
    fabric.barrier()
    pending = [block for block in range(len(blocks)) if blocks.file(block).name not in there]
    return pending[fabric.global_rank :: fabric.world_size]


def _ask(
    networks: Sequence[nn.Module], view_set: ViewSet, batch: Batch
) -> Float16[np.ndarray, "batch classes"]:
    """The answers of a teacher, or the mean of an ensemble, whose members are rounded first."""
    contracts = view_set.contract, *view_set.teachers
    views = batch.images, *batch.for_teachers
    members = [
        network(contract.normalise(images)).to(torch.float16).cpu()
        for network, contract, images in zip(networks, contracts, views, strict=True)
    ]
    return view_set.images.task.mean(members).to(torch.float16).numpy()


def _check_finite(logits: Float16[np.ndarray, "batch classes"], view_set: ViewSet, images: range) -> None:
    infinite = np.flatnonzero(~np.isfinite(logits).all(1))
    if len(infinite):
        raise LabelError(
            f"the teacher's outputs for {len(infinite)} of {len(logits)} images are not finite in fp16 "
            f"({view_set.images.name(images.start + infinite)}); allowed: logits within 65504"
        )


def _row_type(classes: int, top: int | None) -> np.dtype[Any]:
    """The answer to one view in a file of a block."""
    if top is None or not labels.is_compact(classes, top):
        return np.dtype([("values", np.float16, (classes,))])
    return np.dtype([("values", np.float16, (top + 1,)), ("classes", labels.class_type(classes), (top,))])
