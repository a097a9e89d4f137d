"""Load the teacher, adapt it to the data, and score it."""

import json
from dataclasses import replace

import numpy as np
from safetensors.torch import save_file

import teachers
from pipeline import models, parameters, paths, provenance
from pipeline.data import store
from pipeline.distillation import objective
from pipeline.parameters import ParameterError
from pipeline.process import stage
from pipeline.training import checkpoints, compute, loop
from pipeline.training.batches import ViewSet
from pipeline.training.loop import Run, TrainingError
from pipeline.views import ViewSpace
from teachers.teacher import TeacherError, replace_head

OBJECTIVE = {"cross_entropy": 1.0}


def main() -> None:
    """Write `artifacts/teacher/` and the root of the variants' tree, `artifacts/models/teacher/`."""
    p = parameters.load()
    fabric = compute.start(**p.compute.model_dump(exclude={"workers"}))
    report = store.read_report(paths.DATA)
    teacher = teachers.SOURCES[p.teacher.source](p.teacher.name, p.teacher.weights)
    contract = replace(teacher.input, size=p.teacher.size or teacher.input.size, crop=p.views.eval_crop)
    replace_head(teacher, len(report["classes"]))
    space = ViewSpace(p.seed, p.views.crop_scale, p.views.crop_ratio, p.views.flip)
    sets = {
        split: ViewSet(store.read(paths.DATA, split), space, contract) for split in ("train", "val", "test")
    }

    parts = {"head": p.teacher.head, "full": p.teacher.full}
    identity = provenance.identity(
        teacher=p.teacher.model_dump(), data=report["data_sha256"], views=space, seed=p.seed
    )
    runs = {part: Run(f"teach {part}", paths.checkpoints(f"teacher-{part}"), identity) for part in parts}
    history = []
    for part, training in parts.items():
        if training is None:
            continue
        teacher.module.requires_grad_(part == "full")
        teacher.module.get_submodule(teacher.head).requires_grad_(True)
        module, lines = loop.train(
            fabric,
            teacher.module,
            objective(contract, OBJECTIVE),
            OBJECTIVE,
            loop.recipe(size=contract.size, seed=p.seed, **training.training()),
            train_set=sets["train"],
            val_set=sets["val"],
            views=None,
            workers=p.compute.workers,
            run=runs[part],
        )
        teacher = replace(teacher, module=module)
        history += [{"part": part, **line} for line in lines]
    if history:
        loop.settle_norms(fabric, teacher.module, sets["train"], p.compute.workers)

    val, test = (
        loop.evaluate(fabric, teacher.module, sets[split], contract.size, p.compute.workers)
        for split in ("val", "test")
    )
    card = {
        "source": p.teacher.source,
        "name": p.teacher.name,
        "origin": teacher.origin,
        "head": teacher.head,
        "input": contract.to_dict(),
        "labels": report["classes"],
        "data_sha256": report["data_sha256"],
        "settings": p.teacher.model_dump(mode="json"),
        "val": {"n": len(val.labels), "top1": val.top1},
        "test": {"n": len(test.labels), "top1": test.top1},
        "versions": provenance.versions(),
    }
    paths.TEACHER.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in teacher.module.state_dict().items()}
    save_file(tensors, paths.TEACHER / models.WEIGHTS)
    np.save(paths.TEACHER_PREDICTIONS, test.predictions)
    models.write_history(paths.TEACHER, history)
    for folder in (paths.TEACHER, paths.model("teacher")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / models.CARD).write_text(json.dumps(card, indent=2) + "\n")
    for run in runs.values():
        checkpoints.clear(run.folder)
    print(f"teacher: val {val.top1:.2%} of {len(val.labels)}, test {test.top1:.2%} of {len(test.labels)}")


if __name__ == "__main__":
    with stage(ParameterError, TeacherError, TrainingError):
        main()
