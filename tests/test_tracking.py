import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient, artifacts, pyfunc
from mlflow.entities import Run

from pipeline import tracking
from pipeline.report import tables
from pipeline.report.tables import Entry
from pipeline.tracking import State, TrackingError
from tests import tiny_onnx
from tests.results import results


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fresh database takes seconds, so that these tests share one; each has its own experiment."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def book(tmp_path: Path, uri: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of ``track`` for two variants."""
    entries, teacher, labels = results(variants=("fp32", "int8"))
    files = {entry.variant: tiny_onnx.write(tmp_path / f"{entry.variant}.onnx") for entry in entries}
    entries = [_with_hash(entry, files[entry.variant]) for entry in entries]
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "variants.csv").write_text("variant\n")
    state = State(
        name="colours",
        sha256="a" * 64,
        git_commit="c0ffee",
        parameters={"seed": 3, "data": {"source": "folder", "val": 0.1}},
        data={"source": "folder", "path": "photographs", "data_sha256": "d" * 64},
        teacher={"origin": "a teacher", "metric": "top1", "test": {"top1": 0.9}, "val": {"top1": 0.95}},
        folders={"report": tmp_path / "report"},
    )
    return {
        "state": state,
        "table": tables.rows(entries, teacher=teacher, labels=labels, max_drop=0.02),
        "entries": entries,
        "onnx_files": files,
        "uri": uri,
        "experiment": request.node.name,
        "artifacts": tmp_path / "mlartifacts",
    }


def _with_hash(entry: Entry, file: Path) -> Entry:
    return replace(entry, scores={**entry.scores, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()})


def runs(book: dict[str, Any]) -> dict[str, Run]:
    """Active runs of the book's experiment by name."""
    client = MlflowClient(book["uri"])
    experiment = client.get_experiment_by_name(book["experiment"])
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {str(run.info.run_name): run for run in found}


def test_one_child_run_for_each_variant_holds_its_figures(book: dict[str, Any]) -> None:
    parent, new = tracking.track(**book)
    found = runs(book)
    assert new
    assert set(found) == {"colours aaaaaaa", "fp32", "int8"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for row in book["table"]:
        child = found[row.variant]
        assert child.data.tags["mlflow.parentRunId"] == parent
        assert child.data.tags["verdict"] == row.verdict
        assert child.data.tags["sha256"] == row.sha256
        assert child.data.metrics["top1"] == row.score
        assert child.data.metrics["size_bytes"] == row.size_bytes
        assert child.data.metrics["latency_ratio_to_fp32"] == row.latency_ratio_to_fp32
        assert child.data.params["op"] == row.op
        assert child.data.params["training.epochs"] == "3"


def test_training_curves_keep_their_steps(book: dict[str, Any]) -> None:
    tracking.track(**book)
    curve = MlflowClient(book["uri"]).get_metric_history(runs(book)["fp32"].info.run_id, "training/loss")
    history = book["entries"][0].history
    assert len(history) > 1
    assert [(point.step, point.value) for point in curve] == [
        (line["step"], line["loss"]) for line in history
    ]


def test_the_logged_model_is_the_shipped_file_and_classifies(book: dict[str, Any]) -> None:
    tracking.track(**book)
    model = f"runs:/{runs(book)['int8'].info.run_id}/model"
    folder = Path(artifacts.download_artifacts(model, tracking_uri=book["uri"]))
    assert (folder / "model.onnx").read_bytes() == book["onnx_files"]["int8"].read_bytes()
    requirements = (folder / "requirements.txt").read_text()
    assert "onnxruntime==" in requirements
    assert "torch" not in requirements
    images = np.zeros((2, tiny_onnx.SIZE, tiny_onnx.SIZE, 3), dtype=np.uint8)
    images[0, :, :, 2] = images[1, :, :, 1] = 255
    logits = pyfunc.load_model(str(folder)).predict({"images": images})["logits"]
    assert logits.argmax(axis=1).tolist() == [2, 1]


def test_the_parent_holds_report_parameters_and_teacher(book: dict[str, Any]) -> None:
    parent, _ = tracking.track(**book)
    client = MlflowClient(book["uri"])
    data = client.get_run(parent).data
    assert (data.params["seed"], data.params["data.val"]) == ("3", "0.1")
    assert (data.tags["git_commit"], data.tags["teacher"]) == ("c0ffee", "a teacher")
    assert data.metrics["teacher_top1"] == 0.9
    assert [file.path for file in client.list_artifacts(parent, "report")] == ["report/variants.csv"]
    assert list(book["artifacts"].rglob("variants.csv"))


def test_the_same_state_is_logged_once_and_another_state_beside_it(book: dict[str, Any]) -> None:
    first = tracking.track(**book)
    before = {run.info.run_id for run in runs(book).values()}
    assert tracking.track(**book) == (first[0], False)
    assert {run.info.run_id for run in runs(book).values()} == before
    other = replace(book["state"], sha256="b" * 64)
    second, new = tracking.track(**{**book, "state": other})
    assert new
    assert second != first[0]


def test_what_a_killed_process_left_is_removed_and_made_anew(
    book: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    log_model, logged = tracking._log_model, []

    def killed_at_the_second(run_id: str, row: tables.Row, file: Path) -> str:
        if logged:
            raise KeyboardInterrupt
        logged.append(log_model(run_id, row, file))
        return logged[0]

    monkeypatch.setattr(tracking, "_log_model", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        tracking.track(**book)
    left = {run.info.run_id for run in runs(book).values()}
    assert len(left) == 3
    monkeypatch.setattr(tracking, "_log_model", log_model)
    _, new = tracking.track(**book)
    found = runs(book)
    assert new
    assert set(found) == {"colours aaaaaaa", "fp32", "int8"}
    assert left.isdisjoint(run.info.run_id for run in found.values())
    client = MlflowClient(book["uri"])
    models = client.search_logged_models([found["fp32"].info.experiment_id])
    assert {model.source_run_id for model in models} == {found["fp32"].info.run_id, found["int8"].info.run_id}


def test_the_environment_goes_before_the_configured_server(
    book: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", book["uri"])
    tracking.track(**{**book, "uri": "http://127.0.0.1:9"})
    assert len(runs(book)) == 3


def test_a_later_call_is_not_bound_to_an_earlier_server(book: dict[str, Any], tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{tmp_path / 'other.db'}"
    tracking.track(**{**book, "uri": elsewhere})
    tracking.track(**book)
    assert len(runs({**book, "uri": elsewhere})) == len(runs(book)) == 3


def test_a_server_that_does_not_answer_is_one_clear_line(
    book: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"^MLflow at http://127\.0\.0\.1:9: .+") as caught:
        tracking.track(**{**book, "uri": "http://127.0.0.1:9"})
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_is_named(book: dict[str, Any]) -> None:
    tracking.track(**book)
    client = MlflowClient(book["uri"])
    experiment = client.get_experiment_by_name(book["experiment"])
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(TrackingError, match=f"experiment {book['experiment']} was deleted"):
        tracking.track(**book)


def test_an_address_that_cannot_be_used_is_named(book: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    for uri in (f"sqlite:///{tmp_path}/a_file/mlflow.db", "ftp://example.invalid"):
        with pytest.raises(TrackingError, match=uri):
            tracking.track(**{**book, "uri": uri})
