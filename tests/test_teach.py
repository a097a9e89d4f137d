"""The stage `teach` with teachers that are taken as they are: good ones are stored, bad ones end it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import helper

from pipeline import paths
from pipeline.settings import merge
from pipeline.stages import label, teach
from teachers.errors import TeacherError
from tests import odd_onnx

ROOT = Path(__file__).parents[1]
SWAPPED = odd_onnx.MATRIX[:, [0, 2, 1]]


def configure(**teacher: Any) -> None:
    """Write the parameters of a teacher that is an ONNX file."""
    values = yaml.safe_load((ROOT / paths.PARAMETERS).read_text())
    shared = {"compute": {"workers": 0, "threads": 1}, "views": {"per_image": 1}, "student": {"size": 32}}
    Path(paths.PARAMETERS).write_text(
        yaml.safe_dump(merge(values, {"teacher": odd_onnx.TEACHER | teacher, **shared}))
    )


def run() -> dict[str, Any]:
    teach.main()
    return json.loads((paths.TEACHER / "card.json").read_text())


def test_a_good_teacher_is_stored_with_the_form_of_its_answers(colours: Path) -> None:
    odd_onnx.write(colours / "box.onnx", odd_onnx.SOFTMAX, odd_onnx.node("Identity", "shares"))
    configure()
    card = run()
    assert (card["form"], card["columns"], card["val"]["top1"]) == ("softmax", None, 1.0)
    label.main()
    answers = np.load(paths.LABELS / "answers.npy").astype(float)
    np.testing.assert_allclose(np.exp(answers).sum(-1), 1, atol=0.01)
    assert answers.min() < -1


def test_answers_of_the_wrong_sign_end_the_stage(colours: Path) -> None:
    odd_onnx.write(colours / "box.onnx", matrix=-odd_onnx.MATRIX)
    configure()
    with pytest.raises(TeacherError, match=r"^teacher: .*teacher\.doubtful"):
        run()


def test_labels_that_contradict_the_score_on_val_are_not_stored(colours: Path) -> None:
    odd_onnx.write(colours / "box.onnx")
    configure()
    run()
    odd_onnx.write(paths.TEACHER / "model.onnx", matrix=-odd_onnx.MATRIX)
    with pytest.raises(TeacherError, match=r"35 .*below chance.* 100\.0% on the 23 images of val"):
        label.main()
    assert not paths.LABELS.exists()


def test_two_logits_in_each_others_place_end_the_stage_until_they_are_named(colours: Path) -> None:
    odd_onnx.write(colours / "box.onnx", matrix=SWAPPED)
    configure()
    with pytest.raises(TeacherError, match=r"^teacher: .*'green'.*teacher\.labels") as error:
        run()
    assert "'blue'" not in str(error.value).split("perhaps")[0]
    configure(labels=["blue", "red", "green"])
    card = run()
    assert (card["columns"], card["val"]["top1"]) == ([0, 2, 1], 1.0)


def test_a_bad_member_of_an_ensemble_is_named_by_its_key(colours: Path) -> None:
    odd_onnx.write(colours / "box.onnx")
    odd_onnx.write(colours / "other.onnx", matrix=0 * odd_onnx.MATRIX)
    other = {"source": "onnx", "name": "other.onnx", "input": {"interpolation": "bilinear"}}
    configure(ensemble=[other])
    with pytest.raises(TeacherError, match=r"^teacher\.ensemble\.0: .*chance"):
        run()
    configure(ensemble=[{**other, "doubtful": "accept"}])
    assert run()["val"]["top1"] == 1.0


def test_answers_that_are_not_finite_end_the_stage_with_the_names_of_the_images(colours: Path) -> None:
    less = [
        helper.make_node("Log", ["sums"], ["logarithms"]),
        helper.make_node("Log", ["logarithms"], ["answers"]),
    ]
    odd_onnx.write(colours / "box.onnx", *less, matrix=odd_onnx.MATRIX / 12)
    configure()
    with pytest.raises(TeacherError, match=r"not finite: .*\d\d\.jpg") as error:
        run()
    assert len(str(error.value).splitlines()) == 1
    assert not paths.TEACHER.exists()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_architecture_is_adapted_or_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.architectures"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    *lines, summary = done.stdout.splitlines()
    assert int(summary.split()[0]) >= 60
    assert len(lines) >= 60
    assert [line for line in lines if ": defect, " in line] == []
    assert done.returncode == 0, done.stderr
