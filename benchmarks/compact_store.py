"""What is lost when a store keeps the most probable of 1,000 classes alone, on photographs.

    python -m benchmarks.compact_store FOLDER

EfficientNet-Lite0 with its ImageNet classes answers views of the photographs in FOLDER (class folders; their
own classes are not looked at). Students of 64 pixels learn from the whole answers and from compact ones; each
is then held against the whole answers to the validation images: KL divergence and the share of equal top-1.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional

import students
from pipeline.data import sources, splits, store, writing
from pipeline.data.batches import ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import labelling, labels, learning
from pipeline.distillation.labels import Answers
from pipeline.distillation.settings import Objective, StudentTraining
from pipeline.distillation.training_data import TrainingData
from pipeline.tasks import softmax_kl
from pipeline.training import compute, norms, scoring
from pipeline.training.settings import ComputeSettings
from teachers.contract import InputContract
from teachers.runtime import in_runtime
from teachers.sources import SOURCES

SPACE = ViewSpace(seed=0, crop_scale=(0.5, 1.0), crop_ratio=(0.8, 1.25))
CONTRACT = InputContract(64)
VIEWS = 4
TRAINING = StudentTraining(
    epochs=1.0, batch_size=32, learning_rate=0.003, weight_decay=0.02, ema=0.99, objective=Objective(kl=1.0)
)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=float, default=12.0, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    arguments = parser.parse_args()
    fabric = compute.start(ComputeSettings(threads=arguments.threads))
    teacher = SOURCES["efficientnet_lite"]("efficientnet_lite0", "default")
    assert teacher.input is not None
    contract = InputContract(128, teacher.input.mean, teacher.input.std, teacher.input.interpolation)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        listing = sources.read("folder", arguments.folder)
        made = splits.assign(listing.labelled, train=None, val=480, test=1000, seed=0, anew=True)
        writing.write(folder / "data", listing, made, {"license": "unknown"})
        train, val = (store.read(folder / "data", split) for split in ("train", "val"))
        seen = ViewSet(train, SPACE, contract)
        network = in_runtime(teacher.module, contract.size).module
        whole = ask(fabric, network, seen, VIEWS, folder / "views", workers=1)
        wanted = scoring.predict(
            fabric, teacher.module, ViewSet(val, None, contract), contract.size, workers=1
        )
        print("| kept | bytes a view | mass kept, % | KL on val | same top-1, % |")
        print("|---|---|---|---|---|")
        for top in (None, 50, 10, 1):
            answers = labels.compact(whole.values, top)
            kept = np.exp(answers.values[..., :-1].astype(np.float32)).sum(-1).mean() if top else 1.0
            size = sum(part.nbytes for part in (answers.values, answers.top_classes) if part is not None)
            found = []
            for seed in range(arguments.seeds):
                training_data = TrainingData(
                    ViewSet(train, SPACE, CONTRACT, answers.at),
                    ViewSet(val, None, CONTRACT),
                    views=VIEWS,
                    data_sha256="",
                    classes=train.classes,
                    license="",
                    teacher=teacher.origin,
                    key=f"{top}",
                )
                torch.manual_seed(seed)
                module, _ = learning.learn(
                    fabric,
                    students.build("mobilenet_v1", {"classes": 1000}),
                    training_data,
                    TRAINING.model_copy(update={"epochs": arguments.epochs}),
                    name=f"top {top}, seed {seed}",
                    start=f"{seed}",
                    seed=seed,
                    workers=0 if arguments.threads == 1 else 2,
                    folder=folder / f"{top}-{seed}",
                )
                norms.settle(fabric, module, training_data.train_set, workers=1)
                logits = scoring.predict(fabric, module, training_data.val_set, CONTRACT.size, workers=1)
                same = functional.one_hot(wanted.argmax(1), 1000)[range(len(val)), logits.argmax(1)]
                found.append((softmax_kl(logits, wanted, 1.0).item(), 100 * same.float().mean().item()))
            size //= len(train) * VIEWS
            divergences = ", ".join(f"{divergence:.3f}" for divergence, _ in found)
            shares = ", ".join(f"{share:.1f}" for _, share in found)
            print(f"| {top or 'all'} | {size} | {100 * kept:.2f} | {divergences} | {shares} |", flush=True)


def ask(
    fabric: Fabric, network: nn.Module, seen: ViewSet, views: int, folder: Path, *, workers: int
) -> Answers:
    """All logits of a teacher of ImageNet's classes for some views of all images, in memory."""
    blocks = labelling.compute(
        fabric, [network], seen, views=views, classes=1000, top=None, partial=folder, workers=workers
    )
    return Answers(np.concatenate([block.values for block in blocks]), None, blocks.classes)


if __name__ == "__main__":
    main()
