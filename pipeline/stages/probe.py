"""Score all variants on corrupted, adversarial and out-of-distribution images."""

import json

import numpy as np
from jaxtyping import Int64

from pipeline import files, parameters, paths
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.evaluation import confidence
from pipeline.inspection import out_of_distribution, robustness
from pipeline.models import storage
from pipeline.onnx.inference import open_classifier
from pipeline.process import stage
from pipeline.training import compute

LISTED = 10
"""Most names of unreadable files in the result."""

Indices = Int64[np.ndarray, " selection"]


def main() -> None:
    """Write `artifacts/robustness.json`."""
    p = parameters.load()
    test, seed = store.read(paths.DATA, "test"), p.seed
    if test.labels.ndim > 1:
        files.write(paths.ROBUSTNESS, json.dumps({"note": "not measured for attributes"}) + "\n")
        return
    models = {name: storage.load(paths.model(name)) for name in p.variants}
    contract = next(iter(models.values())).card.input
    cores = p.compute.threads or compute.usable_cores()
    classifiers = {
        name: open_classifier(paths.onnx(name), threads=cores, spinning=False) for name in p.variants
    }
    folder, outside = p.probe.out_of_distribution, None
    if folder is not None:
        classifier, random = next(iter(classifiers.values())), np.random.default_rng(seed)
        count = p.probe.out_of_distribution_images
        outside = out_of_distribution.read_folder(folder, classifier, count, random)
        if outside.unreadable:
            print(f"{folder}: {len(outside.unreadable)} files are left out, such as {outside.unreadable[0]}")
    parents = {name: variant.parent for name, variant in p.variants.items()}
    result = {"seed": seed, "corruptions": None, "adversarial": None}

    def draw(count: int) -> tuple[Indices, out_of_distribution.Images]:
        """Draw test images, stratified by class, as they are evaluated."""
        indices = sampling.choose(test, count, seed)
        views = ViewSet(test, None, contract)[batches.Request(indices, None, contract.size)]
        return indices, views.images.numpy()

    if p.probe.corrupted:
        indices, images = draw(p.probe.corrupted)
        seeds = [int(key) for key in test.keys[indices]]
        labels = test.labels[indices]
        result["corruptions"] = robustness.score_corrupted(classifiers, parents, images, labels, seeds)
        print("corruptions: " + _format(result["corruptions"]["variants"], "mean"))

    if p.probe.attacked:
        indices, images = draw(p.probe.attacked)
        modules = {name: model for name, model in models.items() if model.quantization is None}
        victims = {
            name: [v for v in p.variants if v == name or (parents[v] == name and v not in modules)]
            for name in modules
        }
        result["adversarial"] = robustness.score_attacked(
            classifiers,
            modules,
            victims,
            images,
            test.labels[indices],
            radii=p.probe.radii,
            steps=p.probe.steps,
            seed=seed,
        )
        for line in result["adversarial"]["results"]:
            print("{attack} {radius}/255 on {module}, answered by {variant}: {accuracy:.1%}".format(**line))

    random, (_, images) = np.random.default_rng(seed), draw(p.probe.out_of_distribution_images)
    sets = {name: make(images, random) for name, make in out_of_distribution.KINDS.items()}
    answers = {name: confidence.load(paths.confidence(name)) for name in p.variants}
    test_confidence = {name: stored.confidence for name, stored in answers.items() if stored is not None}
    if folder is not None and outside is not None:
        sets[folder.name] = outside.images
    scores = robustness.score_out_of_distribution(classifiers, sets, test_confidence)
    if outside is not None and outside.unreadable:
        listed = outside.unreadable[:LISTED]
        scores["unreadable"] = {"count": len(outside.unreadable), "first": listed}
    result["out_of_distribution"] = scores
    for kind, scores in result["out_of_distribution"]["sets"].items():
        print(f"{kind}, AUROC: {_format(scores['variants'], 'auroc')}")
    files.write(paths.ROBUSTNESS, json.dumps(result, indent=2) + "\n")


def _format(variants: dict[str, dict[str, float]], key: str) -> str:
    return ", ".join(f"{name} {scores[key]:.1%}" for name, scores in variants.items())


if __name__ == "__main__":
    with stage():
        main()
