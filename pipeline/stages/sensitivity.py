"""Measure each layer's sensitivity: the score with fewer channels or eight bits in one layer at a time."""

import json
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline import files, parameters, paths, progress
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.inspection import layer_sensitivity
from pipeline.inspection.layer_sensitivity import Scorer
from pipeline.models import storage
from pipeline.process import stage
from pipeline.training import compute

BATCH = 32
"""Number of images per forward pass; at small sizes their activations fit a processor's cache."""


def main() -> None:
    """Write `artifacts/sensitivity.json`: every student of the teacher that has pruned or quantised
    variants."""
    p = parameters.load()
    settings = p.sensitivity
    parents = {op: [v.parent for v in p.variants.values() if v.op == op] for op in ("prune", "quantize")}
    students = [name for name, variant in p.variants.items() if variant.op == "distill"]
    changes = {
        name: {"channels": name in parents["prune"], "int8": name in parents["quantize"]} for name in students
    }
    models = {name: storage.load(paths.model(name)) for name, parts in changes.items() if any(parts.values())}
    if not settings.images or not models:
        files.write(paths.SENSITIVITY, json.dumps({"note": "not measured"}) + "\n")
        return
    torch.set_num_threads(p.compute.threads or compute.usable_cores())
    student_input = next(iter(models.values())).card.input
    contract = replace(student_input, size=min(settings.size or student_input.size, student_input.size))
    train, val = (store.read(paths.DATA, split) for split in ("train", "val"))

    def normalised(images: store.ImageSet, count: int) -> list[Float[Tensor, "batch 3 height width"]]:
        indices = sampling.choose(images, count, p.seed)
        views = ViewSet(images, None, contract)[batches.Request(indices, None, contract.size)]
        return [contract.normalise(part) for part in views.images.split(BATCH)]

    # Statistics and ranges come from training images and scores from val, since no choice may rest on test.
    settling = normalised(train, settings.settling)
    labels = val.labels[sampling.choose(val, settings.images, p.seed)]
    networks = sum(
        layer_sensitivity.count_networks(model, settings.ratios, **changes[name])
        for name, model in models.items()
    )
    with progress.bar("sensitivity", networks, "networks") as bar:
        scorer = Scorer(normalised(val, settings.images), labels, val.task, bar.update)
        variants = {
            name: layer_sensitivity.measure(model, scorer, settling, settings.ratios, **changes[name])
            for name, model in models.items()
        }
    result = {
        "n": len(labels),
        "metric": val.task.metric,
        "size": contract.size,
        "settling": sum(map(len, settling)),
        "criterion": layer_sensitivity.CRITERION,
        "variants": variants,
    }
    files.write(paths.SENSITIVITY, json.dumps(result, indent=2) + "\n")
    for name, scores in variants.items():
        print(f"{name}: {scores['score']:.1%} on {len(labels)} validation images at {contract.size} px")


if __name__ == "__main__":
    with stage():
        main()
