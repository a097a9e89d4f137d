"""What a stage depends on changes while DVC runs it: its results do not count, and DVC records none."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline import paths
from pipeline.running import inputs
from pipeline.running.inputs import ChangedInputError

ROOT = Path(__file__).parents[1]
STAGES = """
stages:
  make:
    foreach: ${variants}
    do:
      cmd: make ${key}
      params: [seed, "${item.op}", "variants.${key}"]
      deps: ["${data.path}", "artifacts/${item.parent}.txt"]
      outs: [made]
"""
VALUES = {
    "seed": 0,
    "data": {"path": "photos"},
    "distill": {"epochs": 4, "phases": [{"size": 64}]},
    "prune": {"epochs": 2},
    "variants": {"fp32": {"op": "distill", "parent": "teacher"}, "half": {"op": "prune", "parent": "fp32"}},
}


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ChangedInputError]:
    """Calls to end the process, in a folder with a pipeline whose watch looks often."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "WATCH_SECONDS", 0.05)
    paths.PIPELINE.write_text(STAGES)
    write(VALUES)
    for name in ("photos/cat/1.jpg", "artifacts/teacher.txt", "artifacts/fp32.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    return []


def write(values: object) -> None:
    paths.PARAMETERS.write_text(yaml.safe_dump(values))


def changed(**sections: object) -> Callable[[], None]:
    return lambda: write({**VALUES, **sections})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed(seed=1), "seed was 0 and is 1"),
        (changed(distill={**VALUES["distill"], "epochs": 8}), "distill.epochs was 4 and is 8"),
        (changed(distill={"epochs": 4}), "distill.phases was"),
        (changed(distill={**VALUES["distill"], "loss": "kd"}), "distill.loss was missing and is kd"),
        (lambda: paths.PARAMETERS.write_text("seed: ["), "params.yaml"),
        (lambda: paths.PARAMETERS.unlink(), "params.yaml"),
        (lambda: Path("photos/cat/2.jpg").write_text("y"), "photos/cat/2.jpg is new"),
        (lambda: Path("photos/cat/1.jpg").unlink(), "photos/cat/1.jpg is gone"),
        (lambda: Path("artifacts/teacher.txt").write_text("longer"), "artifacts/teacher.txt has changed"),
    ],
)
def test_what_a_stage_depends_on_may_not_change_while_it_runs(
    ended: list[ChangedInputError], change: Callable[[], None], named: str
) -> None:
    with pytest.raises(ChangedInputError) as error, inputs.unchanged("make@fp32", ended.append):
        change()
    assert named in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        changed(prune={"epochs": 3}),
        changed(variants={**VALUES["variants"], "more": {"op": "prune", "parent": "fp32"}}),
        lambda: Path("artifacts/fp32.txt").write_text("of another stage"),
        lambda: Path("photos/.DS_Store").write_text("left by a file manager"),
        lambda: paths.PARAMETERS.touch(),
        lambda: None,
    ],
)
def test_what_belongs_to_other_stages_may_change(
    ended: list[ChangedInputError], change: Callable[[], None]
) -> None:
    with inputs.unchanged("make@fp32", ended.append):
        change()
        time.sleep(0.2)
    assert ended == []


@pytest.mark.parametrize("stage", [None, "nosuch", "make@nosuch"])
def test_without_dvc_or_for_a_stage_that_it_does_not_know_nothing_is_checked(
    ended: list[ChangedInputError], stage: str | None
) -> None:
    with inputs.unchanged(stage, ended.append):
        write({"seed": 5})
    paths.PIPELINE.unlink()
    with inputs.unchanged("make@fp32", ended.append):
        write({"seed": 6})
    assert ended == []


def test_a_changed_parameter_ends_a_long_stage_at_once_and_one_that_is_put_back_does_not(
    ended: list[ChangedInputError], monkeypatch: pytest.MonkeyPatch
) -> None:
    with inputs.unchanged("make@half", ended.append):
        changed(prune={"epochs": 7})()
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
        write(VALUES)
    assert "prune.epochs was 2 and is 7" in str(ended[0])
    monkeypatch.setattr(inputs, "WATCH_SECONDS", 0.4)
    with inputs.unchanged("make@half", ended.append):
        paths.PARAMETERS.write_text("")  # as an editor does before it writes
        time.sleep(0.5)
        write(VALUES)
    assert len(ended) == 1


def test_every_stage_of_the_pipeline_is_known() -> None:
    pipeline = yaml.safe_load((ROOT / paths.PIPELINE).read_text())["stages"]
    variants = yaml.safe_load((ROOT / paths.PARAMETERS).read_text())["variants"]
    names = [name for name in pipeline if "foreach" not in pipeline[name]] + ["litert@all"]
    names += [f"{name}@{key}" for name in ("build", "export", "evaluate") for key in variants]
    code = (
        "import sys; from pipeline.running import inputs; "
        "print([inputs._declared(name) for name in sys.argv[1:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "None" not in done.stdout
    assert "PosixPath('artifacts/onnx/int8-ptq.onnx')" in done.stdout
    assert "${" not in done.stdout


STAGE = """
import sys
from pathlib import Path
from pipeline.running.process import stage
def main():
    "Write a file."
with stage():
    Path("made").write_text("from seed 0")
    Path("params.yaml").write_text("seed: 1")
"""


def test_dvc_does_not_record_a_stage_whose_parameter_was_edited_while_it_ran(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    command = f"PYTHONPATH={ROOT} {sys.executable} stage.py"
    stages = {"make": {"cmd": command, "params": ["seed"], "outs": ["made"]}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    dvc = [str(Path(sys.executable).parent / "dvc"), "repro"]
    done = subprocess.run(dvc, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "seed was 0 and is 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "dvc.lock").exists()
