"""Compare every variant with its parent on the same test images, overall and per group of images."""

import json

import numpy as np

from pipeline import files, parameters, paths
from pipeline.data import store
from pipeline.evaluation import comparison, confidence, slices
from pipeline.evaluation.comparison import ClassifierOutput
from pipeline.running.process import stage
from teachers.contract import InputContract

FIRST = {"distill": "its teacher", "load": "the given network"}
"""Name of the parent of a variant that is made from the teacher, by its operation."""


def main() -> None:
    """Write `artifacts/comparison.json`, which holds the verdict on every variant."""
    p = parameters.load()
    test = store.read(paths.DATA, "test")
    logits = np.load(paths.TEACHER_LOGITS)
    teacher = ClassifierOutput(
        test.task.predictions(logits),
        confidence.from_logits(logits, test.labels) if test.labels.ndim == 1 else None,
    )
    outputs, students = {"teacher": teacher}, {}
    for name in p.variants:
        scores = json.loads(paths.metrics(name).read_text())
        if name in p.uncompressed:
            students[name] = scores[test.task.metric]
        outputs[name] = ClassifierOutput(
            np.asarray(scores["predictions"]), confidence.load(paths.confidence(name))
        )
    parents = p.parents()
    reference = max(students, key=lambda name: students[name])
    variants = {
        name: {
            "parent": parent,
            "op": p.variants[name].op,
            **comparison.compare_with_parent(
                outputs[name],
                outputs[parent],
                test.labels,
                test.classes,
                parent_name=FIRST[p.variants[name].op] if parent == "teacher" else parent,
                limits=getattr(p.gate, p.variants[name].op),
            ),
            "reference": {
                "variant": reference,
                **comparison.compare_with_reference(outputs[name], outputs[reference], test.labels),
            },
        }
        for name, parent in parents.items()
    }
    columns = []
    if test.labels.ndim == 1:
        contract = InputContract(p.student.size, crop=p.views.eval_crop)
        columns = slices.built_in(test, contract)
        if p.evaluation.metadata is not None:
            columns += slices.read_metadata(p.evaluation.metadata, test.sources)
    predictions = {name: output.predictions for name, output in outputs.items()}
    result = {
        "n": len(test),
        "metric": test.task.metric,
        "teacher": {
            "calibration": confidence.measure(teacher.confidence, test.labels) if teacher.confidence else None
        },
        "variants": variants,
        "slices": [slices.measure(column, predictions, parents, test.labels) for column in columns],
    }
    files.write(paths.COMPARISON, json.dumps(result, indent=2) + "\n")
    for name, figures in variants.items():
        print(f"{name}: {figures['reason']}")


if __name__ == "__main__":
    with stage():
        main()
