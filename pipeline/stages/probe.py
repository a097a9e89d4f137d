"""Try all variants on corrupted images, on adversarial ones, and on images that belong to no class."""

import json

import numpy as np

from pipeline import confidence, models, outsiders, parameters, paths, robustness
from pipeline.data import calibration, store
from pipeline.inference import ImageFileError, ModelFileError, open_classifier
from pipeline.parameters import ParameterError
from pipeline.process import stage
from pipeline.training import batches, compute
from pipeline.training.batches import ViewSet


def main() -> None:
    """Write `artifacts/robustness.json`."""
    p = parameters.load()
    test, seed = store.read(paths.DATA, "test"), p.seed
    if test.labels.ndim > 1:
        paths.ROBUSTNESS.write_text(json.dumps({"note": "not measured for attributes"}) + "\n")
        return
    loaded = {name: models.load(paths.model(name)) for name in p.variants}
    contract = next(iter(loaded.values())).card.input
    cores = p.compute.threads or compute.usable_cores()
    classifiers = {
        name: open_classifier(paths.onnx(name), threads=cores, spinning=False) for name in p.variants
    }
    parents = {name: variant.parent for name, variant in p.variants.items()}
    drawn = calibration.choose(test, max(p.probe.corrupted, p.probe.attacked, p.probe.outsiders), seed)
    shown = ViewSet(test, None, contract)[batches.Request(drawn, None, contract.size)]
    images, labels = shown.images.numpy(), test.labels[drawn]
    result = {"seed": seed, "corruptions": None, "adversarial": None}

    if few := min(p.probe.corrupted, len(drawn)):
        seeds = [int(key) for key in test.keys[drawn[:few]]]
        result["corruptions"] = robustness.corrupted(classifiers, parents, images[:few], labels[:few], seeds)
        print("corruptions: " + _words(result["corruptions"]["variants"], "mean"))

    if few := min(p.probe.attacked, len(drawn)):
        modules = {name: model for name, model in loaded.items() if model.quantization is None}
        victims = {
            name: [v for v in p.variants if v == name or (parents[v] == name and v not in modules)]
            for name in modules
        }
        result["adversarial"] = robustness.attacked(
            classifiers,
            modules,
            victims,
            images[:few],
            labels[:few],
            radii=p.probe.radii,
            steps=p.probe.steps,
            seed=seed,
        )
        for found in result["adversarial"]["results"]:
            print("{attack} {radius}/255 on {module}, shown to {variant}: {accuracy:.1%}".format(**found))

    random, few = np.random.default_rng(seed), images[: p.probe.outsiders]
    sets = {name: make(few, random) for name, make in outsiders.KINDS.items()}
    if p.probe.outside is not None:
        first = next(iter(classifiers.values()))
        sets[p.probe.outside.name] = outsiders.folder(p.probe.outside, first, p.probe.outsiders, random)
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
    with stage(ParameterError, ModelFileError, ImageFileError):
        main()
