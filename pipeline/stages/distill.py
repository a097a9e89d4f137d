"""Train a student on the outputs of the teacher."""

import sys

from pipeline import parameters, paths, provenance
from pipeline.data import views
from pipeline.distillation import learning, teacher_store, training_data
from pipeline.models import initialisation, storage
from pipeline.models.storage import Card, Model
from pipeline.parameters import Distill
from pipeline.process import run_alongside, stage
from pipeline.training import compute, norms, results, scoring
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Distill)
    seed = p.seed if settings.seed is None else settings.seed
    fabric = compute.start(p.compute, trials=paths.precision_trials())
    init = p.student.init
    start = initialisation.SOURCES[init.source](init.path) if init else initialisation.RANDOM
    contract = InputContract(p.student.size, start.mean, start.std, crop=p.views.eval_crop)
    space = views.space(p.views, p.seed)
    data = training_data.load(paths.DATA, paths.TEACHER, paths.LABELS, space, contract)
    if settings.answers != "stored":
        teacher = teacher_store.live(fabric, paths.TEACHER, data.task)
        data = training_data.with_live_teacher(data, teacher, endless=settings.answers == "endless")
    arguments = {
        "channels": scaled_channels(p.student.width),
        **start.arguments,
        **p.student.overrides(),
        "classes": len(data.classes),
        "size": contract.size,
        "norm_momentum": p.student.norm_momentum,
        "dropout": p.student.dropout,
    }
    fabric.seed_everything(seed, verbose=False)
    student = initialisation.network(p.student.architecture, arguments, data.classes, start)
    module, history = learning.learn(
        fabric,
        student,
        data,
        settings,
        name=variant,
        start=provenance.identity(weights=storage.fingerprint(student), arguments=arguments),
        seed=seed,
        workers=p.compute.workers,
        folder=paths.checkpoints(variant),
    )
    norms.settle(fabric, module, data.train_set, p.compute.workers)
    val = scoring.evaluate(fabric, module, data.val_set, contract.size, p.compute.workers)
    card = Card(
        variant=variant,
        parent="teacher",
        op="distill",
        architecture=p.student.architecture,
        arguments=arguments,
        input=contract,
        labels=data.classes,
        teacher=data.teacher,
        data_sha256=data.data_sha256,
        license=data.license,
        settings=settings.model_dump(mode="json"),
        start=start.origin,
        task=data.task.name,
        val=results.describe(val),
    )
    results.save(
        Model(module.cpu(), card),
        history,
        folder=paths.model(variant),
        timings=paths.timings,
        run=paths.checkpoints(variant),
    )
    print(f"{variant}: val {val} at {contract.size} px")


if __name__ == "__main__":
    with (
        stage(),
        run_alongside("pipeline.stages.follow", sys.argv[1]),
    ):
        main(sys.argv[1])
