"""Train a student, or a variant once more, on the outputs of the teacher."""

import copy
import sys

from pipeline import parameters, paths, provenance
from pipeline.data import views
from pipeline.distillation import initial_networks, learning, start_shares, teacher_store, training_data
from pipeline.models import storage
from pipeline.models.storage import Card, Model
from pipeline.parameters import Distill
from pipeline.running.process import run_alongside, stage
from pipeline.training import compute, norms, results, scoring


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Distill)
    seed = p.seed if settings.seed is None else settings.seed
    fabric = compute.start(p.compute, trials=paths.precision_trials(), ranks=True)
    parent = p.variants[variant].parent
    start = (
        initial_networks.student(p.student, p.views.eval_crop)
        if parent == "teacher"
        else initial_networks.variant(parent)
    )
    space = views.space(p.views, p.seed)
    data = training_data.load(paths.DATA, paths.TEACHER, paths.LABELS, space, start.contract)
    if settings.answers != "stored":
        teacher = teacher_store.live(fabric.device, paths.TEACHER, data.task)
        data = training_data.with_live_teacher(data, teacher, endless=settings.answers == "endless")
    start.check_share(data.classes, settings.start_share, p.place(variant, "start_share"))
    fabric.seed_everything(seed, verbose=False)
    student, arguments = start.build(data.classes)
    before = copy.deepcopy(student) if settings.start_share else None
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
    applied, size = settings.model_dump(mode="json"), start.contract.size
    if before is None:
        val = scoring.evaluate(fabric, module, data.val_set, size, p.compute.workers)
    else:
        shares = start_shares.SHARES if settings.start_share == "auto" else (settings.start_share,)
        trials = start_shares.choose(fabric, module, before, shares, data, p.compute.workers)
        [kept] = [trial for trial in trials if trial.kept]
        applied |= {"start_share": kept.start_share, "candidates": [trial.to_dict() for trial in trials]}
        val = kept.val
        if fabric.is_global_zero:
            print(start_shares.table(trials))
    if not fabric.is_global_zero:
        return
    card = Card(
        variant=variant,
        parent=parent,
        op="distill",
        architecture=start.architecture,
        arguments=arguments,
        input=start.contract,
        labels=data.classes,
        teacher=data.teacher,
        data_sha256=data.data_sha256,
        license=data.license,
        settings=applied,
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
    print(f"{variant}: val {val} at {size} px")


if __name__ == "__main__":
    with (
        stage(),
        run_alongside("pipeline.stages.follow", sys.argv[1]),
    ):
        main(sys.argv[1])
