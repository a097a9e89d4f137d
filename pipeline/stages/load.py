"""Take the network of the teacher as a variant, as it is."""

import sys

from pipeline import parameters, paths
from pipeline.data import store
from pipeline.data.batches import ViewSet
from pipeline.distillation import sources, teacher_store
from pipeline.models.storage import Card, Model
from pipeline.parameters import Load
from pipeline.running.process import stage
from pipeline.training import compute, results, scoring


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Load)
    fabric = compute.start(p.compute, trials=paths.precision_trials())
    report, teacher = store.read_report(paths.DATA), teacher_store.read_card(paths.TEACHER)
    module, arguments, contract = teacher_store.load_student(paths.TEACHER)
    images = store.read(paths.DATA, "val")
    val = scoring.evaluate(
        fabric, fabric.to_device(module), ViewSet(images, None, contract), contract.size, p.compute.workers
    )
    card = Card(
        variant=variant,
        parent="teacher",
        op="load",
        architecture=sources.ARCHITECTURE,
        arguments=arguments,
        input=contract,
        labels=images.classes,
        teacher=teacher["origin"],
        data_sha256=report["data_sha256"],
        license=report["license"],
        settings=settings.model_dump(mode="json"),
        start=teacher["origin"],
        task=report["task"],
        val=results.describe(val),
    )
    results.save(
        Model(module.cpu(), card),
        [],
        folder=paths.model(variant),
        timings=paths.timings,
        run=paths.checkpoints(variant),
    )
    print(f"{variant}: val {val} at {contract.size} px")


if __name__ == "__main__":
    with stage():
        main(sys.argv[1])
