"""Teachers made ready for a data set: their input, and training on its labels."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_fabric import Fabric

from pipeline.data.batches import ViewSet
from pipeline.distillation.learning import objective
from pipeline.training import loop
from pipeline.training.checkpoints import History
from pipeline.training.loop import Run
from teachers.contract import InputContract
from teachers.errors import TeacherError
from teachers.onnx_files import OnnxClassifier
from teachers.teacher import Teacher, replace_head

OBJECTIVE = {"cross_entropy": 1.0}
Parts = Mapping[str, Mapping[str, Any] | None]
"""``head`` and ``full`` to the fields of ``loop.Recipe``, or to None where a part is left out."""


def contract(teacher: Teacher, *, size: int | None, crop: float, given: Mapping[str, Any]) -> InputContract:
    """The input of a teacher in this pipeline: its own, the user's word above it, the pipeline's crop.

    Raises:
        TeacherError: nobody says what it is.
    """
    own = teacher.input
    if own is None:
        if not given:
            raise TeacherError(f"{teacher.origin} does not say how its input is made; set teacher.input")
        own = InputContract(size or 0)
    chosen = replace(own, **{**given, "crop": crop, "size": size or own.size})
    fixed = teacher.module.size if isinstance(teacher.module, OnnxClassifier) else None
    if fixed and chosen.size not in (fixed, 0):
        raise TeacherError(f"{teacher.origin} takes images of {fixed} pixels; teacher.size = {chosen.size}")
    if not (chosen.size or fixed):
        raise TeacherError(f"{teacher.origin} takes images of any size; set teacher.size")
    return replace(chosen, size=chosen.size or fixed or 0)


def adapt(
    fabric: Fabric,
    teacher: Teacher,
    sets: Mapping[str, ViewSet],
    parts: Parts,
    *,
    seed: int,
    workers: int,
    runs: Mapping[str, Run],
) -> tuple[Teacher, History]:
    """Train the head, then the whole network, on the labels; without either the teacher is left as it is.

    Args:
        fabric: where to train.
        teacher: trained in place.
        sets: ``train`` and ``val``.
        parts: what is trained, and how.
        seed: of the order of the images.
        workers: processes that render images.
        runs: a part to its names and places.

    Raises:
        TeacherError: it has no head that could be replaced.
    """
    if not any(parts.values()):
        return teacher, []
    classes, size = sets["train"].images.classes, sets["train"].contract.size
    replace_head(teacher, len(classes))
    assert teacher.head is not None
    teacher = replace(teacher, outputs=len(classes), labels=tuple(classes))
    history: History = []
    for part, training in parts.items():
        if training is None:
            continue
        teacher.module.requires_grad_(part == "full")
        teacher.module.get_submodule(str(teacher.head)).requires_grad_(True)
        module, lines = loop.train(
            fabric,
            teacher.module,
            objective(sets["train"].contract, OBJECTIVE, sets["train"].images.task),
            OBJECTIVE,
            loop.recipe(size=size, seed=seed, **training),
            train_set=sets["train"],
            val_set=sets["val"],
            views=None,
            workers=workers,
            run=runs[part],
        )
        teacher = replace(teacher, module=module)
        history += [{"part": part, **line} for line in lines]
    loop.settle_norms(fabric, teacher.module, sets["train"], workers)
    return teacher, history
