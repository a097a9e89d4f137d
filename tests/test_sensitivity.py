import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dvc.utils.hydra import compose_and_dump

import students
from pipeline import paths
from pipeline.models import storage
from pipeline.models.storage import Card, Model
from pipeline.stages import dissect, prepare
from teachers.contract import InputContract

CONFIGS = Path(__file__).parents[1] / "configs"
ARGUMENTS = {"classes": 3, "channels": tuple(range(8, 22))}


@pytest.fixture
def root(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared images, and a student whose stem alone decides nothing: its weights are random."""
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
        git_commit="unknown",
        versions={},
    )
    storage.save(paths.model("fp32"), Model(students.build("mobilenet_v1", ARGUMENTS).eval(), card))
    return tmp_path


def dissected(**kept: bool) -> dict[str, Any]:
    """What is found when variants of an operation are declared, or not."""
    values = yaml.safe_load(paths.PARAMETERS.read_text())
    values["variants"] = {
        name: variant
        for name, variant in values["variants"].items()
        if variant["parent"] in ("teacher", "fp32") and kept.get(variant["op"], True)
    }
    paths.PARAMETERS.write_text(yaml.safe_dump(values, sort_keys=False))
    dissect.main()
    return json.loads(paths.SENSITIVITY.read_text())


@pytest.mark.usefixtures("root")
def test_every_layer_of_the_student_is_narrowed_and_quantised_as_long_as_a_variant_wants_it() -> None:
    found = dissected()
    assert (found["n"], found["size"], list(found["variants"])) == (6, 32, ["fp32"])
    student = found["variants"]["fp32"]
    assert len(student["channels"]) == 14
    assert {tuple(scores) for scores in student["channels"].values()} == {("0.5",)}
    assert len(student["int8"]["layers"]) == 28
    layers = [*student["channels"].values(), *student["int8"]["layers"].values()]
    scores = [of["score"] for layer in layers for of in layer.values()]
    # Shares of six images.
    assert {round(6 * score, 9) % 1 for score in (student["score"], *scores)} == {0}
    # Eight bits in one layer move every answer a little, and less than in all layers but this one.
    for layer, of in student["int8"]["layers"].items():
        assert 0 < of["alone"]["moved"] < of["spared"]["moved"] < 1, layer

    # Names come from configuration: a removed variant takes its section along.
    assert set(dissected(quantize=False)["variants"]["fp32"]) == {"score", "channels"}
    assert dissected(prune=False) == {"note": "not measured"}
