"""Whether the store is the teacher: loss and gradient from the one and from the other, step by step.

    python -m benchmarks.live_teacher FOLDER

EfficientNet-Lite0 with its ImageNet classes answers views of the photographs in FOLDER (class folders; their
own classes are not looked at). A student of 64 pixels learns from the stored answers; in every step the same
batch is also shown to the teacher itself, and loss and gradient at the same weights are held against each
other. What differs is float16 in the store, and rounding in batches of another size.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import students
from benchmarks.compact_store import CONTRACT, SPACE, TRAINING, ask
from pipeline.data import sources, splits, store, writing
from pipeline.data.batches import Batch, ViewSet
from pipeline.distillation.labels import LiveTeacher
from pipeline.distillation.objective import loss_terms
from pipeline.tasks import SINGLE_LABEL
from pipeline.training import compute, loop, ranks
from pipeline.training.loop import Run
from pipeline.training.ranks import Whole
from pipeline.training.settings import ComputeSettings
from teachers.contract import InputContract
from teachers.runtime import in_runtime
from teachers.sources import SOURCES

VIEWS = 2


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=800, help="default: %(default)s")
    parser.add_argument("--epochs", type=float, default=4.0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    arguments = parser.parse_args()
    workers = 0 if arguments.threads == 1 else 2
    fabric = compute.start(ComputeSettings(threads=arguments.threads))
    teacher = SOURCES["efficientnet_lite"]("efficientnet_lite0", "default")
    assert teacher.input is not None
    contract = InputContract(96, teacher.input.mean, teacher.input.std, teacher.input.interpolation)

    @torch.no_grad()
    def ask_now(images: Sequence[Tensor]) -> Tensor:
        return teacher.module(contract.normalise(images[0]))

    from_store = loss_terms(TRAINING.objective, CONTRACT, SINGLE_LABEL)
    from_teacher = loss_terms(TRAINING.objective, CONTRACT, SINGLE_LABEL, LiveTeacher((contract,), ask_now))
    losses: list[float] = []
    apart: list[tuple[float, float]] = []

    def compared(module: nn.Module, batch: Batch, whole: Whole = ranks.alone, /) -> dict[str, Tensor]:
        (loss, own), (other, given) = (
            _slope(terms(module, batch), module) for terms in (from_store, from_teacher)
        )
        losses.append(loss)
        apart.append((abs(loss - other) / other, float((own - given).norm() / given.norm())))
        return from_store(module, batch, whole)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        listing = sources.read("folder", arguments.folder)
        made = splits.assign(listing.labelled, train=arguments.images, val=100, test=100, seed=0, anew=True)
        writing.write(folder / "data", listing, made, {"license": "unknown"})
        train, val = (store.read(folder / "data", split) for split in ("train", "val"))
        seen = ViewSet(train, SPACE, contract)
        network = in_runtime(teacher.module, contract.size).module
        answers = ask(fabric, network, seen, VIEWS, folder / "views", workers=workers)
        torch.manual_seed(0)
        loop.train(
            fabric,
            students.build("mobilenet_v1", {"classes": 1000}),
            compared,
            TRAINING.objective.weights(),
            TRAINING.model_copy(update={"epochs": arguments.epochs}),
            train_set=ViewSet(train, SPACE, CONTRACT, answers.at, (contract,)),
            val_set=ViewSet(val, None, CONTRACT),
            views=VIEWS,
            seed=0,
            workers=workers,
            run=Run("live teacher", folder / "run", ""),
        )
    print(f"{len(apart)} steps of {TRAINING.batch_size}, loss {losses[0]:.3f} to {losses[-1]:.3f}")
    print("| store against teacher, relative | median | 95th percentile | largest |")
    print("|---|---|---|---|")
    for name, found in zip(("loss", "gradient"), np.array(apart).T, strict=True):
        print(f"| {name} | {np.median(found):.1e} | {np.percentile(found, 95):.1e} | {found.max():.1e} |")


def _slope(terms: dict[str, Tensor], module: nn.Module) -> tuple[float, Tensor]:
    """The loss, and its gradient with respect to all weights as one vector."""
    loss = terms["kl"]
    slopes = torch.autograd.grad(loss, list(module.parameters()))
    return loss.item(), torch.cat([slope.flatten() for slope in slopes])


if __name__ == "__main__":
    main()
