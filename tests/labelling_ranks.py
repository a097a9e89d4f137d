"""A program that labels prepared data in some processes, as the stage does: DATA FOLDER PROCESSES."""

import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from pipeline.data import store
from pipeline.data.batches import ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import labelling, labels
from pipeline.distillation.labels import Key
from teachers.contract import InputContract

SPACE = ViewSpace(seed=0, crop_scale=(0.6, 1.0), crop_ratio=(0.8, 1.25))
CONTRACTS = InputContract(24), InputContract(16)
VIEWS, CLASSES, TOP = 3, 300, 20
KEY = Key("data", "teacher", SPACE, VIEWS, TOP)


def network(seed: int) -> nn.Module:
    """A network with an answer of its own for each image."""
    torch.manual_seed(seed)
    head = nn.Linear(27, CLASSES)
    nn.init.normal_(head.weight)
    return nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), head)


def label(fabric: Fabric, data: Path, folder: Path, workers: int = 0) -> None:
    """Answer the training images by an ensemble of two; the first process writes the store."""
    labelling.BATCH, labelling.BLOCK = 4, 8
    view_set = ViewSet(store.read(data, "train"), SPACE, CONTRACTS[0], teachers=CONTRACTS[1:])
    blocks = labelling.compute(
        fabric,
        [network(0), network(1)],
        view_set,
        views=VIEWS,
        classes=CLASSES,
        top=TOP,
        partial=folder / "partial",
        workers=workers,
    )
    if fabric.global_rank == 0:
        labels.save(
            folder / "labels", KEY, teacher="two", engine="PyTorch", blocks=blocks, images=len(view_set)
        )


def main(fabric: Fabric) -> None:
    """Label in one of the processes."""
    label(fabric, Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"rank {fabric.global_rank} of {fabric.world_size}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked, so that imports, which take most of the time, are made once.
    Fabric(accelerator="cpu", devices=int(sys.argv[3]), strategy="ddp_fork").launch(main)
