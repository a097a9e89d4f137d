"""Remove channels of the parent, then fine-tune with the stored answers."""

import sys
from dataclasses import replace

from pipeline import costs, distillation, models, parameters, paths, provenance, pruning
from pipeline.labels import LabelError
from pipeline.models import Model
from pipeline.parameters import ParameterError, Prune
from pipeline.process import beside, stage
from pipeline.training import checkpoints, compute, loop
from pipeline.training.loop import TrainingError
from pipeline.views import ViewSpace


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Prune)
    parent = models.load(paths.model(p.variants[variant].parent))
    contract = parent.card.input
    module, arguments = pruning.prune(
        parent.module,
        parent.card.arguments,
        architecture=parent.card.architecture,
        size=contract.size,
        macs=settings.macs,
        criterion=settings.criterion,
        multiple=settings.multiple,
    )
    before, after = (costs.count_macs(m, contract.size) for m in (parent.module, module))
    print(f"{variant}: {after / 1e6:.1f} of {before / 1e6:.1f} M MACs ({after / before:.1%})")

    fabric = compute.start(**p.compute.model_dump(exclude={"workers"}), trials=paths.PRECISION_TRIALS)
    space = ViewSpace(p.seed, **p.views.space())
    lesson = distillation.open_lesson(paths.DATA, paths.TEACHER, paths.LABELS, space, contract)
    module, history = distillation.learn(
        fabric,
        module,
        lesson,
        name=variant,
        goal=settings.objective.model_dump(),
        training=settings.training(),
        start=provenance.identity(parent=models.fingerprint(parent.module), arguments=arguments),
        seed=p.seed,
        workers=p.compute.workers,
        folder=paths.checkpoints(variant),
    )
    loop.settle_norms(fabric, module, lesson.train_set, p.compute.workers)
    val = loop.evaluate(fabric, module, lesson.val_set, contract.size, p.compute.workers)
    card = replace(
        parent.card,
        variant=variant,
        parent=parent.card.variant,
        op="prune",
        arguments=arguments,
        settings=settings.model_dump(mode="json"),
        git_commit=provenance.git_commit(),
        versions=provenance.versions(),
        val=val.to_dict(),
    )
    models.save(paths.model(variant), Model(module.cpu(), card))
    models.write_history(paths.model(variant), history)
    checkpoints.clear(paths.checkpoints(variant))
    print(f"{variant}: val {val} at {contract.size} px")


if __name__ == "__main__":
    with stage(ParameterError, LabelError, TrainingError), beside("pipeline.stages.follow", sys.argv[1]):
        main(sys.argv[1])
