"""Draw where every variant looks, and the images whose answer compression changed."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline import earlier, files, parameters, paths, provenance
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.data.store import ImageSet
from pipeline.evaluation import confidence
from pipeline.inspection import explanation
from pipeline.models import storage
from pipeline.parameters import Parameters
from pipeline.process import stage


def main() -> None:
    """Write `artifacts/explanations/`: pictures, and `explanations.json` that describes them.

    Of an earlier folder, the entries that are still valid stay.
    """
    p = parameters.load()
    test = store.read(paths.DATA, "test")
    paths.EXPLANATIONS.mkdir(parents=True, exist_ok=True)
    file = paths.EXPLANATIONS / "explanations.json"
    if test.labels.ndim > 1:
        files.write(file, json.dumps({"note": "not drawn for attributes"}) + "\n")
        return
    inputs = _inputs(p)
    before = earlier.read(file)
    whole = all((paths.EXPLANATIONS / name).is_file() for name in explanation.pictures(before))
    kept = earlier.kept(before, inputs) if whole else set()
    names = [name for name in p.variants if name not in kept]
    print(earlier.summary(names, sorted(kept)))
    sources = [*([_draw(p, test, names)] if names else []), *([before] if kept else [])]
    result = {
        "inputs": inputs,
        "method": explanation.METHOD,
        "size": sources[0]["size"],
        "images": [
            {**image[0], "variants": earlier.join(p.variants, *(one["variants"] for one in image))}
            for image in zip(*(source["images"] for source in sources), strict=True)
        ],
        **{
            part: earlier.join(p.variants, *(source[part] for source in sources))
            for part in ("flips", "confused")
        },
    }
    files.write(file, json.dumps(result, indent=2) + "\n")
    named = explanation.pictures(result)
    for picture in paths.EXPLANATIONS.glob("*.png"):
        if picture.name not in named:
            picture.unlink()
    print(f"{len(named)} pictures in {paths.EXPLANATIONS}")


def _inputs(p: Parameters) -> dict[str, str]:
    """Digest of everything that a variant's entry depends on, the first variant's map included."""
    shared = earlier.digest(*paths.circumstances("explain"))
    first = next(iter(p.variants))
    answers = {"teacher": paths.TEACHER_LOGITS} | {name: paths.confidence(name) for name in p.variants}
    return {
        name: provenance.identity(
            shared=shared,
            settings=p.explain.model_dump(mode="json"),
            seed=p.seed,
            of=[
                earlier.digest(*paths.network(name), answers[name]),
                earlier.digest(answers[parent]),
                earlier.digest(*paths.network(first), answers[first]),
            ],
        )
        for name, parent in p.parents().items()
    }


def _draw(p: Parameters, test: ImageSet, names: Sequence[str]) -> dict[str, Any]:
    """Draw some variants, and the first one, with whose maps the others are compared."""
    torch.set_num_threads(1)
    drawn = [name for name in p.variants if name in names or name == next(iter(p.variants))]
    models = {name: storage.load(paths.model(name)) for name in drawn}
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
    parents = p.parents()
    indices = sorted(sampling.choose(test, p.explain.images, p.seed).tolist())
    return {
        "size": contract.size,
        "images": explanation.draw_maps(album, models, answers, indices),
        "flips": {
            name: explanation.find_flips(
                album, answers[name], answers[parents[name]], parents[name], p.explain.flips
            )
            for name in names
        },
        "confused": {name: explanation.find_confusions(album, answers[name]) for name in names},
    }


if __name__ == "__main__":
    with stage():
        main()
