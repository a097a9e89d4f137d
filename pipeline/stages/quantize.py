"""Make the parent's int8 twin: after training (ptq), or with training (qat)."""

import sys
from collections.abc import Iterator
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from pipeline import parameters, paths, provenance
from pipeline.data import batches, sampling
from pipeline.data.batches import Request, ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import learning
from pipeline.measurement import kernels
from pipeline.models import storage
from pipeline.models.storage import Model
from pipeline.onnx import graph
from pipeline.parameters import Parameters, Quantize
from pipeline.process import beside, stage
from pipeline.quantization import aware_training, post_training, simulator
from pipeline.training import checkpoints, compute, loop

CALIBRATION_BATCH = 32
JUDGED_IMAGES = 1000
"""Of val, on which the steps of post-training quantisation are chosen."""


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Quantize)
    # In 32 bits: in fewer, a value times its step is no longer on the grid that ships.
    fabric = compute.start(**p.compute.model_dump(exclude={"workers", "precision"}), precision="32-true")
    parent = storage.load(paths.model(p.variants[variant].parent))
    contract = parent.card.input
    space = ViewSpace(p.seed, **p.views.space())
    lesson = learning.open_lesson(paths.DATA, paths.TEACHER, paths.LABELS, space, contract)
    weight_limit = 63 if settings.saturation_safe else 127

    if settings.float_layers == "auto":
        costs = kernels.open_costs(paths.KERNELS)
        found = kernels.fastest_float_layers(costs, parent.module, contract)
        settings = settings.model_copy(update={"float_layers": found})
    graph.check_float_layers(parent.module, contract, settings.float_layers)

    chosen = sampling.choose(lesson.train_set.images, settings.calibration, p.seed)

    def calibration_images() -> Iterator[Float[Tensor, "batch 3 height width"]]:
        for request in batches.sequential(chosen, None, contract.size, CALIBRATION_BATCH):
            yield contract.normalise(lesson.train_set[request].images)

    history, told = [], settings.model_dump(mode="json")
    if settings.method == "ptq":
        bench = post_training.Workbench(
            parent, calibration_images, weight_limit=weight_limit, float_layers=settings.float_layers
        )
        if settings.ptq == "auto":
            judge = _on_val(parent, lesson.val_set, p)
            module, quantized, candidates = post_training.choose(bench, judge)
            print(post_training.table(candidates))
            told |= {
                "ptq": post_training.applied(candidates),
                "candidates": [c.to_dict() for c in candidates],
            }
        else:
            module, quantized = bench.make(settings.ptq)
        arguments = {**parent.card.arguments, "norm": False}
    else:
        prepared = aware_training.prepare(
            parent.module,
            weight_limit=weight_limit,
            float_layers=settings.float_layers,
            batches=calibration_images,
            learn_ranges=settings.learn_ranges,
        )

        def freeze_norms(module: nn.Module, share: float) -> None:
            if share >= settings.freeze_norms:
                aware_training.freeze_norm(module)

        kept, history = learning.learn(
            fabric,
            prepared.module,
            lesson,
            name=variant,
            goal=settings.objective.model_dump(),
            training=settings.training(),
            start=provenance.identity(
                parent=storage.fingerprint(parent.module), settings=settings.model_dump()
            ),
            seed=p.seed,
            workers=p.compute.workers,
            folder=paths.checkpoints(variant),
            on_epoch=freeze_norms,
        )
        prepared.module.load_state_dict(kept.state_dict())  # which are the averaged weights, where asked
        module, arguments, quantized = aware_training.finish(
            prepared, parent.card.architecture, parent.card.arguments
        )
    simulated = simulator.simulate(module, quantized)
    # On the CPU, whose sums are exact.
    host = compute.start(accelerator="cpu", threads=p.compute.threads, precision="32-true")
    val = loop.evaluate(host, simulated, lesson.val_set, contract.size, p.compute.workers)
    card = replace(
        parent.card,
        variant=variant,
        parent=parent.card.variant,
        op="quantize",
        arguments=arguments,
        settings=told,
        git_commit=provenance.git_commit(),
        versions=provenance.versions(),
        val=val.to_dict(),
        calibration_sha256=sampling.fingerprint(lesson.train_set.images, chosen),
    )
    storage.save(paths.model(variant), Model(module, card, quantized))
    storage.write_history(paths.model(variant), history)
    checkpoints.clear(paths.checkpoints(variant))
    print(f"{variant}: val {val} as the runtime computes")


def _on_val(parent: Model, val_set: ViewSet, p: Parameters) -> post_training.Judge:
    """A judge that sees a seeded part of val, by the shipped files' own arithmetic."""
    size = parent.card.input.size
    shown = sampling.choose(val_set.images, JUDGED_IMAGES, p.seed)
    return post_training.judge_files(
        parent,
        val_set[Request(shown, None, size)].images.split(CALIBRATION_BATCH),
        val_set.images.labels[shown],
        val_set.images.task,
        threads=p.compute.threads or compute.usable_cores(),
    )


if __name__ == "__main__":
    with (
        stage(),
        beside("pipeline.stages.follow", sys.argv[1]),
    ):
        main(sys.argv[1])
