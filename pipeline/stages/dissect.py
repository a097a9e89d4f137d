"""Measure what each layer can bear: fewer channels, and eight bits, one layer at a time."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from pipeline import models, parameters, paths, pruning, ptq, quantization, widths
from pipeline.data import calibration, store
from pipeline.models import Model, Quantization
from pipeline.parameters import ParameterError
from pipeline.process import stage
from pipeline.training import batches, compute, loop
from pipeline.training.batches import ViewSet

CRITERION = "l1"
"""Which channels go first; what a layer can bear depends on the layer more than on that."""
WEIGHT_LIMIT = 63
"""As in files that are safe on every CPU."""
BATCH = 32
"""Images of one pass; their activations fit a processor's cache at small sizes."""


def main() -> None:
    """Write `artifacts/sensitivity.json`: of the students of the teacher that others are made from."""
    p = parameters.load()
    asked = p.sensitivity
    parents = {op: [v.parent for v in p.variants.values() if v.op == op] for op in ("prune", "quantize")}
    roots = [name for name, variant in p.variants.items() if variant.op == "distill"]
    names = [name for name in roots if any(name in of for of in parents.values())]
    if not asked.images or not names:
        paths.SENSITIVITY.write_text(json.dumps({"note": "not measured"}) + "\n")
        return
    torch.set_num_threads(p.compute.threads or compute.usable_cores())
    loaded = {name: models.load(paths.model(name)) for name in names}
    own = loaded[names[0]].card.input
    contract = replace(own, size=asked.size or own.size)
    train, val = (store.read(paths.DATA, split) for split in ("train", "val"))

    def normalised(images: store.ImageSet, count: int) -> list[Float[Tensor, "batch 3 height width"]]:
        chosen = calibration.choose(images, count, p.seed)
        shown = ViewSet(images, None, contract)[batches.Request(chosen, None, contract.size)]
        return [contract.normalise(part) for part in shown.images.split(BATCH)]

    # Statistics and ranges are of training images, scores of val: no choice may rest on test.
    settling, scored = normalised(train, asked.settling), normalised(val, asked.images)
    labels = val.labels[calibration.choose(val, asked.images, p.seed)]
    bar = tqdm(
        desc="dissect", total=_scorings(loaded, parents, asked.ratios), unit=" networks", mininterval=5
    )

    @torch.inference_mode()
    def score(module: nn.Module) -> float:
        logits = torch.cat([module(images) for images in scored])
        bar.update()
        return val.task.score(val.task.predictions(logits), labels)

    found = {}
    for name, model in loaded.items():
        # As of every narrowed network: at another size, and on other images, statistics are others.
        settled = copy.deepcopy(model.module)
        loop.reestimate_norms(settled, iter(settling))
        found[name] = {"score": score(settled)}
        if name in parents["prune"]:
            found[name]["channels"] = pruning.sensitivity(
                model.module,
                model.card.arguments,
                ratios=asked.ratios,
                images=settling,
                score=score,
                criterion=CRITERION,
                architecture=model.card.architecture,
            )
        if name in parents["quantize"]:
            found[name]["int8"] = _eight_bits(replace(model, module=settled), settling, score)
    bar.close()
    result = {
        "n": len(labels),
        "metric": val.task.metric,
        "size": contract.size,
        "settling": sum(map(len, settling)),
        "criterion": CRITERION,
        "variants": found,
    }
    paths.SENSITIVITY.write_text(json.dumps(result, indent=2) + "\n")
    for name, scores in found.items():
        print(f"{name}: {scores['score']:.1%} at {contract.size} px")


def _eight_bits(
    model: Model, images: Sequence[Tensor], score: Callable[[nn.Module], float]
) -> dict[str, Any]:
    """The score with all layers in int8, and with each alone or spared."""
    layers = ptq.sensitivity(model, lambda: images, weight_limit=WEIGHT_LIMIT, score=score)
    folded, _ = quantization.fold_batch_norm(model.module, model.card.architecture, model.card.arguments)
    kept_float = tuple(name for name in quantization.layers(folded) if name not in layers)
    whole = Quantization(
        quantization.weight_scales(folded, WEIGHT_LIMIT, kept_float),
        WEIGHT_LIMIT,
        quantization.activation_ranges(folded, lambda: images, kept_float),
        kept_float,
    )
    together = score(quantization.simulate(folded, whole))
    return {"score": together, "layers": {name: asdict(scores) for name, scores in layers.items()}}


def _scorings(
    loaded: Mapping[str, Model], parents: Mapping[str, Sequence[str]], ratios: Sequence[float]
) -> int:
    """How many networks are scored, but for a stem that cannot be quantised."""
    return sum(
        1
        + (name in parents["prune"]) * len(ratios) * len(widths.free_layers(model.module))
        + (name in parents["quantize"]) * (1 + 2 * len(quantization.layers(model.module)))
        for name, model in loaded.items()
    )


if __name__ == "__main__":
    with stage(ParameterError):
        main()
