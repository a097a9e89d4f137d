"""Compute the outputs of the teacher for fixed views of every training image, once."""

import numpy as np
import torch

from pipeline import parameters, paths, provenance
from pipeline.data import store, views
from pipeline.data.batches import ViewSet
from pipeline.distillation import doubts, labels, teacher_store
from pipeline.distillation.labels import Key, Store
from pipeline.process import stage
from pipeline.training import checkpoints, compute, scoring
from teachers.runtime import in_runtime


def main() -> None:
    """Write `artifacts/labels/`."""
    p = parameters.load()
    fabric = compute.start(p.compute, trials=paths.precision_trials(), ranks=True)
    card = teacher_store.read_card(paths.TEACHER)
    images = store.read_training_images(paths.DATA)
    space = views.space(p.views, p.seed)
    logits, partials, engines = [], [], []
    folders = [paths.TEACHER / member for member in card["members"]]
    members = [teacher_store.read_card(folder) for folder in folders]
    for folder, member in zip(folders, members, strict=True):
        module, contract = teacher_store.load(folder)
        identity = provenance.identity(
            teacher=teacher_store.identity([member]),
            data=card["data_sha256"],
            views=space.model_dump(mode="json"),
        )
        partials.append(paths.checkpoints(f"labels-{identity[:16]}"))
        inference = in_runtime(fabric.to_device(module), contract.size)
        engines.append(str(inference))
        logits.append(
            labels.compute(
                fabric,
                inference.module,
                ViewSet(images, space, contract),
                p.views.per_image,
                partial=partials[-1],
                workers=p.compute.workers,
            )
        )
    means = (
        images.task.mean([torch.from_numpy(np.array(member)) for member in view]).to(torch.float16).numpy()
        for view in zip(*logits, strict=True)
    )
    top = labels.stored_classes(images.task, p.views.top)
    answers = labels.compact(means, top)
    first = None
    if images.has_label.any() and not space.mixes:
        first = torch.from_numpy(answers.at(np.arange(len(images)), 0)).float()
        accept = any(member["settings"]["doubtful"] == "accept" for member in members)
        doubts.check_views(first, images, card["origin"], card["val"], accept=accept)
    key = Key(card["data_sha256"], card["identity"], space, p.views.per_image, top)
    engine = " and ".join(dict.fromkeys(engines))
    labels.save(paths.LABELS, Store(key, card["origin"], engine, answers))
    for partial in partials:
        checkpoints.clear(partial)
    print(f"{len(images)} images, {p.views.per_image} views each; computed by {engine}")
    if first is not None and images.fully_labelled:
        print(f"the teacher on the first views: {scoring.score(first, images)}")


if __name__ == "__main__":
    with stage():
        main()
