"""Compare every variant with its parent on the same test images, in all and by what the images are like."""

import json

import numpy as np

from pipeline import parameters, paths
from pipeline.data import store
from pipeline.evaluation import comparison, confidence, slices
from pipeline.evaluation.comparison import Answers
from pipeline.process import stage
from teachers.contract import InputContract


def main() -> None:
    """Write `artifacts/comparison.json`."""
    p = parameters.load()
    test = store.read(paths.DATA, "test")
    teacher = Answers(np.load(paths.TEACHER_PREDICTIONS), confidence.load(paths.confidence("teacher")))
    answers = {"teacher": teacher}
    for variant in p.variants:
        scores = json.loads(paths.metrics(variant).read_text())
        answers[variant] = Answers(
            np.asarray(scores["predictions"]), confidence.load(paths.confidence(variant))
        )
    parents = {name: variant.parent for name, variant in p.variants.items()}
    variants = {
        name: {
            "parent": parent,
            **comparison.against_parent(
                answers[name], answers[parent], test.labels, test.classes, p.gate.max_drop
            ),
        }
        for name, parent in parents.items()
    }
    columns = []
    if test.labels.ndim == 1:
        contract = InputContract(p.student.size, crop=p.views.eval_crop)
        columns = slices.built_in(test, contract)
        if p.evaluation.metadata is not None:
            columns += slices.read_metadata(p.evaluation.metadata, list(test.table["source"]))
    predictions = {name: given.predictions for name, given in answers.items()}
    result = {
        "n": len(test),
        "metric": test.task.metric,
        "max_drop": p.gate.max_drop,
        "teacher": {
            "calibration": confidence.measure(teacher.confidence, test.labels) if teacher.confidence else None
        },
        "variants": variants,
        "slices": [slices.measure(column, predictions, parents, test.labels) for column in columns],
    }
    paths.COMPARISON.write_text(json.dumps(result, indent=2) + "\n")
    for name, figures in variants.items():
        print(f"{name}: {figures['verdict']}: {figures['reason']}")


if __name__ == "__main__":
    with stage():
        main()
