"""What is saved, what is listed as superfluous, and what stays."""

import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline import __main__
from pipeline.running.locks import BusyError
from pipeline.upkeep import dvc_cache, leftovers, tidying
from pipeline.upkeep.dvc_cache import CacheError

LIMIT = 200_000
"""Bytes that a file of DVC's cache may have in the tests of a full one."""

STAGES = """
stages:
  make:
    cmd:
      - mkdir -p out
      - ulimit -S -f unlimited; head -c 300000 /dev/zero > out/large
      - echo {content} > out/small
    outs: [out]
  copy:
    cmd: cp out/small copy.txt
    deps: [out]
    outs: [copy.txt]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a DVC pipeline of two stages, without git; temporary files have a folder of their own."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Repo.init(no_scm=True).close()
    (folder / "dvc.yaml").write_text(STAGES.format(content="first"))
    return folder


@pytest.fixture
def full_cache() -> Iterator[None]:
    """No file of this process may be larger than ``LIMIT``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def reproduce() -> list[str]:
    """Run the pipeline; returns the names of the stages that had to run."""
    with Repo() as repo:
        return [stage.addressing for stage in Repo.reproduce(repo)]


def test_results_that_a_full_cache_did_not_take_are_named_and_saved_when_there_is_room(
    project: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("full_cache")
    assert reproduce() == ["make", "copy"]  # DVC reports success
    content = (project / "out" / "large").read_bytes()
    with pytest.raises(CacheError) as caught:
        dvc_cache.save()
    [line] = str(caught.value).splitlines()
    assert " out " in line
    assert "copy.txt" not in line
    assert str(project / ".dvc" / "cache") in line
    assert list((project / ".dvc" / "cache").rglob("*.tmp")) == []  # else the disk would stay full
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert dvc_cache.save() == ("out",)
    assert dvc_cache.save() == ()
    assert reproduce() == []
    assert (project / "out" / "large").read_bytes() == content


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_only_what_the_lock_file_describes_is_saved(project: Path, damage: str) -> None:
    reproduce()
    for file in (project / ".dvc" / "cache" / "files").rglob("*"):
        if file.is_file():
            file.unlink()
    if damage == "changed":
        (project / "copy.txt").write_text("something else")
    else:
        (project / "copy.txt").unlink()
    assert dvc_cache.save() == ("out",)


def test_results_of_earlier_states_are_unused_and_their_removal_makes_nothing_again(project: Path) -> None:
    reproduce()
    assert dvc_cache.unused() == {}
    earlier = {file for file in (project / ".dvc" / "cache" / "files").rglob("*") if file.is_file()}
    (project / "dvc.yaml").write_text(STAGES.format(content="second"))
    reproduce()
    cut = next(iter(earlier)).parent / ".x.tmp"
    cut.write_text("cut")
    unused = dvc_cache.unused()
    # The large file is the same in both states.
    assert set(unused) == {file for file in earlier if file.stat().st_size < LIMIT} | {cut}
    tidying.tidy([], dry_run=True)
    assert dvc_cache.unused() == unused
    assert cut.exists()
    tidying.tidy([], dry_run=False)
    assert dvc_cache.unused() == {}
    assert reproduce() == []


def test_a_cache_that_other_projects_may_use_is_left_alone(project: Path, tmp_path: Path) -> None:
    (project / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    reproduce()
    (project / "dvc.yaml").write_text(STAGES.format(content="second"))
    reproduce()
    assert dvc_cache.unused() == {}


def test_a_folder_without_dvc_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CacheError, match="DVC"):
        dvc_cache.save()


@pytest.fixture(scope="module")
def ended() -> int:
    """Number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


SUPERFLUOUS = [
    "artifacts/tmpab_1x2yz/data.arrow",
    "artifacts/.distillery-{ended}-abc/data.arrow",
    "artifacts/raw/.distillery-{ended}-abc/train.gz",
    "artifacts/models/fp32/.weights.safetensors.{ended}.new",
    "artifacts/checkpoints/fp32/last.safetensors.damaged",
    "artifacts/onnx/fp32.unverified",
    "artifacts/checkpoints/removed-variant/last.safetensors",
    "artifacts/checkpoints/quantized-removed-variant/made.json",
    ".dvc/tmp/exps/tmpx/params.yaml",
    "{temporary}/.distillery-{ended}-abc/part",
]
NEEDED = [
    "artifacts/.distillery-{running}-abc/data.arrow",
    "artifacts/models/fp32/.weights.safetensors.{running}.new",
    "artifacts/models/fp32/weights.safetensors",
    "artifacts/models/removed-variant/weights.safetensors",
    "artifacts/checkpoints/fp32/last.safetensors",
    "artifacts/checkpoints/quantized-fp32/made.json",
    "artifacts/checkpoints/teacher-full/last.safetensors",
    "artifacts/checkpoints/labels-0123456789abcdef/0.npy",
    "artifacts/checkpoints/kernels.json",
    "artifacts/checkpoints/locks/teach.lock",
    "artifacts/raw/fashion-mnist/train.gz",
    "artifacts/raw/cars/hood.damaged/1.jpg",
    "artifacts/raw/cars/hood/1.damaged.jpg",
    "artifacts/tmp.json",
    ".dvc/tmp/rwlock",
    "{temporary}/tmpab_1x2yz/part",
    "{temporary}/.distillery-{running}-abc/part",
]


def make(name: str, ended: int) -> Path:
    path = Path(name.format(ended=ended, running=os.getpid(), temporary=tempfile.gettempdir()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("content")
    return path


@pytest.mark.parametrize("name", SUPERFLUOUS)
def test_what_nobody_needs_is_listed_with_its_size_and_removed(project: Path, ended: int, name: str) -> None:
    path = make(name, ended)
    [leftover] = leftovers.find(["fp32"])
    assert path == leftover.path or path.is_relative_to(leftover.path)
    assert leftover.bytes == len("content")
    leftovers.remove([leftover])
    assert not path.exists()
    assert leftovers.find(["fp32"]) == []
    assert (project / "dvc.yaml").exists()


@pytest.mark.usefixtures("project")
def test_what_an_ended_process_left_in_the_shared_folder_is_not_said_to_be_of_this_one(ended: int) -> None:
    make(SUPERFLUOUS[1], ended)
    make(SUPERFLUOUS[-1], ended)
    reasons = {leftover.path.is_absolute(): leftover.reason for leftover in leftovers.find([])}
    assert "any folder" in reasons[True]
    assert "any folder" not in reasons[False]


def test_what_a_live_process_of_another_folder_uses_is_not_listed(project: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd="/") as other:
        path = make(f"{{temporary}}/.distillery-{other.pid}-abc/part", 0)
        assert leftovers.find([]) == []
        other.communicate(b"\n")
    assert [leftover.path for leftover in leftovers.find([])] == [path.parent]
    assert project.exists()


def test_an_experiment_that_runs_is_not_listed_and_a_trial_says_that_the_folder_is_in_use(
    project: Path, ended: int, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = make(".dvc/tmp/exps/tmpx/params.yaml", ended).parent
    command = [sys.executable, "-c", "input()", "pipeline.stages.teach"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=project / workspace) as process:
        try:
            assert leftovers.find([]) == []
            tidying.tidy([], dry_run=True)
            assert str(process.pid) in capsys.readouterr().out
        finally:
            process.communicate(b"\n")
    assert [leftover.path for leftover in leftovers.find([])] == [workspace]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", NEEDED)
def test_what_is_needed_is_not_listed(ended: int, name: str) -> None:
    make(name, ended)
    assert leftovers.find(["fp32"]) == []


@pytest.mark.usefixtures("project")
def test_answers_of_the_teacher_before_a_complete_store_are_superfluous(ended: int) -> None:
    partial = make("artifacts/checkpoints/labels-0123456789abcdef/0.npy", ended)
    card = make("artifacts/labels/card.json", ended)
    os.utime(partial, (1, 1))
    assert [leftover.path for leftover in leftovers.find([])] == [
        Path("artifacts/checkpoints", partial.parent.name)
    ]
    os.utime(partial)
    os.utime(card, (1, 1))
    assert leftovers.find([]) == []


@pytest.mark.parametrize("command", [["pipeline.stages.teach"], ["dvc", "repro"]])
def test_nothing_is_removed_while_the_pipeline_runs(project: Path, ended: int, command: list[str]) -> None:
    path = make(SUPERFLUOUS[0], ended)
    waiting = [sys.executable, "-c", "input()", *command]
    if command[0] == "dvc":
        (project / "dvc").write_text("input()")
        waiting = [sys.executable, *command]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, cwd=project) as process:
        try:
            with pytest.raises(BusyError) as caught:
                tidying.tidy([], dry_run=False)
            assert str(process.pid) in str(caught.value)
        finally:
            process.communicate(b"\n")
    assert path.exists()


def test_deleted_runs_of_mlflow_are_counted_with_their_files(project: Path) -> None:
    assert leftovers.find_deleted_runs() is None
    with sqlite3.connect("mlflow.db") as database:
        database.execute("CREATE TABLE runs (artifact_uri TEXT, lifecycle_stage TEXT)")
        for stage in ("active", "deleted"):
            file = project / "mlartifacts" / f"{stage} run" / "model"
            file.parent.mkdir(parents=True)
            file.write_text("content")
            database.execute("INSERT INTO runs VALUES (?, ?)", (file.parent.as_uri(), stage))
    found = leftovers.find_deleted_runs()
    assert found is not None
    assert found.bytes == len("content")


def test_a_database_that_is_none_is_left_to_the_stage_that_needs_it(project: Path) -> None:
    (project / "mlflow.db").write_text("no database" * 100)
    assert leftovers.find_deleted_runs() is None


@pytest.mark.usefixtures("project")
def test_it_is_worth_a_line_only_when_much_can_be_removed(
    ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("artifacts/results", ended)
    path = make(SUPERFLUOUS[0], ended)
    assert tidying.advice([]) is None
    monkeypatch.setattr(tidying, "TOLD_BYTES", 1)
    advice = tidying.advice([])
    assert advice is not None
    assert "tidy" in advice
    path.unlink()
    assert tidying.advice([]) is None


@pytest.mark.parametrize("command", [["params"], ["run"], ["run", "."], ["compress", "net.pth", "."]])
def test_parameters_are_not_written_while_a_stage_runs_with_them(
    project: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", *command])
    (project / "params.yaml").write_text("seed: 7")
    stage = [sys.executable, "-c", "input()", "pipeline.stages.teach"]
    with subprocess.Popen(stage, stdin=subprocess.PIPE) as process:
        try:
            with pytest.raises(SystemExit) as caught:
                __main__.main()
        finally:
            process.communicate(b"\n")
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert f"process {process.pid} " in error
    assert len(error.splitlines()) == 1
    assert (project / "params.yaml").read_text() == "seed: 7"


def test_an_experiment_in_a_copy_has_parameters_of_its_own(project: Path) -> None:
    (project / ".dvc/tmp/exps/tmpx").mkdir(parents=True)
    places = {project / ".dvc/tmp/exps/tmpx": "pipeline.stages.teach", project: "pipeline.stages.follow"}
    for place, name in places.items():
        command = [sys.executable, "-c", "input()", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=place) as process:
            leftovers.check_parameters_unused()
            process.communicate(b"\n")
