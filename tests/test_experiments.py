import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.selection import budget, experiments
from pipeline.selection.experiments import Experiment, ExperimentError
from pipeline.upkeep import dvc_cache

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(__file__).parents[1]),
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    **{f"GIT_{who}_{what}": "tester" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}
MAKE = """
import json, pathlib, yaml
from dataclasses import replace
from pipeline.selection import table
from tests.rows import row
parameters = yaml.safe_load(open("params.yaml"))
macs, data = parameters["variants"]["pruned"]["macs"], parameters["data"]["path"]
assert macs < 0.9
slow = 1 + macs  # the machine's state, the same for all files of a run
for split in ("train", "val", "test"):
    pathlib.Path("artifacts/data", split).mkdir(parents=True, exist_ok=True)
    # Other training images leave the scores comparable.
    pathlib.Path("artifacts/data", split, "images").write_text(f"{data}, {macs if split == 'train' else ''}")
harder = 0.3 if data == "others" else 0
rows = []
for name, share in (("fp32", 1.0), ("pruned", macs)):
    score = 0.80 + 0.1 * share - harder
    rows.append(row(
        name, "teacher" if name == "fp32" else "fp32", score, 3 * slow * share, int(7e6 * share),
        reference_delta=score - 0.90 + harder, val_score=0.70 + 0.2 * share - harder,
        sha256=data if name == "fp32" else str(macs), latency_ratio_to_fp32=1 / share,
        latency_ratio_lo=0.99 / share, latency_ratio_hi=1.01 / share,
    ))
table.write(pathlib.Path("artifacts/report/variants.csv"), rows)
pathlib.Path("artifacts/benchmark.json").write_text(json.dumps({"noise": {"noisy": macs == 0.2}}))
"""
PIPELINE = """
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    params: [data, variants]
    outs: [artifacts/benchmark.json, artifacts/data, artifacts/report]
"""
PARAMETERS = """
data: {path: photos}
variants:
  fp32: {parent: teacher, op: distill}
  pruned: {parent: fp32, op: prune, macs: 0.5}
"""


