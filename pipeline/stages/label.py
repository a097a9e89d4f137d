"""Ask the teacher about fixed views of every training image, once."""

import json

import teachers
from pipeline import labels, models, parameters, paths, provenance
from pipeline.data import store
from pipeline.labels import Key, Store
from pipeline.parameters import ParameterError
from pipeline.process import stage
from pipeline.training import checkpoints, compute
from pipeline.training.batches import ViewSet
from pipeline.views import ViewSpace
from teachers import InputContract, state_dicts
from teachers.teacher import TeacherError, replace_head


def main() -> None:
    """Write `artifacts/labels/`."""
    p = parameters.load()
    fabric = compute.start(**p.compute.model_dump(exclude={"workers"}))
    card = json.loads((paths.TEACHER / models.CARD).read_text())
    teacher = teachers.SOURCES[card["source"]](card["name"], None)
    replace_head(teacher, len(card["labels"]))
    weights = paths.TEACHER / models.WEIGHTS
    state_dicts.fill(teacher.module, state_dicts.read(weights), str(weights))
    space = ViewSpace(p.seed, p.views.crop_scale, p.views.crop_ratio, p.views.flip)
    view_set = ViewSet(store.read(paths.DATA, "train"), space, InputContract.from_dict(card["input"]))
    key = Key(card["data_sha256"], provenance.sha256(weights), space, p.views.per_image)
    partial = paths.checkpoints(f"labels-{key.sha256()[:16]}")
    answers = labels.answer(
        fabric, teacher.module, view_set, key.views, partial=partial, workers=p.compute.workers
    )
    labels.save(paths.LABELS, Store(key, card["origin"], answers))
    checkpoints.clear(partial)
    right = (answers.argmax(2) == view_set.images.labels[:, None]).mean()
    print(
        f"{answers.shape[0]} images, {answers.shape[1]} views each; the teacher names {right:.2%} as labelled"
    )


if __name__ == "__main__":
    with stage(ParameterError, TeacherError):
        main()
