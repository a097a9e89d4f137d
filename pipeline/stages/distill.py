"""Train a student on the answers of the teacher."""

import sys

from pipeline import parameters, paths, provenance
from pipeline.data.views import ViewSpace
from pipeline.distillation import learning, teacher_store
from pipeline.models import initialisation, storage
from pipeline.models.storage import Card, Model
from pipeline.parameters import Distill
from pipeline.process import beside, stage
from pipeline.training import checkpoints, compute, loop
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Distill)
    seed = p.seed if settings.seed is None else settings.seed
    fabric = compute.start(**p.compute.model_dump(exclude={"workers"}), trials=paths.PRECISION_TRIALS)
    init = p.student.init
    start = initialisation.SOURCES[init.source](init.path) if init else initialisation.RANDOM
    contract = InputContract(p.student.size, start.mean, start.std, crop=p.views.eval_crop)
    space = ViewSpace(p.seed, **p.views.space())
    lesson = learning.open_lesson(paths.DATA, paths.TEACHER, paths.LABELS, space, contract)
    if settings.answers != "stored":
        live = teacher_store.live(fabric, paths.TEACHER, lesson.train_set.images.task)
        lesson = learning.ask_live(lesson, live, endless=settings.answers == "endless")
    chosen = p.student.model_dump(include={"activation", "padding", "norm_eps"}, exclude_none=True)
    arguments = {
        "channels": scaled_channels(p.student.width),
        **start.arguments,
        **chosen,
        "classes": len(lesson.classes),
        "size": contract.size,
        "norm_momentum": p.student.norm_momentum,
        "dropout": p.student.dropout,
    }
    fabric.seed_everything(seed, verbose=False)
    student = initialisation.network(p.student.architecture, arguments, lesson.classes, start)
    module, history = learning.learn(
        fabric,
        student,
        lesson,
        name=variant,
        goal=settings.objective.model_dump(),
        training=settings.training(),
        start=provenance.identity(weights=storage.fingerprint(student), arguments=arguments),
        seed=seed,
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
        start=start.origin,
        task=lesson.train_set.images.task.name,
        val=val.to_dict(),
    )
    storage.save(paths.model(variant), Model(module.cpu(), card))
    storage.write_history(paths.model(variant), history)
    checkpoints.clear(paths.checkpoints(variant))
    print(f"{variant}: val {val} at {contract.size} px")


if __name__ == "__main__":
    with (
        stage(),
        beside("pipeline.stages.follow", sys.argv[1]),
    ):
        main(sys.argv[1])
