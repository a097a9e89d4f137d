"""Load the teacher, adapt it to the data, and score it."""

from typing import Any, NamedTuple

from lightning_fabric import Fabric
from torch import Tensor

from pipeline import files, parameters, paths, provenance
from pipeline.data import store, views
from pipeline.data.batches import ViewSet
from pipeline.data.store import ImageSet
from pipeline.distillation import (
    adaptation,
    as_it_is,
    doubts,
    initial_networks,
    sources,
    teacher_store,
    trial,
)
from pipeline.distillation.settings import TeacherMember
from pipeline.models import histories, storage
from pipeline.parameters import Distill, Parameters
from pipeline.running.process import run_alongside, stage
from pipeline.tasks import TASKS
from pipeline.training import checkpoints, compute, ranks, scoring
from pipeline.training.checkpoints import History
from pipeline.training.loop import Run
from teachers.runtime import in_runtime

SPLITS = ("train", "val", "test")


def main() -> None:
    """Write `artifacts/teacher/`, and `artifacts/models/teacher/`, the root of the tree of variants."""
    p = parameters.load()
    fabric = compute.start(p.compute, trials=paths.precision_trials(), ranks=True)
    task = TASKS[store.read_report(paths.DATA)["task"]]
    images = {split: store.read(paths.DATA, split) for split in SPLITS}
    _check_students(p, images["train"].classes)
    settings = p.teacher.members
    names = [str(index) for index in range(len(settings))] if p.teacher.ensemble else ["."]
    keys = ["teacher", *(f"teacher.ensemble.{index}" for index in range(len(p.teacher.ensemble)))]
    members = [_adapt(p, fabric, images, *member) for member in zip(settings, names, keys, strict=True)]
    logits = {split: task.mean([member.logits[split] for member in members]) for split in ("val", "test")}
    val, test = (scoring.score(values, images[split]) for split, values in logits.items())
    if not fabric.is_global_zero:
        return
    card = {
        **members[0].card,
        "origin": " and ".join(member.card["origin"] for member in members),
        "members": names,
        "identity": teacher_store.identity([member.card for member in members]),
        "metric": task.metric,
        "val": val.to_dict(),
        "test": test.to_dict(),
    }
    for folder in (paths.TEACHER, paths.model("teacher")):
        teacher_store.write_card(folder, card)
    files.write_array(paths.TEACHER_LOGITS, logits["test"].float().numpy())
    history = [line for member in members for line in member.history]
    histories.write(paths.TEACHER, history, paths.timings)
    for run in (run for member in members for run in member.runs.values()):
        checkpoints.clear(run.folder)
    print(f"teacher: val {val}, test {test}")


def _check_students(p: Parameters, classes: tuple[str, ...]) -> None:
    """Read the initial weights of students now: `distill` would refuse them after the work on the teacher.

    What this stage writes does not depend on them, so that it need not run again when they change.
    """
    if not p.students:
        return
    student = initial_networks.student(p.student, p.views.eval_crop)
    student.build(classes)
    for name in p.students:
        share = p.settings(name, Distill).start_share
        student.check_share(classes, share, p.place(name, "start_share"))


class Member(NamedTuple):
    """One member of the ensemble, or the only teacher, after its adaptation."""

    card: dict[str, Any]
    history: History
    logits: dict[str, Tensor]
    """Logits of the splits ``val`` and ``test``."""
    runs: dict[str, Run]


def _adapt(
    p: Parameters, fabric: Fabric, images: dict[str, ImageSet], settings: TeacherMember, name: str, key: str
) -> Member:
    """Load a teacher, try it, adapt it, write it below `artifacts/teacher/`, and compute its logits of val
    and test."""
    fabric.seed_everything(p.seed, verbose=False)
    with fabric.rank_zero_first(local=True):  # which may download it
        teacher = sources.load(settings, p.student.overrides())
    contract = adaptation.contract(
        teacher, size=settings.size, crop=p.views.eval_crop, corrections=settings.input
    )
    classes, task, parts = images["train"].classes, images["train"].task, settings.parts()
    if fabric.is_global_zero:
        trial.try_out(teacher, contract, parts, task=task, classes=len(classes), key=key)
    space = views.space(p.views, p.seed).plain()
    sets = {split: ViewSet(part, space, contract) for split, part in images.items()}
    if not any(parts.values()):
        teacher = as_it_is.settle(
            fabric,
            teacher,
            sets["val"],
            names=settings.labels,
            outputs=settings.outputs,
            workers=p.compute.workers,
        )
    facts = {
        "settings": settings.model_dump(mode="json"),
        "data_sha256": store.read_report(paths.DATA)["data_sha256"],
    }
    weights = storage.fingerprint(teacher.module) if parts else None
    identity = provenance.identity(**facts, views=space.model_dump(mode="json"), seed=p.seed, weights=weights)
    runs = {
        part: Run(f"teach {part}", paths.checkpoints(f"teacher-{name.strip('.')}{part}"), identity)
        for part in parts
    }
    teacher, history = adaptation.adapt(
        fabric, teacher, sets, parts, seed=p.seed, workers=p.compute.workers, runs=runs
    )
    card = {
        **facts,
        "source": settings.source,
        "name": settings.name,
        "adapted": bool(history),
        "input": contract.to_dict(),
        "labels": classes,
    }
    folder = paths.TEACHER / name
    card = ranks.on_first(fabric, lambda: teacher_store.save(folder, teacher, classes, card))
    module, _ = teacher_store.load(folder)
    inference = in_runtime(fabric.to_device(module), contract.size)
    print(f"teacher: computed by {inference}")
    logits = {
        split: scoring.predict(fabric, inference.module, sets[split], contract.size, p.compute.workers)
        for split in ("val", "test")
    }
    for split, answers in logits.items():
        doubts.check_finite(answers, images[split], split, f"{key}: {teacher.origin}")
    doubts.check(
        logits["val"], images["val"], f"{key}: {teacher.origin}", accept=settings.doubtful == "accept"
    )
    return Member(card, history, logits, runs)


if __name__ == "__main__":
    with (
        stage(),
        run_alongside("pipeline.stages.follow", "teacher"),
    ):
        main()
