"""Train a student, or a variant once more, on the outputs of the teacher."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from pipeline import parameters, paths, provenance
from pipeline.data import views
from pipeline.distillation import learning, teacher_store, training_data
from pipeline.models import initialisation, storage
from pipeline.models.storage import Card, Model
from pipeline.parameters import Distill, Parameters
from pipeline.running.process import run_alongside, stage
from pipeline.training import compute, norms, results, scoring
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Distill)
    seed = p.seed if settings.seed is None else settings.seed
    fabric = compute.start(p.compute, trials=paths.precision_trials(), ranks=True)
    parent = p.variants[variant].parent
    start = _student(p) if parent == "teacher" else _variant(parent)
    space = views.space(p.views, p.seed)
    data = training_data.load(paths.DATA, paths.TEACHER, paths.LABELS, space, start.contract)
    if settings.answers != "stored":
        teacher = teacher_store.live(fabric.device, paths.TEACHER, data.task)
        data = training_data.with_live_teacher(data, teacher, endless=settings.answers == "endless")
    fabric.seed_everything(seed, verbose=False)
    student, arguments = start.build(data.classes)
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
    size = start.contract.size
    val = scoring.evaluate(fabric, module, data.val_set, size, p.compute.workers)
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
    print(f"{variant}: val {val} at {size} px")


class Start(NamedTuple):
    """Where a training begins."""

    architecture: str
    contract: InputContract
    origin: str
    """Where the weights come from, in words."""
    build: Callable[[tuple[str, ...]], tuple[nn.Module, dict[str, Any]]]
    """Function from the names of the classes to the network and the arguments that rebuild it."""


def _student(p: Parameters) -> Start:
    """A student with the initial weights of the parameters."""
    init = p.student.init
    weights = initialisation.SOURCES[init.source](init.path) if init else initialisation.RANDOM
    contract = InputContract(p.student.size, weights.mean, weights.std, crop=p.views.eval_crop)

    def build(classes: tuple[str, ...]) -> tuple[nn.Module, dict[str, Any]]:
        arguments = {
            "channels": scaled_channels(p.student.width),
            **weights.arguments,
            **p.student.overrides(),
            "classes": len(classes),
            "size": contract.size,
            "norm_momentum": p.student.norm_momentum,
            "dropout": p.student.dropout,
        }
        return initialisation.network(p.student.architecture, arguments, classes, weights), arguments

    return Start(p.student.architecture, contract, weights.origin, build)


def _variant(name: str) -> Start:
    """A variant of the same classes, as it is."""
    model = storage.load(paths.model(name))
    results.check_parent(model.card)
    card = model.card
    return Start(card.architecture, card.input, card.start, lambda _: (model.module, card.arguments))


if __name__ == "__main__":
    with (
        stage(),
        run_alongside("pipeline.stages.follow", sys.argv[1]),
    ):
        main(sys.argv[1])
