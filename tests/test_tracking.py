import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from mlflow import MlflowClient, artifacts, pyfunc
from mlflow.entities import Run

from pipeline.tracking import runs
from pipeline.tracking.runs import Book, Made, Shipped, State, TrackingError, Training
from tests import tiny_onnx

HISTORY = [
    {"epoch": n, "step": 10 * n, "seconds": 2.0 * n, "loss": 1 / n, "val_top1": 0.9} for n in (1, 2, 3)
]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fresh database takes seconds, so that these tests share one; each has its own experiment."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


class Case(NamedTuple):
    """Arguments of ``track`` for two variants."""

    state: State
    teacher: Made
    variants: list[Shipped]
    book: Book


@pytest.fixture
def case(tmp_path: Path, uri: str, request: pytest.FixtureRequest) -> Case:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "variants.csv").write_text("variant\n")
    test = request.node.name
    state = State(
        name="colours",
        sha256="a" * 64,
        tags={"git_commit": "c0ffee", "teacher": "a teacher", "dvc.artifacts/data": "d41d"},
        parameters={"seed": 3, "data": {"source": "folder", "val": 0.1}},
        data={
            "source": "folder",
            "path": "photographs",
            "data_sha256": "d" * 64,
            "images": {"train": 8, "val": 4, "test": 4},
        },
        figures={"teacher_top1": 0.9, "top1/fp32": 0.9},
        files=[("report", tmp_path / "report")],
        champion="int8",
        reason="int8 is the fastest accepted variant",
        card="# A card",
    )
    teacher = Made(Training("teacher", {"seed": 3}), test, {"top1": 0.9}, HISTORY, {"origin": "a teacher"})
    return Case(
        state,
        teacher,
        [shipped(tmp_path, test, "fp32"), shipped(tmp_path, test, "int8")],
        Book(uri, test, tmp_path),
    )


def shipped(folder: Path, test: str, name: str, *, seed: int = 0) -> Shipped:
    """A variant; another seed makes another file."""
    weights = np.eye(3, dtype=np.float32) / 16 + np.float32(seed / 1000)
    # Two variants never have the same file, since its metadata name it.
    file = tiny_onnx.write(folder / f"{name}-{seed}.onnx", weights=weights, note=f"{test} {name}")
    return Shipped(
        Training(name, {"variant": name, "epochs": 3, "objective": {"kl": 1.0}}),
        artifact=hashlib.sha256(file.read_bytes()).hexdigest(),
        figures={"top1": 0.9 + seed / 100, "latency_ms_p50": 2.5, "size_bytes": file.stat().st_size},
        history=HISTORY,
        tags={"op": "distill", "verdict": "accept", runs.NOTE: f"what {name} is"},
        file=file,
        verdict="accept",
        shown={"verdict": "accept", "top-1": "0.9"},
    )


def experiment_runs(case: Case, suffix: str = "") -> dict[str, Run]:
    """Active runs of the experiment by name."""
    client = MlflowClient(case.book.uri)
    experiment = client.get_experiment_by_name(case.book.experiment + suffix)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {str(run.info.run_name): run for run in found}


def points(case: Case, run: Run, key: str) -> list[tuple[int, float]]:
    history = MlflowClient(case.book.uri).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in history)


def expected(key: str) -> list[tuple[int, float]]:
    return [(round(line["step"]), line[key]) for line in HISTORY]


def contents(case: Case) -> Any:
    """All that the book holds of this experiment, but for the order."""
    client = MlflowClient(case.book.uri)
    told = [
        (run.info, run.data.tags, run.data.params, [points(case, run, key) for key in run.data.metrics])
        for suffix in ("", "-teachers")
        for run in experiment_runs(case, suffix).values()
    ]
    versions = client.search_model_versions(f"name = '{case.book.experiment}'")
    named = [(v.version, v.tags, v.aliases, v.last_updated_timestamp) for v in versions]
    return sorted(map(str, told)), sorted(map(str, named))


