"""Training a student on the answers of the teacher."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline import provenance, tasks
from pipeline.data import store
from pipeline.data.batches import Batch, ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import labels
from pipeline.distillation.labels import Live
from pipeline.models import storage
from pipeline.tasks import SINGLE_LABEL, Task
from pipeline.training import loop
from pipeline.training.checkpoints import History
from pipeline.training.loop import Objective, Run, TrainingError
from teachers.contract import InputContract

OPTIONS = ("temperature", "dkd_beta")
"""What an objective has besides weights."""


@dataclass(frozen=True)
class Lesson:
    """What a student learns from: views of the training images with the teacher's answers."""

    train_set: ViewSet
    val_set: ViewSet
    views: int | None
    """Views of every image that are shown in turn; None shows new ones without end."""
    data_sha256: str
    classes: tuple[str, ...]
    license: str
    """License of the images."""
    teacher: str
    """The teacher in words."""
    key: str
    """Hash over data, teacher and views."""
    compact: bool = False
    """Whether of stored answers only the most probable classes are known one by one."""
    live: Live | None = None
    """Asked in every step, where answers are not stored."""


def open_lesson(
    data: Path, teacher: Path, answers: Path, space: ViewSpace, contract: InputContract
) -> Lesson:
    """Open the prepared data with the stored answers, seen through a student's contract.

    Unlabelled images are part of it, after the training split.

    Raises:
        LabelError: the answers are incomplete, or belong to other data, another teacher or other views.
    """
    report = store.read_report(data)
    answered = labels.load(
        answers,
        data_sha256=report["data_sha256"],
        teacher_sha256=json.loads((teacher / storage.CARD).read_text())["identity"],
        space=space,
    )
    train = store.read_training_images(data)
    return Lesson(
        ViewSet(train, space, contract, answered.answers.at),
        ViewSet(store.read(data, "val"), None, contract),
        views=answered.key.views,
        data_sha256=report["data_sha256"],
        classes=train.classes,
        license=report["license"],
        teacher=answered.teacher,
        key=answered.key.sha256(),
        compact=answered.answers.chosen is not None,
    )


def ask_live(lesson: Lesson, live: Live, *, endless: bool) -> Lesson:
    """The same lesson with the teacher asked in every step, about the stored views or ever new ones."""
    train_set = replace(lesson.train_set, answers=None, teachers=live.inputs)
    return replace(lesson, train_set=train_set, live=live, views=None if endless else lesson.views)


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
        goal: see ``objective``.
        training: the fields of ``loop.Recipe``.
        start: hash of what the module's weights were made from.
        seed: of the order of the images.
        workers: processes that render images.
        folder: where checkpoints lie until the caller clears them.
        on_epoch: see ``loop.train``.

    Raises:
        TrainingError: the answers that are stored are too few for the goal, or see ``loop.train``.
    """
    if lesson.compact and lesson.live is None:
        _suffices(goal)
    contract = lesson.train_set.contract
    identity = provenance.identity(
        goal=goal,
        training=training,
        start=start,
        lesson=lesson.key,
        live=lesson.live is not None,
        views=lesson.views,
        contract=contract.to_dict(),
        seed=seed,
    )
    return loop.train(
        fabric,
        module,
        objective(contract, goal, lesson.train_set.images.task, lesson.live),
        weights(goal),
        loop.recipe(size=contract.size, seed=seed, **training),
        train_set=lesson.train_set,
        val_set=lesson.val_set,
        views=lesson.views,
        workers=workers,
        run=Run(name, folder, identity),
        on_epoch=on_epoch,
    )


def objective(
    contract: InputContract, goal: Mapping[str, float], task: Task, live: Live | None = None
) -> Objective:
    """The objective whose terms are those that weigh in ``goal``; their options are in it too.

    Args:
        contract: of the student's input.
        goal: weights of `parameters.Objective`'s terms, ``temperature`` and ``dkd_beta`` where they are used.
        task: what the student is asked.
        live: asked for answers, where the batches bring none.

    Raises:
        TrainingError: a term has no meaning for the task.
    """
    chosen = weights(goal)
    taught = set(chosen) != {"cross_entropy"}
    temperature, beta = goal.get("temperature", 1.0), goal.get("dkd_beta", 1.0)
    distances: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "kl": lambda logits, answers, _: task.kl(logits, answers, temperature)
    }
    if task is SINGLE_LABEL:
        distances |= {
            "standardised_kl": lambda logits, answers, _: tasks.standardised_kl(logits, answers, temperature),
            "dkd": lambda logits, answers, labels: tasks.dkd(logits, answers, labels, temperature, beta),
            "dist": lambda logits, answers, _: tasks.dist(logits, answers, temperature),
        }
    if unknown := set(chosen) - {*distances, "cross_entropy"}:
        raise TrainingError(
            f"objective.{min(unknown)}: a {task.name} data set has {', '.join(distances)}, cross_entropy"
        )

    def terms(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = module(contract.normalise(batch.images)).float()
        answers = batch.answers.float() if batch.answers is not None else None
        if live is not None and taught:
            answers = live.ask(batch.for_teachers)
        named: dict[str, Tensor] = {}
        for name in chosen:
            if name == "cross_entropy":
                named[name] = task.cross_entropy(logits, batch.labels)
            elif answers is None:
                raise ValueError(f"the {name} term needs a teacher's answers; this batch has none")
            else:
                named[name] = distances[name](logits, answers, batch.labels)
        return named

    return terms


def _suffices(goal: Mapping[str, float]) -> None:
    """Refuse goals that look beyond the most probable classes, where the rest is stored as one sum.

    A temperature raises the rest, which is known as its mean; standardising needs the spread of all logits.
    """
    chosen = weights(goal)
    if chosen.get("standardised_kl"):
        wrong = "objective.standardised_kl"
    elif goal.get("temperature", 1.0) != 1 and set(chosen) != {"cross_entropy"}:
        wrong = f"objective.temperature = {goal['temperature']:g}"
    else:
        return
    raise TrainingError(
        f"{wrong}: the store keeps the most probable classes alone, which is enough for probabilities at "
        "temperature 1; set views.top to null"
    )


def weights(goal: Mapping[str, float]) -> dict[str, float]:
    """The terms of an objective that weigh, without its options."""
    return {name: weight for name, weight in goal.items() if weight and name not in OPTIONS}
