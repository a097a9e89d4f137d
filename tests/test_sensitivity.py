import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import yaml
from dvc.utils.hydra import compose_and_dump

import students
from pipeline import paths
from pipeline.inspection import layer_sensitivity
from pipeline.models import storage
from pipeline.models.storage import Card, Model
from pipeline.running import dvc_parent
from pipeline.stages import prepare, sensitivity
from teachers.contract import InputContract

CONFIGS = Path(__file__).parents[1] / "configs"
ARGUMENTS = {"classes": 3, "channels": tuple(range(8, 22))}


@pytest.fixture
def root(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared images, and a student with random weights."""
    monkeypatch.chdir(tmp_path)
    changes = ["data=folder", f"data.path={photographs}", "compute.workers=0", "student.size=64"]
    changes += ["sensitivity.images=6", "sensitivity.size=32", "sensitivity.settling=8"]
    compose_and_dump("params.yaml", str(CONFIGS), None, "config", "", [*changes, "sensitivity.ratios=[0.5]"])
    prepare.main()
    torch.manual_seed(0)
    card = Card(
        variant="fp32",
        parent="teacher",
        op="distill",
        architecture="mobilenet_v1",
        arguments=ARGUMENTS,
        input=InputContract(64),
        labels=("blue", "green", "red"),
        teacher="none",
        data_sha256="0",
        license="MIT",
        settings={},
    )
    storage.save(paths.model("fp32"), Model(students.build("mobilenet_v1", ARGUMENTS).eval(), card))
    return tmp_path


def measured(**declared: bool) -> dict[str, Any]:
    """What the stage writes if variants of an operation are declared, or not."""
    values = yaml.safe_load(paths.PARAMETERS.read_text())
    values["variants"] = {
        name: variant
        for name, variant in values["variants"].items()
        if variant["parent"] in ("teacher", "fp32") and declared.get(variant["op"], True)
    }
    paths.PARAMETERS.write_text(yaml.safe_dump(values, sort_keys=False))
    sensitivity.main()
    return json.loads(paths.SENSITIVITY.read_text())


@pytest.mark.usefixtures("root")
def test_every_layer_is_narrowed_and_quantised_as_long_as_a_variant_is_made_so() -> None:
    result = measured()
    assert (result["n"], result["size"], list(result["variants"])) == (6, 32, ["fp32"])
    student = result["variants"]["fp32"]
    assert len(student["channels"]) == 14
    assert {tuple(scores) for scores in student["channels"].values()} == {("0.5",)}
    int8 = student["int8"]["layers"]
    assert len(int8) == 28
    scores = [score for layer in (*student["channels"].values(), *int8.values()) for score in layer.values()]
    # Scores are shares of six images.
    assert {round(6 * score["score"], 9) % 1 for score in (student, *scores)} == {0}
    # Eight bits in a single layer move the answers; in 27 layers they move them further, on average.
    alone, spared = ([layer[side]["moved"] for layer in int8.values()] for side in ("alone", "spared"))
    assert min(alone) > 0
    assert mean(alone) < mean(spared)
    assert max(spared) <= 1

    # Names come from the configuration: without its variants a part is not measured.
    assert set(measured(quantize=False)["variants"]["fp32"]) == {"score", "channels"}
    assert measured(prune=False) == {"note": "not measured"}


def test_a_student_is_measured_once_whatever_variants_are_added_to_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dvc_parent.STAGE, "sensitivity")
    calls: list[object] = []
    real = layer_sensitivity.measure_students
    monkeypatch.setattr(
        layer_sensitivity, "measure_students", lambda *a, **k: calls.append(a) or real(*a, **k)
    )
    first = measured(prune=False)
    values = yaml.safe_load(paths.PARAMETERS.read_text())
    values["variants"]["one-more"] = {"parent": "fp32", "op": "quantize", "method": "ptq"}
    paths.PARAMETERS.write_text(yaml.safe_dump(values, sort_keys=False))
    assert measured(prune=False) == first
    assert len(calls) == 1
    # Another network, another parameter, other code or other images are other inputs.
    (root / paths.CODE).mkdir(parents=True)
    for number, change in enumerate(
        (paths.model("fp32") / "weights.safetensors", paths.CODE / "sensitivity")
    ):
        if change.is_file():
            model = storage.load(paths.model("fp32"))
            torch.nn.init.normal_(next(model.module.parameters()))
            storage.save(paths.model("fp32"), model)
        else:
            change.write_text("another fingerprint")
        measured(prune=False)
        assert len(calls) == 2 + number
