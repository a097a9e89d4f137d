"""Measure what each layer can bear: fewer channels, and eight bits, one layer at a time."""

import json
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from pipeline import parameters, paths
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.inspection import sensitivity
from pipeline.inspection.sensitivity import Exam
from pipeline.models import storage
from pipeline.process import stage
from pipeline.training import compute

BATCH = 32
"""Images of one pass; their activations fit a processor's cache at small sizes."""


def main() -> None:
    """Write `artifacts/sensitivity.json`: of the students of the teacher that others are made from."""
    p = parameters.load()
    asked = p.sensitivity
    parents = {op: [v.parent for v in p.variants.values() if v.op == op] for op in ("prune", "quantize")}
    roots = [name for name, variant in p.variants.items() if variant.op == "distill"]
    wanted = {
        name: {"channels": name in parents["prune"], "int8": name in parents["quantize"]} for name in roots
    }
    loaded = {name: storage.load(paths.model(name)) for name, parts in wanted.items() if any(parts.values())}
    if not asked.images or not loaded:
        paths.SENSITIVITY.write_text(json.dumps({"note": "not measured"}) + "\n")
        return
    torch.set_num_threads(p.compute.threads or compute.usable_cores())
    own = next(iter(loaded.values())).card.input
    contract = replace(own, size=min(asked.size or own.size, own.size))
    train, val = (store.read(paths.DATA, split) for split in ("train", "val"))

    def normalised(images: store.ImageSet, count: int) -> list[Float[Tensor, "batch 3 height width"]]:
        chosen = sampling.choose(images, count, p.seed)
        shown = ViewSet(images, None, contract)[batches.Request(chosen, None, contract.size)]
        return [contract.normalise(part) for part in shown.images.split(BATCH)]

    # Statistics and ranges are of training images, scores of val: no choice may rest on test.
    settling = normalised(train, asked.settling)
    labels = val.labels[sampling.choose(val, asked.images, p.seed)]
    networks = sum(sensitivity.scorings(model, asked.ratios, **wanted[n]) for n, model in loaded.items())
    with tqdm(desc="dissect", total=networks, unit=" networks", mininterval=5) as bar:
        exam = Exam(normalised(val, asked.images), labels, val.task, bar.update)
        found = {
            name: sensitivity.measure(model, exam, settling, asked.ratios, **wanted[name])
            for name, model in loaded.items()
        }
    result = {
        "n": len(labels),
        "metric": val.task.metric,
        "size": contract.size,
        "settling": sum(map(len, settling)),
        "criterion": sensitivity.CRITERION,
        "variants": found,
    }
    paths.SENSITIVITY.write_text(json.dumps(result, indent=2) + "\n")
    for name, of in found.items():
        print(f"{name}: {of['score']:.1%} of {len(labels)} val images at {contract.size} px, layer by layer")


if __name__ == "__main__":
    with stage():
        main()
