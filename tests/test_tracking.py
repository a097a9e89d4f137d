import json
import resource
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient, artifacts, pyfunc
from mlflow.entities import Run
from playwright.sync_api import sync_playwright

from pipeline.stages import track
from pipeline.tracking import client as tracking_client
from pipeline.tracking import live, records, registry, runs, unfinished, views
from pipeline.tracking.records import (
    TrackingError,
    TrackingServer,
)
from tests import tiny_onnx, tracked
from tests.tracked import HISTORY, Case, Server, exported, until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fresh database takes seconds, so that these tests share one; each has its own experiment."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def case(tmp_path: Path, uri: str, request: pytest.FixtureRequest) -> Case:
    return tracked.case(tmp_path, uri, request.node.name)


def experiment_runs(case: Case, suffix: str = "") -> dict[str, Run]:
    """Active runs of the experiment by name."""
    client = MlflowClient(case.server.uri)
    experiment = client.get_experiment_by_name(case.server.experiment + suffix)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {str(run.info.run_name): run for run in found}


def points(case: Case, run: Run, key: str) -> list[tuple[int, float]]:
    history = MlflowClient(case.server.uri).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in history)


def expected(key: str) -> list[tuple[int, float]]:
    return [(round(line["step"]), line[key]) for line in HISTORY]


def model(case: Case) -> str:
    """Name of the registered model of the case's data set."""
    return f"{case.server.model}-{case.state.dataset}"


def contents(case: Case) -> Any:
    """Everything that MLflow holds of this experiment, in a fixed order."""
    client = MlflowClient(case.server.uri)
    logged = [
        (run.info, run.data.tags, run.data.params, [points(case, run, key) for key in run.data.metrics])
        for suffix in ("", "-teachers")
        for run in experiment_runs(case, suffix).values()
    ]
    versions = client.search_model_versions(f"name = '{model(case)}'")
    named = [(v.version, v.tags, v.aliases, v.last_updated_timestamp) for v in versions]
    return sorted(map(str, logged)), sorted(map(str, named))


@pytest.mark.parametrize(
    ("lost", "parts"),
    [("reference", ("+1.67 points vs teacher",)), ("-0.30 points", ("-0.30 points vs fp32", "2.07 as fast"))],
)
def test_the_answer_says_what_the_recommended_variant_loses(
    case: Case, lost: str, parts: tuple[str, ...]
) -> None:
    summary = {"recommendation": "ship this", "accuracy": "95.83 % (90 to 98)", "vs fp32": lost}
    summary |= {"latency": "1.40 ms", "size": "7.26 MB", "speed vs fp32": "2.07 (2.02 to 2.11)"}
    summary |= {"verdict": "accept", "vs parent": "+1.67 points (-2.36 to +6.38)"}
    text = track._answer(replace(case.variants[0], summary=summary), "teacher", "photos", "a reason")
    for part in parts:
        assert part in text
    assert "reference" not in text
    assert ("as fast" in text) == (lost != "reference")


def test_a_missing_dvc_lock_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(records.TrackingError, match=r"dvc\.lock"):
        records.dvc_outputs(tmp_path / "dvc.lock")


