"""Remove channels of the parent, then fine-tune with the stored answers."""

import sys
from dataclasses import replace

from pipeline import parameters, paths, provenance
from pipeline.data.views import ViewSpace
from pipeline.distillation import learning
from pipeline.measurement import kernels
from pipeline.models import storage
from pipeline.models.storage import Model
from pipeline.parameters import Prune
from pipeline.process import beside, stage
from pipeline.pruning import plans, surgery, widths
from pipeline.training import checkpoints, compute, loop


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Prune)
    fabric = compute.start(**p.compute.model_dump(exclude={"workers"}), trials=paths.PRECISION_TRIALS)
    parent = storage.load(paths.model(p.variants[variant].parent))
    contract, goal = parent.card.input, settings.objective.model_dump()
    space = ViewSpace(p.seed, **p.views.space())
    lesson = learning.open_lesson(paths.DATA, paths.TEACHER, paths.LABELS, space, contract)
    identity = {"parent": storage.fingerprint(parent.module), "settings": settings.model_dump(mode="json")}

    module, arguments = fabric.to_device(parent.module), parent.card.arguments
    data = plans.gather_trial_data(
        fabric, lesson, goal, taylor="taylor" in settings.criteria(), seed=p.seed, workers=p.compute.workers
    )
    costs = kernels.open_costs(paths.KERNELS)
    ranked = plans.rank(
        module,
        arguments,
        data,
        architecture=parent.card.architecture,
        size=contract.size,
        criteria=settings.criteria(),
        shapes=settings.shapes(),
        macs=settings.macs,
        speedup=settings.speedup,
        multiple=settings.multiple,
        milliseconds=lambda network: costs.milliseconds(network, contract.size, None),
        speed=lambda before, after: costs.speedup(before, after, contract),
    )
    best = ranked[0]
    print(plans.format_table(ranked))

    history = []
    channel_steps = widths.interpolate(
        widths.output_channels(module), best.channels, steps=settings.steps, multiple=settings.multiple
    )
    for number, channels in enumerate(channel_steps, 1):
        last = number == len(channel_steps)
        module, arguments = surgery.remove_channels(
            module,
            arguments,
            channels,
            size=contract.size,
            criterion=best.criterion,
            losses=data.losses,
            architecture=parent.card.architecture,
        )
        loop.reestimate_norms(module, iter(data.settling))
        part = 1.0 if settings.steps == 1 else 0.5 if last else 0.5 / (settings.steps - 1)
        module, lines = learning.learn(
            fabric,
            module,
            lesson,
            name=variant,
            goal=goal,
            training={**settings.training(), "epochs": settings.epochs * part},
            start=provenance.identity(**identity, arguments=arguments, criterion=best.criterion, step=number),
            seed=p.seed,
            workers=p.compute.workers,
            folder=paths.checkpoints(variant) / ("" if last else f"step-{number}"),
        )
        history += lines if settings.steps == 1 else [{"part": f"step {number}", **line} for line in lines]
    loop.settle_norms(fabric, module, lesson.train_set, p.compute.workers)
    val = loop.evaluate(fabric, module, lesson.val_set, contract.size, p.compute.workers)
    card = replace(
        parent.card,
        variant=variant,
        parent=parent.card.variant,
        op="prune",
        arguments=arguments,
        settings={
            **identity["settings"],
            "criterion": best.criterion,
            "shape": best.shape,
            "candidates": [plan.to_dict() for plan in ranked],
        },
        git_commit=provenance.git_commit(),
        versions=provenance.versions(),
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
