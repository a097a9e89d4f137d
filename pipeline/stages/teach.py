"""Load the teacher, adapt it to the data, and score it."""

from typing import Any, NamedTuple

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor

from pipeline import parameters, paths, provenance
from pipeline.data import store
from pipeline.data.batches import ViewSet
from pipeline.data.store import ImageSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import adaptation, teacher_store
from pipeline.evaluation import confidence
from pipeline.models import storage
from pipeline.parameters import Member, Parameters
from pipeline.process import beside, stage
from pipeline.tasks import SINGLE_LABEL, TASKS
from pipeline.training import checkpoints, compute, loop
from pipeline.training.checkpoints import History
from pipeline.training.loop import Run
from teachers.runtime import in_runtime
from teachers.sources import SOURCES

SPLITS = ("train", "val", "test")


def main() -> None:
    """Write `artifacts/teacher/`, the root of the variants' tree, and how sure the teacher is of test."""
    p = parameters.load()
    fabric = compute.start(**p.compute.model_dump(exclude={"workers"}), trials=paths.PRECISION_TRIALS)
    task = TASKS[store.read_report(paths.DATA)["task"]]
    images = {split: store.read(paths.DATA, split) for split in SPLITS}
    members = [p.teacher, *p.teacher.ensemble]
    names = [str(index) for index in range(len(members))] if p.teacher.ensemble else ["."]
    taught = [
        _teach(p, fabric, images, settings, name) for settings, name in zip(members, names, strict=True)
    ]
    answers = {split: task.mean([member.logits[split] for member in taught]) for split in ("val", "test")}
    val, test = (loop.score(logits, images[split]) for split, logits in answers.items())
    card = {
        **taught[0].card,
        "origin": " and ".join(member.card["origin"] for member in taught),
        "members": names,
        "identity": teacher_store.identity([member.card for member in taught]),
        "metric": task.metric,
        "val": val.to_dict(),
        "test": test.to_dict(),
    }
    for folder in (paths.TEACHER, paths.model("teacher")):
        teacher_store.write_card(folder, card)
    np.save(paths.TEACHER_PREDICTIONS, test.predictions)
    kept = confidence.of(answers["test"].numpy(), images["test"].labels) if task is SINGLE_LABEL else None
    confidence.save(paths.confidence("teacher"), kept)
    storage.write_history(paths.TEACHER, [line for member in taught for line in member.history])
    for run in (run for member in taught for run in member.runs.values()):
        checkpoints.clear(run.folder)
    print(f"teacher: val {val}, test {test}")


class Taught(NamedTuple):
    """One member of the ensemble, or the only teacher."""

    card: dict[str, Any]
    history: History
    logits: dict[str, Tensor]
    """Of val and test."""
    runs: dict[str, Run]


def _teach(p: Parameters, fabric: Fabric, images: dict[str, ImageSet], settings: Member, name: str) -> Taught:
    """Load a teacher, adapt it, write it below `artifacts/teacher/`, and ask it about val and test."""
    fabric.seed_everything(p.seed, verbose=False)
    teacher = SOURCES[settings.source](settings.name, settings.weights)
    contract = adaptation.contract(
        teacher, size=settings.size, crop=p.views.eval_crop, given=settings.contract()
    )
    space = ViewSpace(p.seed, **p.views.space()).plain()
    sets = {split: ViewSet(found, space, contract) for split, found in images.items()}
    facts = {
        "settings": settings.model_dump(mode="json", exclude={"ensemble"}),
        "data_sha256": store.read_report(paths.DATA)["data_sha256"],
    }
    identity = provenance.identity(**facts, views=space, seed=p.seed)
    runs = {
        part: Run(f"teach {part}", paths.checkpoints(f"teacher-{name.strip('.')}{part}"), identity)
        for part in settings.parts()
    }
    teacher, history = adaptation.adapt(
        fabric, teacher, sets, settings.parts(), seed=p.seed, workers=p.compute.workers, runs=runs
    )
    classes = images["train"].classes
    card = {
        **facts,
        "source": settings.source,
        "name": settings.name,
        "adapted": bool(history),
        "input": contract.to_dict(),
        "labels": classes,
        "versions": provenance.versions(),
    }
    card = teacher_store.save(paths.TEACHER / name, teacher, classes, card)
    module, _ = teacher_store.load(paths.TEACHER / name)
    module = in_runtime(fabric.to_device(module), contract.size)
    logits = {
        split: loop.predict(fabric, module, sets[split], contract.size, p.compute.workers)
        for split in ("val", "test")
    }
    return Taught(card, history, logits, runs)


if __name__ == "__main__":
    with (
        stage(),
        beside("pipeline.stages.follow", "teacher"),
    ):
        main()
