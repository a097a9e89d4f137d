"""The store of the teacher's outputs on fixed views of every training image: written once, then only read.

Its arrays are written block by block and read through a memory map, so that memory does not grow with the
number of images. `labelling` computes the blocks.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64, UInt, UInt8
from torch import Tensor

from pipeline import files, provenance
from pipeline.data.rendering.renderers import Renderer
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
    top_classes: UInt[np.ndarray, "images views top"] | None
    """The most probable classes in descending order; None if ``values`` contains all logits."""
    classes: int
    """Number of all classes."""

    def __len__(self) -> int:
        return len(self.values)

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
    renderer: Renderer
    """What rendered the views. The others' pixels are the same, so that the answers are valid for both."""
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


def is_compact(classes: int, top: int | None) -> bool:
    """Whether only the ``top`` most probable classes are stored: if they are less than half of them all."""
    return top is not None and top < classes / 2


def compact(logits: Float16[np.ndarray, "images views classes"], top: int | None) -> Answers:
    """Keep the ``top`` most probable classes and the sum of all others (Shen and Xing 2022, FKD).

    Probabilities are stored as logarithms, since float16 cannot represent a probability of 1e-12 itself. If
    ``top`` is at least half of the classes, all logits are stored unchanged.

    Args:
        logits: some logits. Each row is treated by itself, so that blocks give what the whole gives.
        top: number of classes to keep; None keeps all.
    """
    classes = logits.shape[-1]
    if top is None or not is_compact(classes, top):
        return Answers(logits, None, classes)
    logarithms = torch.from_numpy(logits).float().log_softmax(-1)
    greatest, top_classes = logarithms.topk(top, dim=-1)
    rest = logarithms.scatter_(-1, top_classes, -torch.inf).logsumexp(-1, keepdim=True)
    values = torch.cat([greatest, rest], dim=-1).to(torch.float16)
    return Answers(values.numpy(), top_classes.numpy().astype(class_type(classes)), classes)


def class_type(classes: int) -> np.dtype[Any]:
    """The type of the numbers of classes: 16 bits while they suffice."""
    return np.dtype(np.uint16 if classes <= 2**16 else np.uint32)


def _expand(
    values: Float16[np.ndarray, "batch stored"], top_classes: UInt[np.ndarray, "batch top"], classes: int
) -> Float16[np.ndarray, "batch classes"]:
    each = values[:, -1:] - np.float16(np.log(classes - top_classes.shape[1]))
    logits = np.repeat(each, classes, axis=1)
    np.put_along_axis(logits, top_classes.astype(np.int64), values[:, :-1], axis=1)
    return logits


def save(
    folder: Path,
    key: Key,
    *,
    teacher: str,
    engine: str,
    renderer: Renderer = "workers",
    blocks: Iterable[Answers],
    images: int,
) -> None:
    """Write the arrays, then ``card.json`` with their hashes, so that an incomplete store has no card.

    Args:
        folder: the folder of the store.
        key: everything that the answers depend on.
        teacher: description of the teacher.
        engine: what computed the answers; see ``Store``.
        renderer: what rendered the views.
        blocks: the answers to some images each, in the order of the images. One at a time is in memory.
        images: number of images in all blocks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CARD, TOP_CLASSES):
        (folder / name).unlink(missing_ok=True)
    appends: dict[str, Callable[[np.ndarray], None]] = {}
    classes = 0
    with ExitStack() as open_files:
        for block in blocks:
            classes = block.classes
            for name, rows in ((VALUES, block.values), (TOP_CLASSES, block.top_classes)):
                if rows is None:
                    continue
                if name not in appends:
                    array = files.growing_array(folder / name, (images, *rows.shape[1:]), rows.dtype)
                    appends[name] = open_files.enter_context(array)
                appends[name](rows)
    card = {
        "teacher": teacher,
        "engine": engine,
        "renderer": renderer,
        "key": key.to_dict(),
        "classes": classes,
        "files": {name: provenance.sha256(folder / name) for name in appends},
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
            name
            for name, sha256 in card["files"].items()
            if not provenance.is_unchanged(folder / name, sha256)
        ]
        arrays = [np.load(folder / name, mmap_mode="r") for name in card["files"] if name not in damaged]
        stored, teacher, engine = card["key"], card["teacher"], card["engine"]
        renderer = card.get("renderer", "workers")  # which rendered all views before there was another
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
    return Store(key, teacher, engine, renderer, answers)
