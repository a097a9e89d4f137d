"""Draw where every variant looks, and the images whose answer compression changed."""

import json

import numpy as np
import torch

from pipeline import files, parameters, paths
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.evaluation import confidence
from pipeline.inspection import explanation
from pipeline.models import storage
from pipeline.process import stage


def main() -> None:
    """Write `artifacts/explanations/`: pictures, and `explanations.json` that describes them."""
    p = parameters.load()
    test = store.read(paths.DATA, "test")
    paths.EXPLANATIONS.mkdir(parents=True, exist_ok=True)
    file = paths.EXPLANATIONS / "explanations.json"
    if test.labels.ndim > 1:
        files.write(file, json.dumps({"note": "not drawn for attributes"}) + "\n")
        return
    torch.set_num_threads(1)
    models = {name: storage.load(paths.model(name)) for name in p.variants}
    contract = next(iter(models.values())).card.input
    views = ViewSet(test, None, contract)
    answers = {"teacher": confidence.from_logits(np.load(paths.TEACHER_LOGITS), test.labels)} | {
        name: stored for name in p.variants if (stored := confidence.load(paths.confidence(name))) is not None
    }
    album = explanation.Album(
        paths.EXPLANATIONS,
        lambda indices: views[batches.Request(indices, None, contract.size)].images,
        test.labels,
        test.classes,
        list(test.table["source"]),
    )
    parents = {name: variant.parent for name, variant in p.variants.items()}
    indices = sorted(sampling.choose(test, p.explain.images, p.seed).tolist())
    result = {
        "method": explanation.METHOD,
        "size": contract.size,
        "images": explanation.draw_maps(album, models, answers, indices),
        "flips": {
            name: explanation.find_flips(album, answers[name], answers[parent], parent, p.explain.flips)
            for name, parent in parents.items()
        },
        "confused": {name: explanation.find_confusions(album, answers[name]) for name in p.variants},
    }
    files.write(file, json.dumps(result, indent=2) + "\n")
    print(f"{len(list(paths.EXPLANATIONS.glob('*.png')))} pictures in {paths.EXPLANATIONS}")


if __name__ == "__main__":
    with stage():
        main()
