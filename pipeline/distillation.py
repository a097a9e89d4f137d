"""Training a student on the stored answers of the teacher."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline import labels, provenance
from pipeline.data import store
from pipeline.tasks import Task
from pipeline.training import loop
from pipeline.training.batches import Batch, ViewSet
from pipeline.training.checkpoints import History
from pipeline.training.loop import Objective, Run
from pipeline.views import ViewSpace
from teachers.contract import InputContract


@dataclass(frozen=True)
class Lesson:
    """What a student learns from: views of the training images with the teacher's stored answers."""

    train_set: ViewSet
    val_set: ViewSet
    views: int
    """Stored views of every image."""
    data_sha256: str
    classes: tuple[str, ...]
    license: str
    """License of the images."""
    teacher: str
    """The teacher in words."""
    key: str
    """Hash over data, teacher and views."""


def open_lesson(data: Path, answers: Path, space: ViewSpace, contract: InputContract) -> Lesson:
    """Open the prepared data with the stored answers, seen through a student's contract.

    Raises:
        LabelError: the answers are incomplete, or belong to other data or other views.
    """
    report = store.read_report(data)
    answered = labels.load(answers, data_sha256=report["data_sha256"], space=space)
    train = store.read(data, "train")
    return Lesson(
        ViewSet(train, space, contract, answered.answers),
        ViewSet(store.read(data, "val"), None, contract),
        views=answered.key.views,
        data_sha256=report["data_sha256"],
        classes=train.classes,
        license=report["license"],
        teacher=answered.teacher,
        key=answered.key.sha256(),
    )


def learn(
    fabric: Fabric,
    module: nn.Module,
    lesson: Lesson,
    *,
    name: str,
    goal: Mapping[str, float],
    training: Mapping[str, Any],
    start: str,
    seed: int,
    workers: int,
    folder: Path,
    on_epoch: Callable[[nn.Module, float], None] | None = None,
) -> tuple[nn.Module, History]:
    """Train a student on a lesson, resumably; see ``loop.train``.

    Args:
        fabric: where to train.
        module: trained in place.
        lesson: what to learn.
        name: shown beside the progress bar.
        goal: ``temperature`` and the weight of each loss term.
        training: the fields of ``loop.Recipe``.
        start: hash of what the module's weights were made from.
        seed: of the order of the images.
        workers: processes that render images.
        folder: where checkpoints lie until the caller clears them.
        on_epoch: see ``loop.train``.
    """
    contract = lesson.train_set.contract
    weights = {term: weight for term, weight in goal.items() if term != "temperature"}
    identity = provenance.identity(
        goal=goal, training=training, start=start, lesson=lesson.key, contract=contract.to_dict(), seed=seed
    )
    return loop.train(
        fabric,
        module,
        objective(contract, weights, lesson.train_set.images.task, goal["temperature"]),
        weights,
        loop.recipe(size=contract.size, seed=seed, **training),
        train_set=lesson.train_set,
        val_set=lesson.val_set,
        views=lesson.views,
        workers=workers,
        run=Run(name, folder, identity),
        on_epoch=on_epoch,
    )


def objective(
    contract: InputContract, weights: Mapping[str, float], task: Task, temperature: float = 1.0
) -> Objective:
    """The objective whose terms are those of ``weights`` that are not zero: ``kl``, ``cross_entropy``."""

    def terms(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = module(contract.normalise(batch.images)).float()
        named: dict[str, Tensor] = {}
        if weights.get("kl"):
            if batch.answers is None:
                raise ValueError("the kl term needs stored answers; this batch has none")
            named["kl"] = task.kl(logits, batch.answers.float(), temperature)
        if weights.get("cross_entropy"):
            named["cross_entropy"] = task.cross_entropy(logits, batch.labels)
        return named

    return terms
