"""What a student is trained on: views of the training images with the outputs of the teacher."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from torch import Tensor

from pipeline import paths
from pipeline.data import store
from pipeline.data.batches import ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import labels
from pipeline.distillation.labels import LiveTeacher
from pipeline.models.storage import Model
from pipeline.tasks import Task
from teachers.contract import InputContract
from teachers.runtime import in_runtime


@dataclass(frozen=True)
class TrainingData:
    """Views of the training images with the outputs of the teacher, and the validation images."""

    train_set: ViewSet
    val_set: ViewSet
    views: int | None
    """Number of views per image that are shown in turn; None shows new ones in every epoch."""
    data_sha256: str
    """Hash over the prepared data."""
    classes: tuple[str, ...]
    """Names of the classes or attributes, in the order of the logits."""
    license: str
    """Licence of the images."""
    teacher: str
    """Description of the teacher."""
    key: str
    """Hash over data, teacher and views."""
    teacher_score: float = math.inf
    """Score of the teacher on val, in the metric of the task; infinity if it is not known."""
    compact: bool = False
    """Whether the stored outputs contain only the most probable classes one by one."""
    live: LiveTeacher | None = None
    """Teacher that runs in every step, if its outputs are not stored."""

    @property
    def task(self) -> Task:
        """The task of the data."""
        return self.train_set.images.task


def load(data: Path, teacher: Path, answers: Path, space: ViewSpace, contract: InputContract) -> TrainingData:
    """The prepared data with the stored outputs of the teacher, for a student with an input contract.

    Unlabelled images, if there are any, follow the training split.

    Raises:
        LabelError: the outputs are incomplete, or belong to other data, another teacher or other views.
    """
    report = store.read_report(data)
    card = json.loads((teacher / paths.CARD).read_text())
    stored = labels.load(
        answers, data_sha256=report["data_sha256"], teacher_sha256=card["identity"], space=space
    )
    train = store.read_training_images(data)
    return TrainingData(
        ViewSet(train, space, contract, stored.answers.at),
        ViewSet(store.read(data, "val"), None, contract),
        views=stored.key.views,
        data_sha256=report["data_sha256"],
        classes=train.classes,
        license=report["license"],
        teacher=stored.teacher,
        teacher_score=card["val"][train.task.metric],
        key=stored.key.sha256(),
        compact=stored.answers.top_classes is not None,
    )


def with_target(
    fabric: Fabric, data: TrainingData, parent: Model, target: Literal["auto", "teacher", "parent"]
) -> TrainingData:
    """The same data with the outputs that a variant learns: the stored ones of the teacher, or those of its
    parent, which then runs in every step.

    Args:
        fabric: where the parent runs.
        data: the data with the stored outputs of the teacher.
        parent: a float variant. It is copied, so that it stays as it is while the variant trains.
        target: see ``FineTuning``.
    """
    own = parent.card.val[data.task.metric]
    if target == "teacher" or (target == "auto" and own <= data.teacher_score):
        return data
    print(f"the target is {parent.card.variant}: {own:.2%} on val, the teacher {data.teacher_score:.2%}")
    contract = parent.card.input
    module = fabric.to_device(copy.deepcopy(parent.module).requires_grad_(False).eval())
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network = in_runtime(module, contract.size).module

    @torch.no_grad()
    def ask(images: Sequence[UInt8[Tensor, "batch _ _ 3"]]) -> Float[Tensor, "batch classes"]:
        return network(contract.normalise(images[0])).float()

    return with_live_teacher(data, LiveTeacher((contract,), ask), endless=False)


def with_live_teacher(data: TrainingData, teacher: LiveTeacher, *, endless: bool) -> TrainingData:
    """The same data with a teacher that runs in every step, on the stored views or on endless new ones."""
    train_set = replace(data.train_set, answers=None, teachers=teacher.inputs)
    return replace(data, train_set=train_set, live=teacher, views=None if endless else data.views)