def test_a_state_is_one_parent_run_with_a_nested_run_per_variant_and_a_teacher_elsewhere(case: Case) -> None:
    parent, new = runs.track(*case)
    found = experiment_runs(case)
    assert new == ["fp32", "int8"]
    assert set(found) == {"colours aaaaaaa", "fp32", "int8"}
    assert set(experiment_runs(case, "-teachers")) == {"teacher"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for made in case.variants:
        child = found[made.run.name]
        assert child.data.tags["mlflow.parentRunId"] == parent
        assert child.data.tags["verdict"] == "accept"
        assert made.metrics.items() <= child.data.metrics.items()
        assert child.data.params["build.objective.kl"] == "1.0"
        assert points(case, child, "training/loss") == expected("loss")


def test_the_parent_holds_report_parameters_hashes_and_links(case: Case) -> None:
    parent, _ = runs.track(*case)
    client = MlflowClient(case.server.uri)
    run, found = client.get_run(parent), experiment_runs(case)
    assert (run.data.params["seed"], run.data.params["data.val"]) == ("3", "0.1")
    assert run.data.tags["dvc.artifacts/data"] == "d41d"
    assert run.data.tags["champion"] == "int8"
    assert json.loads(run.data.tags["runs"]) == {name: found[name].info.run_id for name in ("fp32", "int8")}
    assert (
        f"#/experiments/{run.info.experiment_id}/runs/{found['int8'].info.run_id}"
        in run.data.tags[records.NOTE]
    )
    assert [file.path for file in client.list_artifacts(parent, "report")] == ["report/variants.csv"]
    assert run.inputs is not None
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["photographs"]


def test_tracking_again_changes_nothing(case: Case) -> None:
    first, _ = runs.track(*case)
    before = contents(case)
    for _ in range(2):
        assert runs.track(*case) == (first, [])
    assert contents(case) == before


def test_a_changed_variant_makes_a_new_parent_run_with_one_nested_run_and_links_the_others(
    case: Case, tmp_path: Path
) -> None:
    first, _ = runs.track(*case)
    fp32 = experiment_runs(case)["fp32"].info.run_id
    changed = [case.variants[0], exported(tmp_path, case.server.experiment, "int8", seed=1)]
    state = replace(case.state, sha256="b" * 64)
    second, new = runs.track(state, case.teacher, changed, case.server)
    client = MlflowClient(case.server.uri)
    tags = client.get_run(second).data.tags
    assert second != first
    assert new == ["int8"]
    linked = json.loads(tags["runs"])
    assert linked["fp32"] == fp32
    assert client.get_run(fp32).data.tags["mlflow.parentRunId"] == first
    assert client.get_run(linked["int8"]).data.tags["mlflow.parentRunId"] == second
    assert "an earlier run" in tags[records.NOTE]
    assert len(experiment_runs(case, "-teachers")) == 1


def test_a_linked_variant_gets_the_latest_benchmark_and_verdict_and_no_other_point(case: Case) -> None:
    runs.track(*case)
    fp32, int8 = case.variants
    metrics = {**int8.metrics, "latency_ms": 3.0}
    again = replace(int8, metrics=metrics, tags={**int8.tags, "verdict": "reject"}, accepted=False)
    runs.track(replace(case.state, sha256="b" * 64), case.teacher, [fp32, again], case.server)
    client = MlflowClient(case.server.uri)
    run = experiment_runs(case)["int8"]
    assert run.data.tags["verdict"] == "reject"
    assert points(case, run, "latency_ms") == [(0, 2.5), (1, 3.0)]
    assert len(points(case, run, "accuracy_percent")) == 1
    [version] = client.search_model_versions(f"name = '{model(case)}' and tag.variant = 'int8'")
    assert version.tags["verdict"] == "reject"


def test_a_removed_variant_is_not_in_the_new_parent_run(case: Case) -> None:
    runs.track(*case)
    state = replace(case.state, sha256="b" * 64, champion="fp32")
    parent, new = runs.track(state, case.teacher, case.variants[:1], case.server)
    tags = MlflowClient(case.server.uri).get_run(parent).data.tags
    assert new == []
    assert list(json.loads(tags["runs"])) == ["fp32"]
    assert "int8" not in tags[records.NOTE].replace(case.state.reason, "").replace(state.answer, "")


def test_accepted_variants_are_versions_and_the_budget_selects_the_champion(case: Case) -> None:
    rejected = replace(case.variants[0], accepted=False)
    runs.track(case.state, case.teacher, [rejected, case.variants[1]], case.server)
    client, name = MlflowClient(case.server.uri), model(case)
    [version] = client.search_model_versions(f"name = '{name}'")
    assert version.tags["variant"] == "int8"
    assert version.tags["sha256"] == case.variants[1].artifact
    assert str(version.description).endswith("# The card of int8")
    assert version.tags["dataset"] == "photographs dddddddd"
    assert version.tags["data_sha256"] == case.state.data["data_sha256"]
    assert (version.tags["teacher"], version.tags["budget"]) == ("a teacher", "no limit")
    assert client.get_model_version_by_alias(name, "champion").version == version.version
    # The gate accepts both now, and the budget selects the other one.
    runs.track(replace(case.state, champion="fp32"), case.teacher, case.variants, case.server)
    assert client.get_model_version_by_alias(name, "champion").tags["variant"] == "fp32"
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    runs.track(replace(case.state, champion=None), case.teacher, case.variants, case.server)
    assert client.get_registered_model(name).aliases == {}


def test_each_data_set_has_a_champion_that_no_other_data_removes_or_outranks(
    case: Case, tmp_path: Path
) -> None:
    runs.track(*case)
    client = MlflowClient(case.server.uri)
    before = client.get_model_version_by_alias(model(case), "champion")
    others = {
        model(case).replace("photographs", "flowers"): tracked.other_data(
            case, tmp_path, "flowers", "e" * 64
        ),
        f"{model(case)}-{'f' * 8}": tracked.other_data(case, tmp_path, "photographs", "f" * 64),
    }
    for name, other in others.items():
        runs.track(*other)
        champion = client.get_model_version_by_alias(name, "champion")
        assert champion.tags["sha256"] == other.variants[0].artifact
        assert champion.tags["data_sha256"] == other.state.data["data_sha256"]
        nothing = replace(other.state, sha256="9" * 64, champion=None)
        rejected = [replace(variant, accepted=False) for variant in other.variants]
        runs.track(nothing, other.teacher, rejected, other.server)
        assert client.get_registered_model(name).aliases == {}
    after = client.get_model_version_by_alias(model(case), "champion")
    assert (after.version, after.tags) == (before.version, before.tags)


def test_a_variant_with_a_rejected_ancestor_is_no_version_although_its_own_step_is_accepted(
    case: Case,
) -> None:
    rejected = replace(case.variants[0], verdict="reject", accepted=False)
    child = replace(case.variants[1], verdict="accept", accepted=False)
    runs.track(replace(case.state, champion=None), case.teacher, [rejected, child], case.server)
    client = MlflowClient(case.server.uri)
    assert client.search_model_versions(f"name = '{model(case)}'") == []


def view(case: Case) -> dict[str, Any]:
    """The state of the page that the saved view of the case's data set holds."""
    experiment = MlflowClient(case.server.uri).get_experiment_by_name(case.server.experiment)
    assert experiment is not None
    return json.loads(json.loads(experiment.tags["mlflow.sharedViewState.photographs-dddddddd"])["state"])


def test_the_saved_view_has_the_latest_variants_with_figures_first_and_what_differs_next(
    case: Case, tmp_path: Path
) -> None:
    runs.track(*case)
    columns = view(case)["selectedColumns"]
    assert columns == ["tags.`recommendation`", "tags.`accuracy`"]
    changed = [case.variants[0], exported(tmp_path, case.server.experiment, "int8", seed=1)]
    parent, _ = runs.track(replace(case.state, sha256="b" * 64), case.teacher, changed, case.server)
    page, client = view(case), MlflowClient(case.server.uri)
    assert page["selectedColumns"] == [*columns, "params.`build.epochs`"]
    axes = [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in page["compareRunCharts"]]
    assert axes == [("latency_ms", "accuracy_percent"), ("size_mb", "accuracy_percent")]
    run = client.get_run(parent)
    shown = client.search_runs([run.info.experiment_id], page["searchFilter"])
    linked = json.loads(run.data.tags["runs"])
    assert {one.info.run_id for one in shown} == set(linked.values())
    assert page["runsPinned"] == [linked["int8"]]
    assert views.path(run).startswith(
        f"#/experiments/{run.info.experiment_id}/runs?workflowType=machine_lear"
    )
    assert "viewStateShareKey=photographs-dddddddd" in views.path(run)


def test_the_experiment_says_what_to_ship_for_each_data_set_and_keeps_what_somebody_wrote(
    case: Case, tmp_path: Path
) -> None:
    def note() -> str:
        experiment = client.get_experiment_by_name(case.server.experiment)
        assert experiment is not None
        return experiment.tags[records.NOTE]

    client = MlflowClient(case.server.uri)
    runs.track(*case)
    runs.track(*tracked.other_data(case, tmp_path, "flowers", "e" * 64))
    assert note().startswith("**Ship fp32** (flowers)")
    assert case.state.answer in note()
    experiment = client.get_experiment_by_name(case.server.experiment)
    assert experiment is not None
    client.set_experiment_tag(experiment.experiment_id, records.NOTE, "my own words")
    runs.track(*case)
    assert note() == "my own words"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_link_opens_a_page_that_says_what_to_ship_above_the_fold(case: Case, tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        parent, _ = runs.track(*case[:3], replace(case.server, uri=server.uri))
        run = MlflowClient(server.uri).get_run(parent)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(120_000)
            page.goto(f"{server.uri}/{views.path(run)}")
            for text in ("Ship int8", *case.variants[0].summary, case.variants[0].summary["accuracy"]):
                found = page.get_by_text(text, exact=text in case.variants[0].summary).first
                found.wait_for()
                box = found.bounding_box()
                assert box is not None
                assert box["y"] + box["height"] < 900
                assert box["x"] + box["width"] < 1440
            assert page.locator(".ag-pinned-left-cols-container [role=row]").count() == 2
            page.goto(f"{server.uri}/{views.path(run, charts=True)}")
            page.locator(".scatterlayer .point").first.wait_for()
            assert page.get_by_text("accuracy_percent", exact=True).count() >= 2
            browser.close()
    finally:
        server.kill()


def test_metrics_at_the_top_are_few_and_all_others_are_in_groups(case: Case) -> None:
    runs.track(*case)
    keys = {key for run in experiment_runs(case).values() for key in run.data.metrics}
    assert {key for key in keys if "/" not in key} == {
        "accuracy_percent",
        "latency_ms",
        "size_mb",
        "teacher_accuracy_percent",
    }
    assert {key.partition("/")[0] for key in keys if "/" in key} <= {"training", "system"}


def test_a_model_has_the_name_and_the_card_of_its_variant(case: Case) -> None:
    runs.track(*case)
    client, found = MlflowClient(case.server.uri), experiment_runs(case)
    models = client.search_logged_models([found["fp32"].info.experiment_id])
    assert {logged.name for logged in models} == {"fp32", "int8"}
    for name in ("fp32", "int8"):
        address = f"{found[name].info.artifact_uri}/model_card.md"
        assert artifacts.load_text(address) == f"# The card of {name}"


def test_the_logged_model_is_the_shipped_file_and_takes_pixels_and_photographs(case: Case) -> None:
    runs.track(*case)
    client, name = MlflowClient(case.server.uri), model(case)
    source = client.get_model_version_by_alias(name, "champion").source
    folder = Path(artifacts.download_artifacts(source, tracking_uri=case.server.uri))
    file = case.variants[1].file
    assert (folder / "data" / file.name).read_bytes() == file.read_bytes()
    requirements = (folder / "requirements.txt").read_text()
    assert "onnxruntime==" in requirements
    assert "torch" not in requirements
    images = np.zeros((2, tiny_onnx.SIZE, tiny_onnx.SIZE, 3), dtype=np.uint8)
    images[0, :, :, 2] = images[1, :, :, 1] = 255
    answers = pyfunc.load_model(str(folder)).predict(images, params={"top": 1})
    assert [[guess["label"] for guess in answer["classes"]] for answer in answers] == [["blue"], ["green"]]


@pytest.mark.parametrize(
    ("module", "step", "call"),
    [
        (tracking_client, "log_params", 2),
        (tracking_client, "log_model", 2),
        (tracking_client, "log_metrics", 2),
        (registry, "register", 1),
    ],
)
def test_what_a_killed_process_left_is_completed(
    case: Case, monkeypatch: pytest.MonkeyPatch, module: Any, step: str, call: int
) -> None:
    original = getattr(module, step)
    calls: list[None] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(module, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.track(*case)
    runs.track(*case)
    found = experiment_runs(case)
    assert set(found) == {"colours aaaaaaa", "fp32", "int8"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    client = MlflowClient(case.server.uri)
    models = client.search_logged_models([found["fp32"].info.experiment_id])
    assert sorted(str(model.source_run_id) for model in models) == sorted(
        found[name].info.run_id for name in ("fp32", "int8")
    )
    for name in ("fp32", "int8"):
        assert points(case, found[name], "training/loss") == expected("loss")
        assert len(points(case, found[name], "accuracy_percent")) == 1


class Follower:
    """A training that is followed, epoch by epoch."""

    def __init__(self, case: Case, server: TrackingServer | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self.done = True
        arguments = (case.variants[0].run, lambda: self.lines, self.ended, server or case.server)
        self.thread = threading.Thread(
            target=live.follow, args=arguments, kwargs={"finished": lambda: self.done}, daemon=True
        )
        self.thread.start()

    def end(self) -> None:
        self.ended.set()
        self.thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(live, "SAMPLE_SECONDS", 1)


def shown(case: Case) -> list[tuple[int, float]]:
    found = MlflowClient(case.server.uri).get_experiment_by_name(case.server.experiment)
    run = experiment_runs(case).get("fp32") if found else None
    return [] if run is None else points(case, run, "training/loss")


def test_epochs_appear_while_the_training_goes_on_and_tracking_continues_the_same_run(case: Case) -> None:
    follower = Follower(case)
    until(lambda: runs_there(case))
    followed = experiment_runs(case)
    assert followed["fp32"].info.status == "RUNNING"
    assert followed["fp32"].data.tags[records.NOTE] == live.NOTES["RUNNING"]
    assert followed["fp32"].data.tags["mlflow.parentRunId"] == followed[unfinished.NAME].info.run_id
    follower.lines = HISTORY[:1]
    until(lambda: shown(case) == expected("loss")[:1])
    follower.lines = HISTORY[:2]
    until(lambda: shown(case) == expected("loss")[:2])
    until(lambda: any(key.startswith("system/") for key in experiment_runs(case)["fp32"].data.metrics))
    # The last epoch is missed: the checkpoint is gone.
    follower.lines = []
    follower.end()
    followed = experiment_runs(case)["fp32"].info
    assert followed.status == "FINISHED"
    runs.track(*case)
    assert experiment_runs(case)["fp32"].info.run_id == followed.run_id
    assert shown(case) == expected("loss")
    assert unfinished.NAME not in experiment_runs(case)


def runs_there(case: Case) -> bool:
    experiment = MlflowClient(case.server.uri).get_experiment_by_name(case.server.experiment)
    return experiment is not None and "fp32" in experiment_runs(case)


def test_a_training_that_was_killed_and_resumes_continues_the_same_run(case: Case) -> None:
    follower = Follower(case)
    follower.done, follower.lines = False, HISTORY[:1]
    until(lambda: shown(case) == expected("loss")[:1])
    follower.end()
    killed = experiment_runs(case)["fp32"].info
    assert killed.status == "KILLED"
    assert experiment_runs(case)["fp32"].data.tags[records.NOTE] == live.NOTES["KILLED"]
    follower = Follower(case)
    follower.lines = HISTORY
    until(lambda: shown(case) == expected("loss"))
    follower.end()
    assert experiment_runs(case)["fp32"].info.run_id == killed.run_id
    assert experiment_runs(case)["fp32"].info.status == "FINISHED"


def test_another_training_with_the_same_settings_has_its_own_run(case: Case) -> None:
    first = Follower(case)
    first.lines = HISTORY[:2]
    until(lambda: shown(case) == expected("loss")[:2])
    first.end()
    other = [{**line, "loss": line["loss"] + 1} for line in HISTORY]
    runs.track(case.state, case.teacher, [replace(case.variants[0], history=other)], case.server)
    client = MlflowClient(case.server.uri)
    experiment = client.get_experiment_by_name(case.server.experiment)
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], "tags.variant = 'fp32'")) == 2


def test_a_training_goes_on_without_a_server(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    attempts: list[TrackingServer] = []
    connect = tracking_client.connect

    def counted(server: TrackingServer) -> Any:
        attempts.append(server)
        return connect(server)

    with monkeypatch.context() as patched:
        patched.setattr(tracking_client, "connect", counted)
        follower = Follower(case, TrackingServer("http://127.0.0.1:9", "nowhere", Path()))
        follower.lines = HISTORY
        until(lambda: len(attempts) > 2)
        follower.end()
    runs.track(*case)
    assert shown(case) == expected("loss")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_killed_during_training_has_every_point_once_afterwards(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    server = Server(tmp_path)
    case = case._replace(server=replace(case.server, uri=server.uri))
    try:
        follower = Follower(case)
        follower.lines = HISTORY[:1]
        until(lambda: shown(case) == expected("loss")[:1])
        until(lambda: any(key.startswith("system/") for key in experiment_runs(case)["fp32"].data.metrics))
        server.kill()
        follower.lines = HISTORY[:2]
        time.sleep(3)
        assert follower.thread.is_alive()
        server.start()
        # It is told what it missed as soon as it is there again, while the training goes on.
        until(lambda: shown(case) == expected("loss")[:2])
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
    runs.track(case.state, replace(case.teacher, history=parts), case.variants, case.server)
    teacher = experiment_runs(case, "-teachers")["teacher"]
    assert points(case, teacher, "training/loss") == [(10, 1.0), (20, 0.5), (30, 5.0)]


def test_a_relative_database_lies_in_the_home_folder(tmp_path: Path) -> None:
    relative, absolute = (
        TrackingServer(f"sqlite:///{path}", "an experiment", tmp_path)
        for path in ("mlflow.db", "/var/mlflow.db")
    )
    assert relative.address() == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute.address() == "sqlite:////var/mlflow.db"


def test_the_environment_takes_precedence_over_the_configured_server(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", case.server.uri)
    runs.track(*case[:3], replace(case.server, uri="http://127.0.0.1:9"))
    assert len(experiment_runs(case)) == 3


def test_a_call_does_not_depend_on_the_server_of_an_earlier_call(case: Case) -> None:
    elsewhere = replace(case.server, uri="sqlite:///other.db")
    runs.track(*case[:3], elsewhere)
    runs.track(*case)
    other = case._replace(server=replace(case.server, uri=elsewhere.address()))
    assert len(experiment_runs(other)) == len(experiment_runs(case)) == 3


def test_a_server_that_does_not_answer_is_one_line(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"^MLflow at http://127\.0\.0\.1:9: .+") as caught:
        runs.track(*case[:3], replace(case.server, uri="http://127.0.0.1:9"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["/Shared/birds: old?", 'Bob\'s "birds" 50%', "\\ü; #@ `x` or '1'='1"],
    ids=["slashes", "quotes", "others"],
)
def test_an_experiment_has_the_name_that_it_is_given_and_the_model_one_that_mlflow_allows(
    case: Case, name: str
) -> None:
    server, state = replace(case.server, experiment=name), replace(case.state, dataset=name)
    runs.track(state, *case[1:3], server)
    assert runs.track(state, *case[1:3], server)[1] == []
    client = MlflowClient(server.uri)
    assert client.get_experiment_by_name(name) is not None
    registered = f"{server.model}-{state.data_slug}"
    version = client.get_model_version_by_alias(registered, "champion")
    assert version.tags["variant"] == "int8"
    models = [m for m in client.search_registered_models() if m.name == registered]
    assert "models:/" in str(models[0].description)
    loaded = artifacts.download_artifacts(f"models:/{registered}@champion", tracking_uri=server.uri)
    assert Path(loaded).is_dir()


def test_a_disk_that_is_full_in_the_middle_is_one_line_and_the_rest_follows_later(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "full.db"
    server = replace(case.server, uri=f"sqlite:///{file}")
    with tracking_client.connect(server):
        pass
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(TrackingError, match="disk") as caught:
            runs.track(*case[:3], server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "Traceback" not in capfd.readouterr().err
    runs.track(*case[:3], server)
    assert len(experiment_runs(case._replace(server=server))) == 3


def test_a_deleted_experiment_is_named(case: Case) -> None:
    runs.track(*case)
    client = MlflowClient(case.server.uri)
    experiment = client.get_experiment_by_name(case.server.experiment)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(TrackingError, match=case.server.experiment):
        runs.track(*case)


def test_an_invalid_address_is_named(case: Case, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    for uri, named in (
        (f"sqlite:///{tmp_path}/a_file/mlflow.db", f"{tmp_path}/a_file"),
        ("ftp://example.invalid", "ftp://example.invalid"),
    ):
        with pytest.raises(TrackingError, match=named):
            runs.track(*case[:3], replace(case.server, uri=uri))
