"""Adaptation of a teacher to a data set: its input, and training on the labels."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from lightning_fabric import Fabric

from pipeline.data.batches import ViewSet
from pipeline.distillation.objective import loss_terms
from pipeline.distillation.settings import Objective, TeacherInput
from pipeline.training import loop, norms
from pipeline.training.checkpoints import History
from pipeline.training.loop import Run
from pipeline.training.settings import TrainingSettings
from teachers.contract import InputContract
from teachers.errors import TeacherError
from teachers.onnx_files import OnnxClassifier
from teachers.teacher import Teacher, replace_heads

OBJECTIVE = Objective(kl=0.0, cross_entropy=1.0)
"""A teacher is trained on the labels alone."""


def contract(teacher: Teacher, *, size: int | None, crop: float, corrections: TeacherInput) -> InputContract:
    """The input contract of a teacher: what its weights declare, corrected, with the crop of the pipeline.

    Args:
        teacher: the teacher as it was loaded.
        size: image size in pixels, which takes precedence; None keeps the declared one.
        crop: see ``InputContract.crop``.
        corrections: further fields that take precedence.

    Raises:
        TeacherError: the input is not known, its values are not finite or not positive, or the teacher does
            not take images of the size.
    """
    given = corrections.model_dump(exclude_none=True)
    declared = teacher.input
    box = teacher.module if isinstance(teacher.module, OnnxClassifier) else None
    if declared is None:
        if not given and not (box and box.bytes):
            raise TeacherError(f"{teacher.origin} does not declare how its input is made; set teacher.input")
        declared = InputContract(size or 0)
    result = replace(declared, **{**given, "crop": crop, "size": size or declared.size})
    if not np.isfinite((*result.mean, *result.std)).all() or min(result.std) <= 0:
        raise TeacherError(
            f"{teacher.origin} has the mean {result.mean} and the standard deviation {result.std} for its "
            "input; allowed: finite numbers, and positive standard deviations; set teacher.input"
        )
    if box and box.bytes and not result.is_plain:
        raise TeacherError(
            f"{teacher.origin} takes bytes from 0 to 255; teacher.input.mean = {result.mean} and "
            f"teacher.input.std = {result.std}; allowed: null"
        )
    fixed = box.size if box else None
    if fixed and result.size not in (fixed, 0):
        raise TeacherError(f"{teacher.origin} takes images of {fixed} pixels; teacher.size = {result.size}")
    if not (result.size or fixed):
        raise TeacherError(f"{teacher.origin} takes images of any size; set teacher.size")
    return replace(result, size=result.size or fixed or 0)


def adapt(
    fabric: Fabric,
    teacher: Teacher,
    sets: Mapping[str, ViewSet],
    parts: Mapping[str, TrainingSettings | None],
    *,
    seed: int,
    workers: int,
    runs: Mapping[str, Run],
) -> tuple[Teacher, History]:
    """Train the head, then the whole network, on the labels. Without either, the teacher stays unchanged.

    Args:
        fabric: where to train.
        teacher: the teacher, trained in place.
        sets: the splits ``train`` and ``val``.
        parts: settings of the parts ``head`` and ``full``; None skips a part.
        seed: seed of the order of the images.
        workers: number of processes that render images.
        runs: name and checkpoints of each part.

    Raises:
        TeacherError: the teacher has no head that can be replaced.
    """
    if not any(parts.values()):
        return teacher, []
    classes = sets["train"].images.classes
    replace_heads(teacher, len(classes))
    teacher = replace(teacher, outputs=len(classes), labels=tuple(classes))
    history: History = []
    # A head that is all that is trained learns what the frozen network computes when it is used.
    only_head = parts["full"] is None
    for part, settings in parts.items():
        if settings is None:
            continue
        teacher.module.requires_grad_(part == "full")
        for path in teacher.heads:
            teacher.module.get_submodule(path).requires_grad_(True)
        module, lines = loop.train(
            fabric,
            teacher.module,
            loss_terms(OBJECTIVE, sets["train"].contract, sets["train"].images.task),
            OBJECTIVE.weights(),
            settings,
            train_set=sets["train"],
            val_set=sets["val"],
            views=None,
            seed=seed,
            workers=workers,
            run=runs[part],
            hold_frozen=only_head,
        )
        teacher = replace(teacher, module=module)
        history += [{"part": part, **line} for line in lines]
    if not only_head:
        norms.settle(fabric, teacher.module, sets["train"], workers)
    return teacher, history
