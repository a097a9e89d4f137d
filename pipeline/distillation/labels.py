"""Outputs of the teacher on fixed views of every training image, computed once and then only read."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64, UInt8, UInt16
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline import files, progress, provenance
from pipeline.data import batches
from pipeline.data.batches import ViewSet
from pipeline.data.views import ViewSpace
from pipeline.errors import DistilleryError
from pipeline.tasks import SINGLE_LABEL, Task
from teachers.contract import InputContract

VALUES = "answers.npy"
TOP_CLASSES = "classes.npy"
CARD = "card.json"


class LabelError(DistilleryError):
    """The store does not contain the outputs that were requested."""


@dataclass(frozen=True)
class Key:
    """Everything that the stored outputs depend on."""

    data_sha256: str
    teacher_sha256: str
    space: ViewSpace
    views: int
    """Number of views per image."""
    top: int | None
    """Number of classes stored per output; None stores all."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, equal to what JSON reads back."""
        return {**vars(self), "space": self.space.model_dump(mode="json")}

    def sha256(self) -> str:
        """Hash over all fields."""
        return provenance.identity(**self.to_dict())


@dataclass(frozen=True)
class Answers:
    """Outputs of a teacher: all logits, or the most probable classes with the sum of all others."""

    values: Float16[np.ndarray, "images views stored"]
    """All logits; or the logarithms of the probabilities of the most probable classes and of all others
    together."""
    top_classes: UInt16[np.ndarray, "images views top"] | None
    """The most probable classes in descending order; None if ``values`` contains all logits."""
    classes: int
    """Number of all classes."""

    def at(self, images: Int64[np.ndarray, " batch"], view: int) -> Float16[np.ndarray, "batch classes"]:
        """Logits of one view of some images.

        If only the most probable classes are stored, logits are right up to a constant per image, and all
        other classes are equally probable.
        """
        values = self.values[images, view]
        if self.top_classes is None:
            return values
        return _expand(values, self.top_classes[images, view], self.classes)