def test_a_state_is_one_parent_with_a_child_for_each_variant_and_a_teacher_elsewhere(case: Case) -> None:
    parent, new = runs.track(*case)
    found = experiment_runs(case)
    assert new == ["fp32", "int8"]
    assert set(found) == {"colours aaaaaaa", "fp32", "int8"}
    assert set(experiment_runs(case, "-teachers")) == {"teacher"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for made in case.variants:
        child = found[made.training.name]
        assert child.data.tags["mlflow.parentRunId"] == parent
        assert child.data.tags["verdict"] == "accept"
        assert made.figures.items() <= child.data.metrics.items()
        assert child.data.params["objective.kl"] == "1.0"
        assert points(case, child, "training/loss") == expected("loss")


def test_the_parent_holds_report_parameters_hashes_and_links(case: Case) -> None:
    parent, _ = runs.track(*case)
    client = MlflowClient(case.book.uri)
    run, found = client.get_run(parent), experiment_runs(case)
    assert (run.data.params["seed"], run.data.params["data.val"]) == ("3", "0.1")
    assert run.data.tags["dvc.artifacts/data"] == "d41d"
    assert run.data.tags["champion"] == "int8"
    assert json.loads(run.data.tags["runs"]) == {name: found[name].info.run_id for name in ("fp32", "int8")}
    assert (
        f"#/experiments/{run.info.experiment_id}/runs/{found['int8'].info.run_id}" in run.data.tags[runs.NOTE]
    )
    assert [file.path for file in client.list_artifacts(parent, "report")] == ["report/variants.csv"]
    assert run.inputs is not None
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["folder"]


def test_tracking_again_changes_nothing(case: Case) -> None:
    first, _ = runs.track(*case)
    before = contents(case)
    for _ in range(2):
        assert runs.track(*case) == (first, [])
    assert contents(case) == before


def test_a_changed_variant_makes_a_new_parent_with_one_new_child_and_links_the_others(
    case: Case, tmp_path: Path
) -> None:
    first, _ = runs.track(*case)
    fp32 = experiment_runs(case)["fp32"].info.run_id
    changed = [case.variants[0], shipped(tmp_path, case.book.experiment, "int8", seed=1)]
    state = replace(case.state, sha256="b" * 64)
    second, new = runs.track(state, case.teacher, changed, case.book)
    client = MlflowClient(case.book.uri)
    tags = client.get_run(second).data.tags
    assert second != first
    assert new == ["int8"]
    linked = json.loads(tags["runs"])
    assert linked["fp32"] == fp32
    assert client.get_run(fp32).data.tags["mlflow.parentRunId"] == first
    assert client.get_run(linked["int8"]).data.tags["mlflow.parentRunId"] == second
    assert "an earlier state" in tags[runs.NOTE]
    assert len(experiment_runs(case, "-teachers")) == 1


def test_a_linked_variant_has_the_latest_benchmark_and_verdict_and_no_figure_twice(case: Case) -> None:
    runs.track(*case)
    fp32, int8 = case.variants
    timed = {**int8.figures, "latency_ms_p50": 3.0}
    again = replace(int8, figures=timed, tags={**int8.tags, "verdict": "reject"}, verdict="reject")
    runs.track(replace(case.state, sha256="b" * 64), case.teacher, [fp32, again], case.book)
    client = MlflowClient(case.book.uri)
    run = experiment_runs(case)["int8"]
    assert run.data.tags["verdict"] == "reject"
    assert points(case, run, "latency_ms_p50") == [(0, 2.5), (1, 3.0)]
    assert len(points(case, run, "top1")) == 1
    [version] = client.search_model_versions(f"name = '{case.book.experiment}' and tag.variant = 'int8'")
    assert version.tags["verdict"] == "reject"


def test_a_removed_variant_is_not_in_the_new_parent(case: Case) -> None:
    runs.track(*case)
    state = replace(case.state, sha256="b" * 64, champion="fp32")
    parent, new = runs.track(state, case.teacher, case.variants[:1], case.book)
    tags = MlflowClient(case.book.uri).get_run(parent).data.tags
    assert new == []
    assert list(json.loads(tags["runs"])) == ["fp32"]
    assert "int8" not in tags[runs.NOTE].replace(case.state.reason, "")


def test_accepted_variants_are_versions_and_the_champion_is_the_budgets(case: Case) -> None:
    rejected = replace(case.variants[0], verdict="reject")
    runs.track(case.state, case.teacher, [rejected, case.variants[1]], case.book)
    client, name = MlflowClient(case.book.uri), case.book.experiment
    [version] = client.search_model_versions(f"name = '{name}'")
    assert version.tags["variant"] == "int8"
    assert version.tags["sha256"] == case.variants[1].artifact
    assert str(version.description).endswith("# A card")
    assert client.get_model_version_by_alias(name, "champion").version == version.version
    # The gate is looser now, and the budget chooses the other one.
    runs.track(replace(case.state, champion="fp32"), case.teacher, case.variants, case.book)
    assert client.get_model_version_by_alias(name, "champion").tags["variant"] == "fp32"
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    runs.track(replace(case.state, champion=None), case.teacher, case.variants, case.book)
    assert client.get_registered_model(name).aliases == {}


def test_the_logged_model_is_the_shipped_file_and_takes_pixels_and_photographs(case: Case) -> None:
    runs.track(*case)
    client, name = MlflowClient(case.book.uri), case.book.experiment
    source = client.get_model_version_by_alias(name, "champion").source
    folder = Path(artifacts.download_artifacts(source, tracking_uri=case.book.uri))
    file = case.variants[1].file
    assert (folder / "data" / file.name).read_bytes() == file.read_bytes()
    requirements = (folder / "requirements.txt").read_text()
    assert "onnxruntime==" in requirements
    assert "torch" not in requirements
    images = np.zeros((2, tiny_onnx.SIZE, tiny_onnx.SIZE, 3), dtype=np.uint8)
    images[0, :, :, 2] = images[1, :, :, 1] = 255
    answers = pyfunc.load_model(str(folder)).predict(images, params={"top": 1})
    assert [[guess["label"] for guess in answer["classes"]] for answer in answers] == [["blue"], ["green"]]


@pytest.mark.parametrize("step", ["_log_params", "_log_model", "_log_figures", "_register"])
def test_what_a_killed_process_left_is_completed(
    case: Case, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = getattr(runs, step)
    calls: list[None] = []

    def killed_at_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == (1 if step == "_register" else 2):
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(runs, step, killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            runs.track(*case)
    runs.track(*case)
    found = experiment_runs(case)
    assert set(found) == {"colours aaaaaaa", "fp32", "int8"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    client = MlflowClient(case.book.uri)
    models = client.search_logged_models([found["fp32"].info.experiment_id])
    assert sorted(str(model.source_run_id) for model in models) == sorted(
        found[name].info.run_id for name in ("fp32", "int8")
    )
    for name in ("fp32", "int8"):
        assert points(case, found[name], "training/loss") == expected("loss")
        assert len(points(case, found[name], "top1")) == 1


class Follower:
    """A training that is followed, epoch by epoch."""

    def __init__(self, case: Case, book: Book | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.over = threading.Event()
        self.done = True
        arguments = (case.variants[0].training, lambda: self.lines, self.over, book or case.book)
        self.thread = threading.Thread(
            target=runs.follow, args=arguments, kwargs={"finished": lambda: self.done}
        )
        self.thread.start()

    def end(self) -> None:
        self.over.set()
        self.thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(runs, "SAMPLE_SECONDS", 1)


def until(what: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shown(case: Case) -> list[tuple[int, float]]:
    found = MlflowClient(case.book.uri).get_experiment_by_name(case.book.experiment)
    run = experiment_runs(case).get("fp32") if found else None
    return [] if run is None else points(case, run, "training/loss")


def test_epochs_show_up_while_the_training_goes_on_and_the_child_is_the_same_run(case: Case) -> None:
    follower = Follower(case)
    until(lambda: runs_there(case))
    assert experiment_runs(case)["fp32"].info.status == "RUNNING"
    follower.lines = HISTORY[:1]
    until(lambda: shown(case) == expected("loss")[:1])
    follower.lines = HISTORY[:2]
    until(lambda: shown(case) == expected("loss")[:2])
    until(lambda: any(key.startswith("system/") for key in experiment_runs(case)["fp32"].data.metrics))
    # The last epoch is missed: the checkpoint is gone.
    follower.lines = []
    follower.end()
    live = experiment_runs(case)["fp32"].info
    assert live.status == "FINISHED"
    runs.track(*case)
    assert experiment_runs(case)["fp32"].info.run_id == live.run_id
    assert shown(case) == expected("loss")


def runs_there(case: Case) -> bool:
    experiment = MlflowClient(case.book.uri).get_experiment_by_name(case.book.experiment)
    return experiment is not None and "fp32" in experiment_runs(case)


def test_a_training_that_was_killed_goes_on_in_the_same_run(case: Case) -> None:
    follower = Follower(case)
    follower.done, follower.lines = False, HISTORY[:1]
    until(lambda: shown(case) == expected("loss")[:1])
    follower.end()
    killed = experiment_runs(case)["fp32"].info
    assert killed.status == "KILLED"
    follower = Follower(case)
    follower.lines = HISTORY
    until(lambda: shown(case) == expected("loss"))
    follower.end()
    assert experiment_runs(case)["fp32"].info.run_id == killed.run_id
    assert experiment_runs(case)["fp32"].info.status == "FINISHED"


def test_another_training_of_the_same_settings_has_a_run_of_its_own(case: Case) -> None:
    first = Follower(case)
    first.lines = HISTORY[:2]
    until(lambda: shown(case) == expected("loss")[:2])
    first.end()
    other = [{**line, "loss": line["loss"] + 1} for line in HISTORY]
    runs.track(case.state, case.teacher, [replace(case.variants[0], history=other)], case.book)
    client = MlflowClient(case.book.uri)
    experiment = client.get_experiment_by_name(case.book.experiment)
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], "tags.variant = 'fp32'")) == 2


def test_a_training_goes_on_without_a_server(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    follower = Follower(case, Book("http://127.0.0.1:9", "nowhere", Path()))
    follower.lines = HISTORY
    time.sleep(0.5)
    follower.end()
    runs.track(*case)
    assert shown(case) == expected("loss")


class Server:
    """A real tracking server on a database, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        options = ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        files = ["--artifacts-destination", str(self.folder / "served")]
        self.process = subprocess.Popen(
            [*command, *options, *files],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        until(self.answers, 240)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_killed_during_training_has_every_point_once_in_the_end(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    server = Server(tmp_path)
    case = case._replace(book=replace(case.book, uri=server.uri))
    try:
        follower = Follower(case)
        follower.lines = HISTORY[:1]
        until(lambda: shown(case) == expected("loss")[:1], 60)
        until(
            lambda: any(key.startswith("system/") for key in experiment_runs(case)["fp32"].data.metrics), 60
        )
        server.kill()
        follower.lines = HISTORY[:2]
        time.sleep(3)
        assert follower.thread.is_alive()
        server.start()
        # It is told what it missed as soon as it is there again, while the training goes on.
        until(lambda: shown(case) == expected("loss")[:2], 60)
        server.kill()
        follower.lines = HISTORY
        follower.end()
        server.start()
        runs.track(*case)
        found = experiment_runs(case)
        assert set(found) == {"colours aaaaaaa", "fp32", "int8"}
        for key in ("loss", "val_top1", "epoch", "seconds"):
            assert points(case, found["fp32"], f"training/{key}") == expected(key)
        system = [step for step, _ in points(case, found["fp32"], "system/cpu_utilization_percentage")]
        assert len(set(system)) == len(system) > 0
        assert {run.info.status for run in found.values()} == {"FINISHED"}
    finally:
        server.kill()


def test_parts_of_one_training_follow_each_other(case: Case) -> None:
    parts = [*HISTORY[:2], {**HISTORY[0], "loss": 5.0}]
    runs.track(case.state, replace(case.teacher, history=parts), case.variants, case.book)
    teacher = experiment_runs(case, "-teachers")["teacher"]
    assert points(case, teacher, "training/loss") == [(10, 1.0), (20, 0.5), (30, 5.0)]


def test_a_relative_database_lies_in_the_checkout_whatever_the_folder(tmp_path: Path) -> None:
    book = Book("sqlite:///mlflow.db", "an experiment", tmp_path)
    assert book.address() == f"sqlite:///{tmp_path}/mlflow.db"
    assert Book("sqlite:////var/mlflow.db", "an experiment", tmp_path).address() == "sqlite:////var/mlflow.db"


def test_the_environment_goes_before_the_configured_server(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", case.book.uri)
    runs.track(*case[:3], replace(case.book, uri="http://127.0.0.1:9"))
    assert len(experiment_runs(case)) == 3


def test_a_later_call_is_not_bound_to_an_earlier_server(case: Case) -> None:
    elsewhere = replace(case.book, uri="sqlite:///other.db")
    runs.track(*case[:3], elsewhere)
    runs.track(*case)
    other = case._replace(book=replace(case.book, uri=elsewhere.address()))
    assert len(experiment_runs(other)) == len(experiment_runs(case)) == 3


def test_a_server_that_does_not_answer_is_one_clear_line(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"^MLflow at http://127\.0\.0\.1:9: .+") as caught:
        runs.track(*case[:3], replace(case.book, uri="http://127.0.0.1:9"))
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_is_named(case: Case) -> None:
    runs.track(*case)
    client = MlflowClient(case.book.uri)
    experiment = client.get_experiment_by_name(case.book.experiment)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(TrackingError, match=f"experiment {case.book.experiment} was deleted"):
        runs.track(*case)


def test_an_address_that_cannot_be_used_is_named(case: Case, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    for uri in (f"sqlite:///{tmp_path}/a_file/mlflow.db", "ftp://example.invalid"):
        with pytest.raises(TrackingError, match=uri):
            runs.track(*case[:3], replace(case.book, uri=uri))
