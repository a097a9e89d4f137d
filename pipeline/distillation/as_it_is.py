"""A teacher that is taken as it is: whose logit is whose, and whether its answers are logits at all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from pipeline.data.batches import ViewSet
from pipeline.data.store import ImageSet
from pipeline.distillation import doubts
from pipeline.tasks import SINGLE_LABEL
from pipeline.training import scoring
from teachers import outputs as forms
from teachers.errors import TeacherError
from teachers.onnx_files import OnnxClassifier
from teachers.outputs import Form
from teachers.teacher import Teacher, columns, name_logits

IMAGES = 512
"""Number of validation images, spread over all, by whose answers the form of the outputs is judged."""

Outputs = Literal["auto", "logits", "probabilities"]


def settle(
    fabric: Fabric,
    teacher: Teacher,
    val_set: ViewSet,
    *,
    names: str | Sequence[str] | None,
    outputs: Outputs,
    workers: int,
) -> Teacher:
    """Return the teacher with names for its logits, and with a module that returns logits.

    Args:
        fabric: where the teacher runs.
        teacher: the teacher as it was loaded.
        val_set: validation images with the teacher's contract.
        names: see ``teacher.name_logits``; None keeps those of the weights.
        outputs: what the teacher returns; ``auto`` judges by its file and its values.
        workers: number of processes that render images.

    Raises:
        TeacherError: it is not certain which logit is whose, or in which form the answers are; or some of
            them are not finite.
    """
    if names is not None:
        teacher = name_logits(teacher, names, val_set.images.classes)
    teacher = _with_names_of_classes(teacher, val_set.images)
    columns(teacher, val_set.images.classes)
    by_file: Form = "logits"
    if isinstance(teacher.module, OnnxClassifier):
        by_file, teacher.module.form = teacher.module.form, "logits"
    form: Form = "logits"
    if outputs != "logits":
        exclusive = val_set.images.task is SINGLE_LABEL
        values = _answers(fabric, teacher, val_set, workers)
        try:
            if outputs == "probabilities":
                form = forms.declared(values, exclusive=exclusive, by_file=by_file)
            else:
                form = forms.judge(values, exclusive=exclusive, by_file=by_file)
        except TeacherError as error:
            raise TeacherError(f"{teacher.origin}: {error}") from error
    if isinstance(teacher.module, OnnxClassifier):
        teacher.module.form = form
        return teacher
    return replace(teacher, module=forms.as_logits(teacher.module, form))


def _with_names_of_classes(teacher: Teacher, images: ImageSet) -> Teacher:
    """Give logits that are called like class folders, such as by WordNet ids, the names of these classes."""
    names = dict(zip(images.folders, images.classes, strict=True)) if images.folders else {}
    if not teacher.labels or not names.keys() & {*teacher.labels}:
        return teacher
    return replace(teacher, labels=tuple(names.get(label, label) for label in teacher.labels))


def _answers(
    fabric: Fabric, teacher: Teacher, val_set: ViewSet, workers: int
) -> Float[Tensor, "images classes"]:
    """What the teacher returns for some validation images, as it is."""
    images = val_set.images
    chosen = np.unique(np.linspace(0, len(images) - 1, IMAGES).round().astype(int))
    some = images.select(chosen)
    size = val_set.contract.size
    module = fabric.to_device(teacher.module)
    values = scoring.predict(fabric, module, replace(val_set, images=some), size, workers)
    doubts.check_finite(values, some, "val", teacher.origin)
    return values