@dataclass(frozen=True)
class Store:
    """The outputs of a teacher for the views of ``key``, memory-mapped."""

    key: Key
    teacher: str
    """Description of the teacher."""
    engine: str
    """What computed the answers: ONNX Runtime or PyTorch, which round differently in the last bits."""
    answers: Answers


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher, or an ensemble, that runs while the student trains."""

    inputs: tuple[InputContract, ...]
    """Input contract of each member."""
    ask: Callable[[Sequence[UInt8[Tensor, "batch _ _ 3"]]], Float[Tensor, "batch classes"]]
    """Function from the same views, rendered for each member, to logits."""


def stored_classes(task: Task, top: int | None) -> int | None:
    """``top`` for classes; None (all) for attributes, whose probabilities do not add up to 1."""
    return top if task is SINGLE_LABEL else None


def compact(views: Iterable[Float16[np.ndarray, "images classes"]], top: int | None) -> Answers:
    """Keep the ``top`` most probable classes and the sum of all others (Shen and Xing 2022, FKD).

    Probabilities are stored as logarithms, since float16 cannot represent a probability of 1e-12 itself. If
    ``top`` is at least half of the classes, all logits are stored unchanged.

    Args:
        views: the logits of all images per view; only one view at a time needs to be in memory.
        top: number of classes to keep; None keeps all.
    """
    values, top_classes, classes = [], [], 0
    for logits in views:
        classes = logits.shape[1]
        if top is None or top >= classes / 2:
            values.append(logits)
        else:
            logarithms, numbers = _most_probable(logits, top)
            values.append(logarithms)
            top_classes.append(numbers)
    return Answers(np.stack(values, axis=1), np.stack(top_classes, axis=1) if top_classes else None, classes)


def _most_probable(
    logits: Float16[np.ndarray, "images classes"], top: int
) -> tuple[Float16[np.ndarray, "images stored"], UInt16[np.ndarray, "images top"]]:
    """The logarithms of the ``top`` greatest probabilities and of the sum of all others, and the top
    classes."""
    logarithms = torch.from_numpy(logits).float().log_softmax(-1)
    greatest, top_classes = logarithms.topk(top, dim=-1)
    rest = logarithms.scatter_(-1, top_classes, -torch.inf).logsumexp(-1, keepdim=True)
    values = torch.cat([greatest, rest], dim=-1).to(torch.float16)
    return values.numpy(), top_classes.numpy().astype(np.uint16)


def _expand(
    values: Float16[np.ndarray, "batch stored"], top_classes: UInt16[np.ndarray, "batch top"], classes: int
) -> Float16[np.ndarray, "batch classes"]:
    each = values[:, -1:] - np.float16(np.log(classes - top_classes.shape[1]))
    logits = np.repeat(each, classes, axis=1)
    np.put_along_axis(logits, top_classes.astype(np.int64), values[:, :-1], axis=1)
    return logits


@torch.no_grad()
def compute(
    fabric: Fabric, teacher: nn.Module, view_set: ViewSet, views: int, *, partial: Path, workers: int
) -> list[Float16[np.ndarray, "images classes"]]:
    """Compute the logits of a teacher for each of ``views`` views of every image, at the size of its
    contract.

    Every finished view is stored in ``partial``, so that an interrupted run continues with the next one. The
    result is memory-mapped from there.

    Raises:
        LabelError: a logit is not finite in float16.
    """
    partial.mkdir(parents=True, exist_ok=True)
    contract = view_set.contract
    teacher = fabric.to_device(teacher.eval()).to(memory_format=torch.channels_last)
    bar = progress.bar("label", views * len(view_set), "views")
    for view in range(views):
        file = partial / f"{view}.npy"
        if not files.intact(file, "these views are labelled again"):
            requests = batches.sequential(range(len(view_set)), view, contract.size, 128)
            parts = []
            for batch in batches.load(fabric, view_set, requests, workers):
                logits = teacher(contract.normalise(batch.images))
                parts.append(logits.to(torch.float16).cpu().numpy())
                bar.update(len(logits))
            logits = np.concatenate(parts)
            infinite = np.flatnonzero(~np.isfinite(logits).all(1))
            if len(infinite):
                raise LabelError(
                    f"the teacher's outputs for {len(infinite)} of {len(logits)} images are not finite in "
                    f"fp16 ({view_set.images.name(infinite)}); "
                    "allowed: logits within 65504"
                )
            files.write_array(file, logits, sealed=True)
        else:
            bar.update(len(view_set))
    bar.close()
    return [np.load(partial / f"{view}.npy", mmap_mode="r") for view in range(views)]


def save(folder: Path, store: Store) -> None:
    """Write the arrays, then ``card.json`` with their hashes, so that an incomplete store has no card."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    (folder / TOP_CLASSES).unlink(missing_ok=True)
    files.write_array(folder / VALUES, store.answers.values)
    if store.answers.top_classes is not None:
        files.write_array(folder / TOP_CLASSES, store.answers.top_classes)
    card = {
        "teacher": store.teacher,
        "engine": store.engine,
        "key": store.key.to_dict(),
        "classes": store.answers.classes,
        "files": {
            name: provenance.sha256(folder / name) for name in _files(store.answers.top_classes is not None)
        },
    }
    files.write(folder / CARD, json.dumps(card, indent=2) + "\n")


def load(folder: Path, *, data_sha256: str, teacher_sha256: str, space: ViewSpace) -> Store:
    """Open a store for reading.

    Raises:
        LabelError: it is incomplete or damaged, or was made for other data, another teacher or other views.
    """
    again = "run `dvc repro label`"
    try:
        card = json.loads((folder / CARD).read_text())
        damaged = [
            name for name, sha256 in card["files"].items() if provenance.sha256(folder / name) != sha256
        ]
        arrays = [np.load(folder / name, mmap_mode="r") for name in card["files"] if name not in damaged]
        stored, teacher, engine = card["key"], card["teacher"], card["engine"]
    except (OSError, ValueError, KeyError) as error:
        raise LabelError(f"{folder} is not a complete label store ({error}); {again}") from error
    if damaged:
        raise LabelError(f"{folder / damaged[0]} was changed after it was written; {again}")
    key = Key(data_sha256, teacher_sha256, space, stored.get("views"), stored.get("top"))
    for name, expected in key.to_dict().items():
        if stored.get(name) != expected:
            what = name.removesuffix("_sha256")
            raise LabelError(
                f"{folder} was made for another {what}: {stored.get(name)}, not {expected}; {again}"
            )
    values, *top_classes = arrays
    answers = Answers(values, top_classes[0] if top_classes else None, card["classes"])
    return Store(key, teacher, engine, answers)


def _files(compacted: bool) -> list[str]:
    return [VALUES, TOP_CLASSES] if compacted else [VALUES]