def run(folder: Path, command: str) -> None:
    subprocess.run(command.split(), cwd=folder, env=ENVIRONMENT, capture_output=True, check=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of one stage that was run in the workspace, and queued with others: macs, and other data."""
    folder = tmp_path_factory.mktemp("repository")
    for name, text in (("make.py", MAKE), ("dvc.yaml", PIPELINE), ("params.yaml", PARAMETERS)):
        (folder / name).write_text(text)
    (folder / ".gitignore").write_text("/artifacts/\n")
    for command in ("git init -q", "dvc init -q", "dvc repro -q", "git add .", "git commit -qm base"):
        run(folder, command)
    run(folder, "dvc exp run --queue -S variants.pruned.macs=0.2,0.4,0.95")
    run(folder, "dvc exp run --queue -S data.path=others -S variants.pruned.macs=0.1")
    # One fails, and with it the command.
    subprocess.run(
        ["dvc", "exp", "run", "--run-all"], cwd=folder, env=ENVIRONMENT, capture_output=True, check=False
    )
    return folder


@pytest.fixture
def finished(repository: Path, monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """The finished experiments, read from within the repository."""
    monkeypatch.chdir(repository)
    experiments_of_all, unfinished = experiments.read()
    assert unfinished == 1
    return experiments_of_all


def test_experiments_are_compared_where_val_and_test_images_are_the_same_and_the_budget_chooses_by_val(
    finished: list[Experiment],
) -> None:
    own, others = experiments.group(finished)
    assert (own[0].name, len(own), len(others)) == ("workspace", 3, 1)
    settings = experiments.differences(own)
    assert sorted(settings.values(), key=str) == [{"variants.pruned.macs": m} for m in (0.2, 0.4, 0.5)]
    choice, result = experiments.choose(own, max_drop=0.065)
    assert settings[result.experiment] == {"variants.pruned.macs": 0.4}
    assert choice.variant == f"pruned of {result.experiment}"
    assert (result.score, result.test_score) == (pytest.approx(0.78), pytest.approx(0.84))
    nothing, closest = experiments.choose(own, max_size_bytes=1_000_000)
    assert nothing.variant is None
    assert settings[closest.experiment] == {"variants.pruned.macs": 0.2}


def test_the_table_of_experiments_has_one_line_each_with_the_scores_and_what_differs(
    finished: list[Experiment],
) -> None:
    own, _ = experiments.group(finished)
    header, *lines = experiments.lines(own)
    variants = [row.variant for row in own[0].rows]
    assert header.split() == ["experiment", *variants, "differs", "in"]
    assert len(lines) == len(own)
    for experiment, line in zip(own, lines, strict=True):
        name, *scores, option, setting = line.split()
        assert name == experiment.name
        assert scores == [
            f"{100 * row.val_score:.2f}{'*' * (row.verdict == 'accept')}" for row in experiment.rows
        ]
        macs = experiment.parameters["variants"]["pruned"]["macs"]
        assert [option, setting] == ["-S", f"variants.pruned.macs={macs}"]
    (alone,) = experiments.lines(own[:1])[1:]
    assert alone.endswith("  -")


def test_an_experiment_on_other_data_has_a_reference_of_its_own(finished: list[Experiment]) -> None:
    _, others = experiments.group(finished)
    choice, result = experiments.choose(others, max_drop=0.1)
    assert (choice.variant, result.reference_delta) == (f"pruned of {others[0].name}", pytest.approx(-0.09))


def test_a_student_that_is_worse_than_that_of_another_experiment_has_lost_the_difference(
    finished: list[Experiment],
) -> None:
    first, second, *_ = experiments.group(finished)[0]
    weaker = [replace(row, val_score=row.val_score - 0.05, sha256="9" * 64) for row in second.rows]
    results = experiments.collect([first, replace(second, rows=weaker)])
    students = [result for result in results if result.name == "fp32"]
    assert [(one.reference_delta, one.reference_hi) for one in students] == [
        (0, 0),
        (pytest.approx(-0.05), pytest.approx(-0.05)),
    ]


def test_the_noise_of_the_chosen_experiment_is_named(finished: list[Experiment]) -> None:
    own, _ = experiments.group(finished)
    assert budget.BUSY in experiments.choose(own)[0].reason
    assert budget.BUSY not in experiments.choose(own, max_drop=0.065)[0].reason


def test_latencies_of_separate_runs_are_made_comparable_by_fp32(finished: list[Experiment]) -> None:
    results = experiments.collect(experiments.group(finished)[0])
    # fp32 took 1.2, 1.4 and 1.5 times as long; the median counts for all runs.
    assert {round(one.latency_ms_p50, 4) for one in results if one.name == "fp32"} == {round(3 * 1.4, 4)}
    assert {round(one.latency_ms_p50, 4) for one in results if one.name == "pruned"} == {
        round(3 * 1.4 * macs, 4) for macs in (0.2, 0.4, 0.5)
    }


@pytest.mark.usefixtures("finished")
def test_a_variant_that_was_removed_and_a_table_that_is_missing_are_left_out(tmp_path: Path) -> None:
    output = ["dvc", "exp", "show", "--json"]
    shown = json.loads(subprocess.run(output, env=ENVIRONMENT, capture_output=True, check=True).stdout)
    assert experiments.finished(shown, tmp_path) == ([], 4)
    for base in shown:
        del base["data"]["params"]["params.yaml"]["data"]["variants"]["pruned"]
    workspace = experiments.finished(shown, dvc_cache.folder())[0][0]
    assert [row.variant for row in workspace.rows] == ["fp32"]


def test_a_folder_without_experiments_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExperimentError) as caught:
        experiments.read()
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ExperimentError, match="no experiment"):
        experiments.collect([])
