"""Draw where every variant looks, the images whose answer compression changed, and suspicious labels."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline import earlier, files, parameters, paths, provenance
from pipeline.data import batches, sampling, store, views
from pipeline.data.batches import ViewSet
from pipeline.data.store import ImageSet
from pipeline.distillation import labels, teacher_store
from pipeline.distillation.settings import TeacherMember
from pipeline.evaluation import confidence
from pipeline.inspection import explanation, suspects
from pipeline.models import storage
from pipeline.parameters import Parameters
from pipeline.running.process import stage
from pipeline.tasks import SINGLE_LABEL
from teachers.contract import InputContract


def main() -> None:
    """Write `artifacts/explanations/`: pictures, two files in JSON that describe them, and the list of
    suspicious labels."""
    p = parameters.load()
    paths.EXPLANATIONS.mkdir(parents=True, exist_ok=True)
    named = set()
    described = {
        paths.EXPLANATIONS / "explanations.json": _explain(p),
        paths.SUSPECTS.with_suffix(".json"): _list_suspects(p),
    }
    for file, content in described.items():
        files.write(file, json.dumps(content, indent=2) + "\n")
        named |= explanation.pictures(content)
    for picture in paths.EXPLANATIONS.glob("*.png"):
        if picture.name not in named:
            picture.unlink()
    print(f"{len(named)} pictures in {paths.EXPLANATIONS}")


def _explain(p: Parameters) -> dict[str, Any]:
    """Draw all variants. Of an earlier folder, the entries that are still valid stay."""
    test = store.read(paths.DATA, "test")
    if test.task is not SINGLE_LABEL:
        return {"note": "not drawn for attributes"}
    inputs = _inputs(p)
    before = earlier.read(paths.EXPLANATIONS / "explanations.json")
    whole = all((paths.EXPLANATIONS / name).is_file() for name in explanation.pictures(before))
    kept = earlier.kept(before, inputs) if whole else set()
    names = [name for name in p.variants if name not in kept]
    print(earlier.summary(names, sorted(kept)))
    sources = [*([_draw(p, test, names)] if names else []), *([before] if kept else [])]
    return {
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


def _inputs(p: Parameters) -> dict[str, str]:
    """Digest of everything that a variant's entry depends on, the first variant's map included."""
    shared = earlier.digest(*paths.circumstances("explain"))
    first = next(iter(p.variants))
    answers = {"teacher": paths.TEACHER_LOGITS} | {name: paths.confidence(name) for name in p.variants}
    return {
        name: provenance.identity(
            shared=shared,
            settings=p.explain.model_dump(mode="json", exclude={"suspects"}),
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
    squares = ViewSet(test, None, contract)
    answers = {"teacher": confidence.from_logits(np.load(paths.TEACHER_LOGITS), test.labels)} | {
        name: stored for name in p.variants if (stored := confidence.load(paths.confidence(name))) is not None
    }
    album = explanation.Album(
        paths.EXPLANATIONS,
        lambda indices: squares[batches.Request(indices, None, contract.size)].images,
        test.labels,
        test.classes,
        test.sources,
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


def _list_suspects(p: Parameters) -> dict[str, Any]:
    """Write the list of suspicious labels, and draw the first ones."""
    train, data = store.read_training_images(paths.DATA), store.read_report(paths.DATA)
    teacher = teacher_store.read_card(paths.TEACHER)
    space = views.space(p.views, p.seed)
    stored = labels.load(
        paths.LABELS, data_sha256=data["data_sha256"], teacher_sha256=teacher["identity"], space=space
    )
    findings = suspects.search(train, stored.answers.at, space, stored.key.views)
    sources = train.sources
    lines = suspects.describe(findings.suspects, sources, train.classes)
    # A table that gave labels is replaced as a whole, so that the list needs all of them.
    complete = "relabelled" in data
    suspects.write(
        paths.SUSPECTS, lines, suspects.describe_others(findings.suspects, train) if complete else ()
    )
    contract = InputContract.from_dict(teacher["input"])
    squares = ViewSet(train, None, contract)
    album = explanation.Album(
        paths.EXPLANATIONS,
        lambda indices: squares[batches.Request(indices, None, contract.size)].images,
        train.labels,
        train.classes,
        sources,
        prefix="train-",
    )
    members = [teacher_store.read_card(paths.TEACHER / member) for member in teacher["members"]]
    shown = zip(findings.suspects.images[: p.explain.suspects].tolist(), lines, strict=False)
    print(f"suspicious labels: {len(lines)} of {findings.judged} training images")
    return {
        "method": suspects.METHOD,
        "suspects": len(lines),
        "labels": findings.judged * (len(train.classes) if train.labels.ndim > 1 else 1),
        "not_judged": findings.not_judged,
        "trained_on_them": any(
            training is not None and training.images == "all"
            for member in members
            for training in TeacherMember.model_validate(member["settings"]).parts().values()
        ),
        "complete": complete,
        "images": [{**line, "file": album.draw(index)} for index, line in shown],
    }


if __name__ == "__main__":
    with stage():
        main()
