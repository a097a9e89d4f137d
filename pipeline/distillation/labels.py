"""The teacher's answers on fixed views of every training image, stored once and read ever after."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64, UInt8, UInt16
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from pipeline import provenance
from pipeline.data import batches
from pipeline.data.batches import ViewSet
from pipeline.data.views import ViewSpace
from pipeline.errors import DistilleryError
from pipeline.tasks import SINGLE_LABEL, Task
from teachers.contract import InputContract
from teachers.runtime import in_runtime

VALUES = "answers.npy"
CHOSEN = "classes.npy"
CARD = "card.json"


class LabelError(DistilleryError):
    """The store does not hold the answers that were asked for."""


@dataclass(frozen=True)
class Key:
    """What the answers depend on: a store with another key is another store."""

    data_sha256: str
    teacher_sha256: str
    space: ViewSpace
    views: int
    """Views of every image."""
    top: int | None
    """Classes that are kept of every answer; None keeps all."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return json.loads(json.dumps(asdict(self)))

    def sha256(self) -> str:
        """Hash over all of it."""
        return provenance.identity(**asdict(self))


@dataclass(frozen=True)
class Answers:
    """Logits of a teacher, whole, or the most probable classes with the mass of the rest."""

    values: Float16[np.ndarray, "images views kept"]
    """Logits; or logarithms of the probabilities of the chosen classes, and of all others together."""
    chosen: UInt16[np.ndarray, "images views top"] | None
    """The chosen classes, the most probable first; None where ``values`` are logits of all."""
    classes: int

    def at(self, images: Int64[np.ndarray, " batch"], view: int) -> Float16[np.ndarray, "batch classes"]:
        """Logits of some images' view; of a compact store up to a constant, the rest spread evenly."""
        values = self.values[images, view]
        return values if self.chosen is None else _expand(values, self.chosen[images, view], self.classes)


@dataclass(frozen=True)
class Store:
    """A teacher's answers, memory-mapped, for the views of ``key``."""

    key: Key
    teacher: str
    """The teacher in words."""
    answers: Answers


@dataclass(frozen=True)
class Live:
    """A teacher, or an ensemble, that is asked while the student trains."""

    inputs: tuple[InputContract, ...]
    """Of each member."""
    ask: Callable[[Sequence[UInt8[Tensor, "batch _ _ 3"]]], Float[Tensor, "batch classes"]]
    """From the same views at each member's size to logits."""


def kept(task: Task, top: int | None) -> int | None:
    """``top`` of classes, or all of attributes, which are no shares of one whole."""
    return top if task is SINGLE_LABEL else None


def compact(views: Iterable[Float16[np.ndarray, "images classes"]], top: int | None) -> Answers:
    """Keep the ``top`` most probable classes and what they leave over (Shen and Xing 2022, FKD).

    As logarithms, since float16 holds a probability of 1e-12 so and not otherwise. Where ``top`` keeps no
    less than half of the classes, all logits stay as they are.

    Args:
        views: the logits of each view of all images; one of them at a time need lie in memory.
        top: None keeps all.
    """
    values, chosen, classes = [], [], 0
    for logits in views:
        classes = logits.shape[1]
        if top is None or top >= classes / 2:
            values.append(logits)
        else:
            found, numbers = _most_probable(logits, top)
            values.append(found)
            chosen.append(numbers)
    return Answers(np.stack(values, axis=1), np.stack(chosen, axis=1) if chosen else None, classes)


def _most_probable(
    logits: Float16[np.ndarray, "images classes"], top: int
) -> tuple[Float16[np.ndarray, "images kept"], UInt16[np.ndarray, "images top"]]:
    """The logarithms of ``top`` probabilities and of what is left, and the classes of the former."""
    logarithms = torch.from_numpy(logits).float().log_softmax(-1)
    kept, chosen = logarithms.topk(top, dim=-1)
    rest = logarithms.scatter_(-1, chosen, -torch.inf).logsumexp(-1, keepdim=True)
    values = torch.cat([kept, rest], dim=-1).to(torch.float16)
    return values.numpy(), chosen.numpy().astype(np.uint16)


