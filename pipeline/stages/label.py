"""Compute the outputs of the teacher for fixed views of every training image, once."""

import numpy as np

from pipeline import parameters, paths, provenance
from pipeline.data import batches, store, views
from pipeline.data.batches import ViewSet
from pipeline.data.rendering import renderers
from pipeline.distillation import doubts, labelling, labels, teacher_store
from pipeline.distillation.labels import Answers, Key
from pipeline.running.process import stage
from pipeline.tasks import Task
from pipeline.training import checkpoints, compute
from teachers.runtime import in_runtime


def main() -> None:
    """Write `artifacts/labels/`."""
    p = parameters.load()
    fabric = compute.start(p.compute, trials=paths.precision_trials(), ranks=True)
    card = teacher_store.read_card(paths.TEACHER)
    images = store.read_training_images(paths.DATA)
    task, top = images.task, labels.stored_classes(images.task, p.views.top)
    key = Key(card["data_sha256"], card["identity"], views.space(p.views, p.seed), p.views.per_image, top)
    folders = [paths.TEACHER / member for member in card["members"]]
    members = [teacher_store.load(folder) for folder in folders]
    inferences = [in_runtime(fabric.to_device(module), contract.size) for module, contract in members]
    engine = " and ".join(dict.fromkeys(map(str, inferences)))
    contract, *others = [contract for _, contract in members]
    # What renders the views can move a pixel by a level: a labelling goes on with what it began with.
    identity = provenance.identity(
        key=key.to_dict(), engine=engine, renderer=renderers.preferred(), device=fabric.device.type
    )
    partial = paths.checkpoints(f"labels-{identity[:16]}")
    view_set = ViewSet(images, key.space, contract, teachers=tuple(others))
    blocks = labelling.compute(
        fabric,
        [inference.module for inference in inferences],
        view_set,
        views=key.views,
        classes=len(images.classes),
        top=top,
        partial=partial,
        workers=p.compute.workers,
    )
    if fabric.global_rank > 0:
        return
    predictions = None
    if images.has_label.any() and not key.space.mixes:
        predictions = np.concatenate([_predict_first_view(block, task) for block in blocks])
        accept = any(teacher_store.read_card(f)["settings"]["doubtful"] == "accept" for f in folders)
        doubts.check_views(predictions, images, card["origin"], card["val"], accept=accept)
    labels.save(
        paths.LABELS,
        key,
        teacher=card["origin"],
        engine=engine,
        renderer=batches.renderer(fabric.device, view_set),
        blocks=blocks,
        images=len(images),
    )
    checkpoints.clear(partial)
    each = "1 view" if key.views == 1 else f"{key.views} views"
    print(f"{len(images)} images, {each} each; computed by {engine}")
    if predictions is not None and images.fully_labelled:
        score = task.score(predictions, images.labels)
        print(f"the teacher on the first views: {task.words} {score:.2%} of {len(images)}")


def _predict_first_view(answers: Answers, task: Task) -> np.ndarray:
    return task.predictions(answers.at(np.arange(len(answers)), 0).astype(np.float32))


if __name__ == "__main__":
    with stage():
        main()
