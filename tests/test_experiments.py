import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.selection import budget, experiments
from pipeline.selection.experiments import ExperimentError

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    **{f"GIT_{who}_{what}": "tester" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}
MAKE = """
import json, pathlib, yaml
macs = yaml.safe_load(open("params.yaml"))["variants"]["pruned"]["macs"]
assert macs < 0.9
slow = 1 + macs  # the machine's state, the same for all files of a run
for folder in ("artifacts/onnx", "artifacts/variants"):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
open("artifacts/onnx/fp32.onnx", "w").write("the same")
for name, share in (("fp32", 1.0), ("pruned", macs)):
    row = {"top1": 0.80 + 0.1 * share, "val_top1": 0.70 + 0.2 * share, "top1_delta": -0.01}
    row |= {"latency_ms_p50": 3 * slow * share, "latency_ratio_to_fp32": 1 / share}
    row |= {"size_bytes": int(7e6 * share), "verdict": "accept"}
    open(f"artifacts/variants/{name}.json", "w").write(json.dumps(row))
"""
PIPELINE = """
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    params: [variants]
    outs: [artifacts/onnx/fp32.onnx]
    metrics: [artifacts/variants]
"""
PARAMETERS = """
variants:
  fp32: {parent: teacher, op: distill}
  pruned: {parent: fp32, op: prune, macs: 0.5}
"""


def run(folder: Path, command: str) -> None:
    subprocess.run(command.split(), cwd=folder, env=ENVIRONMENT, capture_output=True, check=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of one stage that was run in the workspace, and queued with three other settings."""
    folder = tmp_path_factory.mktemp("repository")
    for name, text in (("make.py", MAKE), ("dvc.yaml", PIPELINE), ("params.yaml", PARAMETERS)):
        (folder / name).write_text(text)
    (folder / ".gitignore").write_text("/artifacts/\n")
    for command in ("git init -q", "dvc init -q", "dvc repro -q", "git add .", "git commit -qm base"):
        run(folder, command)
    run(folder, "dvc exp run --queue -S variants.pruned.macs=0.2,0.4,0.95")
    # The last one fails, and with it the command.
    subprocess.run(
        ["dvc", "exp", "run", "--run-all"], cwd=folder, env=ENVIRONMENT, capture_output=True, check=False
    )
    return folder


def test_finished_experiments_make_one_table_and_the_budget_chooses_by_val(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    finished, unfinished = experiments.read()
    settings = experiments.differences(finished)
    assert sorted(settings.values(), key=str) == [{"variants.pruned.macs": m} for m in (0.2, 0.4, 0.5)]
    assert (finished[0].name, unfinished) == ("workspace", 1)
    table = experiments.collect(finished)
    assert len(table) == 6
    choice = budget.choose(table, max_size_bytes=3_000_000)
    chosen = next(row for row in table if row.variant == choice.variant)
    assert settings[chosen.experiment] == {"variants.pruned.macs": 0.4}
    assert choice.variant == f"pruned of {chosen.experiment}"
    assert (chosen.score, chosen.test_score) == (pytest.approx(0.78), pytest.approx(0.84))
    assert choice.reason.startswith(
        f"{choice.variant} is the most accurate accepted variant within 3,000,000"
    )
    nothing = budget.choose(table, max_size_bytes=1_000)
    assert nothing.variant is None
    assert settings[nothing.closest.split(" of ")[1]] == {"variants.pruned.macs": 0.2}


def test_latencies_of_separate_runs_are_made_comparable_by_fp32(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    table = experiments.collect(experiments.read()[0])
    # fp32 took 1.2, 1.4 and 1.5 times as long; the median counts for all runs.
    assert {round(row.latency_ms_p50, 6) for row in table if row.name == "fp32"} == {round(3 * 1.4, 6)}
    assert {round(row.latency_ms_p50, 6) for row in table if row.name == "pruned"} == {
        round(3 * 1.4 * macs, 6) for macs in (0.2, 0.4, 0.5)
    }


def test_a_variant_that_was_removed_is_left_out(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    shown = json.loads(
        subprocess.run(
            ["dvc", "exp", "show", "--json"], env=ENVIRONMENT, capture_output=True, check=True
        ).stdout
    )
    for base in shown:
        del base["data"]["params"]["params.yaml"]["data"]["variants"]["pruned"]
    finished, _ = experiments.finished(shown)
    assert [row.name for row in experiments.collect(finished) if row.experiment == "workspace"] == ["fp32"]


def test_a_folder_without_experiments_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExperimentError) as caught:
        experiments.read()
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ExperimentError, match="no experiment"):
        experiments.collect([])
