"""Try all variants on corrupted images, on adversarial ones, and on images that belong to no class."""

import json

import numpy as np
from jaxtyping import Int64

from pipeline import parameters, paths
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.evaluation import confidence
from pipeline.inspection import out_of_distribution, robustness
from pipeline.models import storage
from pipeline.onnx.inference import open_classifier
from pipeline.parameters import ParameterError
from pipeline.process import stage
from pipeline.training import compute

Indices = Int64[np.ndarray, " chosen"]


def main() -> None:
    """Write `artifacts/robustness.json`."""
    p = parameters.load()
    test, seed = store.read(paths.DATA, "test"), p.seed
    if test.labels.ndim > 1:
        paths.ROBUSTNESS.write_text(json.dumps({"note": "not measured for attributes"}) + "\n")
        return
    loaded = {name: storage.load(paths.model(name)) for name in p.variants}
    contract = next(iter(loaded.values())).card.input
    cores = p.compute.threads or compute.usable_cores()
    classifiers = {
        name: open_classifier(paths.onnx(name), threads=cores, spinning=False) for name in p.variants
    }
    given, folder = {}, p.probe.out_of_distribution
    if folder is not None:
        first, random = next(iter(classifiers.values())), np.random.default_rng(seed)
        given[folder.name] = out_of_distribution.folder(
            folder, first, p.probe.out_of_distribution_images, random
        )
        if not len(given[folder.name]):
            raise ParameterError(
                f"params.yaml: probe.out_of_distribution = '{folder}': no images; allowed: a folder of some"
            )
    parents = {name: variant.parent for name, variant in p.variants.items()}
    result = {"seed": seed, "corruptions": None, "adversarial": None}

    def draw(count: int) -> tuple[Indices, out_of_distribution.Images]:
        """Some test images, stratified by class, as they are evaluated."""
        chosen = sampling.choose(test, count, seed)
        shown = ViewSet(test, None, contract)[batches.Request(chosen, None, contract.size)]
        return chosen, shown.images.numpy()

    if p.probe.corrupted:
        chosen, images = draw(p.probe.corrupted)
        seeds = [int(key) for key in test.keys[chosen]]
        result["corruptions"] = robustness.corrupted(classifiers, parents, images, test.labels[chosen], seeds)
        print("corruptions: " + _words(result["corruptions"]["variants"], "mean"))

    if p.probe.attacked:
        chosen, images = draw(p.probe.attacked)
        modules = {name: model for name, model in loaded.items() if model.quantization is None}
        victims = {
            name: [v for v in p.variants if v == name or (parents[v] == name and v not in modules)]
            for name in modules
        }
        result["adversarial"] = robustness.attacked(
            classifiers,
            modules,
            victims,
            images,
            test.labels[chosen],
            radii=p.probe.radii,
            steps=p.probe.steps,
            seed=seed,
        )
        for found in result["adversarial"]["results"]:
            print("{attack} {radius}/255 on {module}, shown to {variant}: {accuracy:.1%}".format(**found))

    random, (_, images) = np.random.default_rng(seed), draw(p.probe.out_of_distribution_images)
    sets = {name: make(images, random) for name, make in out_of_distribution.KINDS.items()} | given
    known = {name: confidence.load(paths.confidence(name)) for name in p.variants}
    result["outside"] = robustness.outside(
        classifiers, sets, {name: kept.confidence for name, kept in known.items() if kept is not None}
    )
    for kind, found in result["outside"]["sets"].items():
        print(f"{kind}, AUROC: {_words(found['variants'], 'auroc')}")
    paths.ROBUSTNESS.write_text(json.dumps(result, indent=2) + "\n")


def _words(variants: dict[str, dict[str, float]], name: str) -> str:
    return ", ".join(f"{variant} {figures[name]:.1%}" for variant, figures in variants.items())


if __name__ == "__main__":
    with stage():
        main()
