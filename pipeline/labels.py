"""The teacher's answers on fixed views of every training image, stored once and read ever after."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16
from lightning_fabric import Fabric
from torch import nn
from tqdm import tqdm

from pipeline import provenance
from pipeline.training import batches
from pipeline.training.batches import ViewSet
from pipeline.views import ViewSpace

ANSWERS = "answers.npy"
CARD = "card.json"


class LabelError(Exception):
    """The store does not hold the answers that were asked for."""


@dataclass(frozen=True)
class Key:
    """What the answers depend on: a store with another key is another store."""

    data_sha256: str
    teacher_sha256: str
    space: ViewSpace
    views: int
    """Views of every image."""

    def sha256(self) -> str:
        """Hash over all of it."""
        return provenance.identity(**asdict(self))


@dataclass(frozen=True)
class Store:
    """Logits of the teacher, memory-mapped, for the views of ``key``."""

    key: Key
    teacher: str
    """The teacher in words."""
    answers: Float16[np.ndarray, "images views classes"]


@torch.no_grad()
def answer(
    fabric: Fabric, teacher: nn.Module, view_set: ViewSet, views: int, *, partial: Path, workers: int
) -> Float16[np.ndarray, "images views classes"]:
    """Ask the teacher about ``views`` views of every image, at the size of its own contract.

    Each finished view is kept in ``partial``, so that a run that was killed goes on with the next.
    """
    partial.mkdir(parents=True, exist_ok=True)
    contract = view_set.contract
    teacher = fabric.to_device(teacher.eval()).to(memory_format=torch.channels_last)
    bar = tqdm(desc="label", total=views * len(view_set), unit=" views", unit_scale=True)
    for view in range(views):
        file = partial / f"{view}.npy"
        if not file.exists():
            requests = batches.sequential(len(view_set), view, contract.size, 128)
            parts = []
            for batch in batches.load(fabric, view_set, requests, workers):
                logits = teacher(contract.normalise(batch.images))
                parts.append(logits.to(torch.float16).cpu().numpy())
                bar.update(len(logits))
            fresh = partial / "new.npy"
            np.save(fresh, np.concatenate(parts))
            fresh.replace(file)
        else:
            bar.update(len(view_set))
    bar.close()
    return np.stack([np.load(partial / f"{view}.npy") for view in range(views)], axis=1)


def save(folder: Path, store: Store) -> None:
    """Write ``answers.npy`` and ``card.json``; the card last, so that a half-written store has none."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / ANSWERS, store.answers)
    card = {"teacher": store.teacher, "key": asdict(store.key), "shape": list(store.answers.shape)}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")


def load(folder: Path, *, data_sha256: str, space: ViewSpace) -> Store:
    """Open a store for reading.

    Raises:
        LabelError: it is incomplete, or was made for other data or other views.
    """
    try:
        card = json.loads((folder / CARD).read_text())
        answers = np.load(folder / ANSWERS, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise LabelError(f"{folder} is no complete label store ({error}); run `dvc repro label`") from error
    stored = card["key"]
    view_space = ViewSpace(
        stored["space"]["seed"],
        tuple(stored["space"]["crop_scale"]),
        tuple(stored["space"]["crop_ratio"]),
        stored["space"]["flip"],
    )
    for what, found, expected in (
        ("data", stored["data_sha256"], data_sha256),
        ("views", view_space, space),
        ("shape", list(answers.shape), card["shape"]),
    ):
        if found != expected:
            raise LabelError(f"{folder} was made for other {what}: {found}, not {expected}")
    key = Key(stored["data_sha256"], stored["teacher_sha256"], view_space, stored["views"])
    return Store(key, card["teacher"], answers)
