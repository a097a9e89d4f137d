"""Score all variants on corrupted, adversarial and out-of-distribution images."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from pipeline import earlier, files, parameters, paths, provenance
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.data.store import ImageSet
from pipeline.evaluation import confidence
from pipeline.inspection import out_of_distribution, robustness
from pipeline.models import storage
from pipeline.onnx.inference import open_classifier
from pipeline.parameters import Parameters
from pipeline.running import affinity
from pipeline.running.process import stage

LISTED = 10
"""Most names of unreadable files in the result."""

Indices = Int64[np.ndarray, " selection"]


def main() -> None:
    """Write `artifacts/robustness.json`; of an earlier file, the entries that are still valid stay."""
    p = parameters.load()
    test = store.read(paths.DATA, "test")
    if test.labels.ndim > 1:
        files.write(paths.ROBUSTNESS, json.dumps({"note": "not measured for attributes"}) + "\n")
        return
    inputs = _inputs(p)
    before = earlier.read(paths.ROBUSTNESS)
    kept = earlier.kept(before, inputs)
    names = [name for name in p.variants if name not in kept]
    print(earlier.summary(names, sorted(kept)))
    sources = [
        source for source in (_measure(p, test, names) if names else {}, before if kept else {}) if source
    ]
    result = {"seed": p.seed, "inputs": inputs, **robustness.combine(sources, p.parents())}
    files.write(paths.ROBUSTNESS, json.dumps(result, indent=2) + "\n")


def _inputs(p: Parameters) -> dict[str, str]:
    """Digest of everything that a variant's entry depends on."""
    folder = p.probe.out_of_distribution
    shared = earlier.digest(*paths.circumstances("probe"), *([folder] if folder else []))
    return {
        name: provenance.identity(
            shared=shared,
            settings=p.probe.model_dump(mode="json"),
            seed=p.seed,
            attacked=_attacked(p, name),
            files=earlier.digest(
                paths.onnx(name), paths.confidence(name), *paths.network(_attacked(p, name))
            ),
        )
        for name in p.variants
    }


def _attacked(p: Parameters, name: str) -> str:
    """The variant whose gradients mislead this one: int8 has none, so that its parent's are taken."""
    variant = p.variants[name]
    return variant.parent if variant.op == "quantize" else name


def _measure(p: Parameters, test: ImageSet, names: Sequence[str]) -> dict[str, Any]:
    """Score some variants, and print the scores."""
    seed, result = p.seed, {}
    cores = affinity.threads(p.compute.threads)
    classifiers = {name: open_classifier(paths.onnx(name), parts=cores) for name in names}
    modules = {
        name: storage.load(paths.model(name)) for name in dict.fromkeys(_attacked(p, v) for v in names)
    }
    contract = next(iter(modules.values())).card.input
    folder, outside = p.probe.out_of_distribution, None
    if folder is not None:
        classifier, random = next(iter(classifiers.values())), np.random.default_rng(seed)
        count = p.probe.out_of_distribution_images
        outside = out_of_distribution.read_folder(folder, classifier, count, random)
        if outside.unreadable:
            print(f"{folder}: {len(outside.unreadable)} files are left out, such as {outside.unreadable[0]}")

    def draw(count: int) -> tuple[Indices, out_of_distribution.Images]:
        """Draw test images, stratified by class, as they are evaluated."""
        indices = sampling.choose(test, count, seed)
        views = ViewSet(test, None, contract)[batches.Request(indices, None, contract.size)]
        return indices, views.images.numpy()

    if p.probe.corrupted:
        indices, images = draw(p.probe.corrupted)
        seeds = [int(key) for key in test.keys[indices]]
        result["corruptions"] = robustness.score_corrupted(
            classifiers, images, test.labels[indices], seeds, p.compute.workers
        )
        print("corruptions: " + _format(result["corruptions"]["variants"], "mean"))

    if p.probe.attacked:
        indices, images = draw(p.probe.attacked)
        result["adversarial"] = robustness.score_attacked(
            classifiers,
            modules,
            {module: [v for v in names if _attacked(p, v) == module] for module in modules},
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
    answers = {name: confidence.load(paths.confidence(name)) for name in names}
    test_confidence = {name: stored.confidence for name, stored in answers.items() if stored is not None}
    if folder is not None and outside is not None:
        sets[folder.name] = outside.images
    scores = robustness.score_out_of_distribution(classifiers, sets, test_confidence)
    if outside is not None and outside.unreadable:
        listed = outside.unreadable[:LISTED]
        scores["unreadable"] = {"count": len(outside.unreadable), "first": listed}
    result["out_of_distribution"] = scores
    for kind, of_kind in scores["sets"].items():
        print(f"{kind}, AUROC: {_format(of_kind['variants'], 'auroc')}")
    return result


def _format(variants: dict[str, dict[str, float]], key: str) -> str:
    return ", ".join(f"{name} {scores[key]:.1%}" for name, scores in variants.items())


if __name__ == "__main__":
    with stage():
        main()