def _expand(
    values: Float16[np.ndarray, "batch kept"], chosen: UInt16[np.ndarray, "batch top"], classes: int
) -> Float16[np.ndarray, "batch classes"]:
    spread = values[:, -1:] - np.float16(np.log(classes - chosen.shape[1]))
    logits = np.repeat(spread, classes, axis=1)
    np.put_along_axis(logits, chosen.astype(np.int64), values[:, :-1], axis=1)
    return logits


@torch.no_grad()
def answer(
    fabric: Fabric, teacher: nn.Module, view_set: ViewSet, views: int, *, partial: Path, workers: int
) -> list[Float16[np.ndarray, "images classes"]]:
    """Ask the teacher about ``views`` views of every image, at the size of its own contract.

    Each finished view is kept in ``partial``, so that a run that was killed goes on with the next; what is
    returned is mapped from there.

    Raises:
        LabelError: an answer is not finite in float16.
    """
    partial.mkdir(parents=True, exist_ok=True)
    contract = view_set.contract
    teacher = fabric.to_device(teacher.eval()).to(memory_format=torch.channels_last)
    teacher = in_runtime(teacher, contract.size)
    bar = tqdm(desc="label", total=views * len(view_set), unit=" views", unit_scale=True)
    for view in range(views):
        file = partial / f"{view}.npy"
        if not file.exists():
            requests = batches.sequential(range(len(view_set)), view, contract.size, 128)
            parts = []
            for batch in batches.load(fabric, view_set, requests, workers):
                logits = teacher(contract.normalise(batch.images))
                parts.append(logits.to(torch.float16).cpu().numpy())
                bar.update(len(logits))
            logits = np.concatenate(parts)
            if wrong := int((~np.isfinite(logits).all(1)).sum()):
                raise LabelError(
                    f"the teacher's answers to {wrong} of {len(logits)} images are not finite in float16; "
                    "allowed: logits within 65504"
                )
            fresh = partial / "new.npy"
            np.save(fresh, logits)
            fresh.replace(file)
        else:
            bar.update(len(view_set))
    bar.close()
    return [np.load(partial / f"{view}.npy", mmap_mode="r") for view in range(views)]


def save(folder: Path, store: Store) -> None:
    """Write the arrays, then ``card.json`` with their hashes: a half-written store has no card."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    (folder / CHOSEN).unlink(missing_ok=True)
    np.save(folder / VALUES, store.answers.values)
    if store.answers.chosen is not None:
        np.save(folder / CHOSEN, store.answers.chosen)
    card = {
        "teacher": store.teacher,
        "key": store.key.to_dict(),
        "classes": store.answers.classes,
        "files": {
            name: provenance.sha256(folder / name) for name in _files(store.answers.chosen is not None)
        },
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")


def load(folder: Path, *, data_sha256: str, teacher_sha256: str, space: ViewSpace) -> Store:
    """Open a store for reading.

    Raises:
        LabelError: it is incomplete or damaged, or was made for other data, another teacher or other views.
    """
    again = "`dvc repro label` makes it anew"
    try:
        card = json.loads((folder / CARD).read_text())
        damaged = [
            name for name, sha256 in card["files"].items() if provenance.sha256(folder / name) != sha256
        ]
        arrays = [np.load(folder / name, mmap_mode="r") for name in card["files"] if name not in damaged]
        stored = card["key"]
    except (OSError, ValueError, KeyError) as error:
        raise LabelError(f"{folder} is no complete label store ({error}); {again}") from error
    if damaged:
        raise LabelError(f"{folder / damaged[0]} is not what was written there; {again}")
    key = Key(data_sha256, teacher_sha256, space, stored.get("views"), stored.get("top"))
    for name, expected in key.to_dict().items():
        if stored.get(name) != expected:
            what = name.removesuffix("_sha256")
            raise LabelError(
                f"{folder} was made for another {what}: {stored.get(name)}, not {expected}; {again}"
            )
    values, *chosen = arrays
    return Store(key, card["teacher"], Answers(values, chosen[0] if chosen else None, card["classes"]))


def _files(compacted: bool) -> list[str]:
    return [VALUES, CHOSEN] if compacted else [VALUES]
