"""Remove channels of the parent, then fine-tune on the outputs of the teacher, or fit to the parent alone.

Several processes share the fine-tuning; the first one chooses and removes the channels.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline import cache, parameters, paths, provenance
from pipeline.data import views
from pipeline.distillation import learning, training_data
from pipeline.measurement import layer_costs
from pipeline.models import storage
from pipeline.models.storage import Model
from pipeline.parameters import Prune
from pipeline.pruning import plans, reconstruction, surgery, widths
from pipeline.pruning.plans import PlanChoice, TrialData
from pipeline.pruning.settings import PruningSettings
from pipeline.running import siblings
from pipeline.running.process import run_alongside, stage
from pipeline.training import compute, norms, precision, ranks, results, scoring


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Prune)
    if not settings.epochs and not siblings.is_first():
        return
    fabric = compute.start(p.compute, trials=paths.precision_trials(), ranks=settings.epochs > 0)
    parent = storage.load(paths.model(p.variants[variant].parent))
    results.check_parent(parent.card)
    contract = parent.card.input
    space = views.space(p.views, p.seed)
    data = training_data.load(paths.DATA, paths.TEACHER, paths.LABELS, space, contract)
    data = training_data.with_target(fabric, data, parent, settings.target)
    identity = {"parent": storage.fingerprint(parent.module), "settings": settings.model_dump(mode="json")}

    module, arguments = fabric.to_device(parent.module), parent.card.arguments

    @functools.cache
    def trial_data() -> TrialData:
        return plans.gather_trial_data(
            fabric,
            data,
            settings.objective,
            taylor="taylor" in settings.criteria(),
            seed=p.seed,
            workers=p.compute.workers,
        )

    costs = layer_costs.open_costs(paths.kernels())
    question = provenance.identity(
        rules=plans.RULES,
        parent=identity["parent"],
        settings=settings.model_dump(mode="json", include={*PruningSettings.model_fields, "objective"}),
        data=data.key,
        views=data.views,
        contract=contract.to_dict(),
        seed=p.seed,
        machine=layer_costs.runtime(),
    )

    def choose() -> PlanChoice:
        # The parent's steps tell in which arithmetic networks of its kind are fast.
        precision.choose(fabric, module, settings.batch_size, [contract.size])
        return plans.choose(
            module,
            arguments,
            trial_data(),
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

    # A run that is repeated takes the recorded choice: measured again, near ties would end another way.
    file = paths.choice("pruning", question)
    choice = ranks.on_first(fabric, lambda: cache.recall(file, plans.PLAN_CHOICE, choose))
    best = choice.best
    print(plans.format_table(choice.plans))
    print(f"criterion {best.criterion}, shape {best.shape}: {choice.reason}")

    history = []
    channel_steps = widths.interpolate(
        widths.output_channels(module), best.channels, steps=settings.steps, multiple=settings.multiple
    )

    def cut(channels: Sequence[int]) -> tuple[nn.Module, dict[str, Any]]:
        narrower, changed = surgery.remove_channels(
            module,
            arguments,
            channels,
            size=contract.size,
            criterion=best.criterion,
            losses=trial_data().losses,
            architecture=parent.card.architecture,
        )
        fitting = norms.plain_images(
            fabric, data.train_set, reconstruction.IMAGES, plans.BATCH, p.compute.workers
        )
        reconstruction.fit(module, narrower, list(fitting))
        if settings.epochs:
            reconstruction.reparametrise(narrower, trial_data().settling)
        return narrower.cpu(), changed

    for number, channels in enumerate(channel_steps, 1):
        last = number == len(channel_steps)
        module, arguments = ranks.on_first(fabric, functools.partial(cut, channels))
        module = fabric.to_device(module)
        if not settings.epochs:
            continue
        part = 1.0 if settings.steps == 1 else 0.5 if last else 0.5 / (settings.steps - 1)
        module, lines = learning.learn(
            fabric,
            module,
            data,
            settings.model_copy(update={"epochs": settings.epochs * part}),
            name=variant,
            start=provenance.identity(**identity, arguments=arguments, criterion=best.criterion, step=number),
            seed=p.seed,
            workers=p.compute.workers,
            folder=paths.checkpoints(variant) / ("" if last else f"step-{number}"),
        )
        history += lines if settings.steps == 1 else [{"part": f"step {number}", **line} for line in lines]
    if settings.epochs:
        norms.settle(fabric, module, data.train_set, p.compute.workers)
    val = scoring.evaluate(fabric, module, data.val_set, contract.size, p.compute.workers)
    if not fabric.is_global_zero:
        return
    card = replace(
        parent.card,
        variant=variant,
        parent=parent.card.variant,
        op="prune",
        arguments=arguments,
        settings={
            **settings.model_dump(mode="json"),
            **choice.to_dict(),
        },
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
