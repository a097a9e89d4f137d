"""Train a student on the stored answers of the teacher."""

import sys

import students
from pipeline import distillation, models, parameters, paths, provenance
from pipeline.labels import LabelError
from pipeline.models import Card, Model
from pipeline.parameters import Distill, ParameterError
from pipeline.process import stage
from pipeline.training import checkpoints, compute, loop
from pipeline.training.loop import TrainingError
from pipeline.views import ViewSpace
from students.mobilenet_v1 import scaled_channels
from teachers import InputContract


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Distill)
    fabric = compute.start(**p.compute.model_dump(exclude={"workers"}))
    contract = InputContract(size=p.student.size, crop=p.views.eval_crop)
    space = ViewSpace(p.seed, p.views.crop_scale, p.views.crop_ratio, p.views.flip)
    lesson = distillation.open_lesson(paths.DATA, paths.LABELS, space, contract)
    arguments = {
        "classes": len(lesson.classes),
        "channels": scaled_channels(p.student.width),
        "activation": p.student.activation,
        "dropout": p.student.dropout,
    }
    fabric.seed_everything(p.seed, verbose=False)
    module, history = distillation.learn(
        fabric,
        students.build(p.student.architecture, arguments),
        lesson,
        name=variant,
        goal=settings.objective.model_dump(),
        training=settings.training(),
        start=provenance.identity(**p.student.model_dump()),
        seed=p.seed,
        workers=p.compute.workers,
        folder=paths.checkpoints(variant),
    )
    loop.settle_norms(fabric, module, lesson.train_set, p.compute.workers)
    val = loop.evaluate(fabric, module, lesson.val_set, contract.size, p.compute.workers)
    card = Card(
        variant=variant,
        parent="teacher",
        op="distill",
        architecture=p.student.architecture,
        arguments=arguments,
        input=contract,
        labels=lesson.classes,
        teacher=lesson.teacher,
        data_sha256=lesson.data_sha256,
        license=lesson.license,
        settings=settings.model_dump(mode="json"),
        git_commit=provenance.git_commit(),
        versions=provenance.versions(),
        val_top1=val.top1,
    )
    models.save(paths.model(variant), Model(module.cpu(), card))
    models.write_history(paths.model(variant), history)
    checkpoints.clear(paths.checkpoints(variant))
    print(f"{variant}: val {val.top1:.2%} of {len(val.labels)} at {contract.size} px")


if __name__ == "__main__":
    with stage(ParameterError, LabelError, TrainingError):
        main(sys.argv[1])
