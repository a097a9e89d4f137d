"""The variants in MLflow: a parent run for each state of the pipeline, a child run for each variant."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Read when mlflow is imported: a book of results sends no word about its reader unless asked to.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.models import ModelSignature
from mlflow.onnx import log_model
from mlflow.types import Schema, TensorSpec
from mlflow.utils.time import get_current_time_millis

from pipeline.report.tables import Entry, Row, column
from pipeline.tasks import METRICS

STATE = "distillery.state"
"""Tag of a parent run: the hash of all that its children were made from."""

URI_VARIABLE = "MLFLOW_TRACKING_URI"
PARENT_RUN = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
EXPERIMENT_TAGS = {
    # Without it, MLflow opens the experiment among its pages for language models.
    "mlflow.experimentKind": "custom_model_development",
    NOTE: (
        "Compressed classifiers. A run is one state of the pipeline; its children are the variants. "
        "Select children and press Compare."
    ),
}
FIGURES = (
    *("score", "score_lo", "score_hi", "score_delta", "delta_lo", "delta_hi", "mcnemar_p"),
    *("latency_ms_p50", "latency_ratio_to_fp32", "size_bytes", "parameters", "macs"),
)
METRICS_A_BATCH = 1000
"""MLflow takes no more at once."""


class TrackingError(Exception):
    """The tracking server cannot be used."""


@dataclass(frozen=True)
class State:
    """One state of the pipeline."""

    name: str
    """What the parent run is called."""
    sha256: str
    """Equal for equal files and parameters."""
    git_commit: str
    parameters: Mapping[str, Any]
    """All parameters, nested."""
    data: Mapping[str, Any]
    """The data report."""
    teacher: Mapping[str, Any]
    """The teacher's card."""
    folders: Mapping[str, Path]
    """Artifact folder to the folder that is logged there, on the parent."""


def track(
    state: State,
    table: Sequence[Row],
    entries: Sequence[Entry],
    onnx_files: Mapping[str, Path],
    *,
    uri: str,
    experiment: str,
    artifacts: Path,
) -> tuple[str, bool]:
    """Log a parent run and its children; a state that is there already is left as it is.

    A parent that was not finished, because the process was killed, is removed and made anew.

    Args:
        state: what is logged.
        table: figures of each variant.
        entries: what the figures were made of, in the same order.
        onnx_files: each variant's file.
        uri: tracking server or database; the variable ``MLFLOW_TRACKING_URI`` goes before.
        experiment: made where it does not exist.
        artifacts: where a database keeps files; a server has its own place.

    Returns:
        The parent's run id, and whether it is new.

    Raises:
        TrackingError: the server cannot be reached or refuses.
    """
    _quiet()
    with _server(uri) as address:
        try:
            client = MlflowClient()
            experiment_id = _experiment(
                client, experiment, artifacts if address.startswith("sqlite") else None
            )
            for run in client.search_runs([experiment_id], f"tags.`{STATE}` = '{state.sha256}'"):
                if run.info.status == "FINISHED":
                    return run.info.run_id, False
                _remove(client, experiment_id, run)
            run_name = f"{state.name} {state.sha256[:7]}"
            parent = client.create_run(experiment_id, run_name=run_name, tags=_parent_tags(state)).info.run_id
            _log_parent(client, parent, state, table)
            for row, entry in zip(table, entries, strict=True):
                _log_variant(client, experiment_id, parent, state, row, entry, onnx_files[row.variant])
            client.set_terminated(parent)
        except (mlflow.MlflowException, OSError, ModuleNotFoundError) as error:
            raise TrackingError(f"MLflow at {address}: {' '.join(str(error).split())}") from error
    return parent, True


@contextmanager
def _server(uri: str) -> Iterator[str]:
    """Where MLflow writes meanwhile; it keeps that in the environment, which is put back."""
    configured = os.environ.get(URI_VARIABLE)
    mlflow.set_tracking_uri(configured or uri)
    try:
        yield configured or uri
    finally:
        if configured is None:
            os.environ.pop(URI_VARIABLE, None)
        else:
            os.environ[URI_VARIABLE] = configured


def _experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if artifacts is None else artifacts.resolve().as_uri()
        return client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
    if found.lifecycle_stage != "active":
        raise TrackingError(f"experiment {name} was deleted in MLflow; restore it, or name another one")
    return found.experiment_id


def _remove(client: MlflowClient, experiment_id: str, parent: Run) -> None:
    """Delete a run with its children and their models."""
    for child in client.search_runs([experiment_id], f"tags.`{PARENT_RUN}` = '{parent.info.run_id}'"):
        models = client.search_logged_models([experiment_id], f"source_run_id = '{child.info.run_id}'")
        for model in models:
            client.delete_logged_model(model.model_id)
        client.delete_run(child.info.run_id)
    client.delete_run(parent.info.run_id)


def _source_tags(state: State) -> dict[str, str]:
    """What MLflow's own columns show of where a run came from."""
    return {
        "mlflow.source.name": "dvc repro",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": state.git_commit,
    }


def _parent_tags(state: State) -> dict[str, str]:
    return {
        **_source_tags(state),
        STATE: state.sha256,
        "git_commit": state.git_commit,
        "teacher": state.teacher["origin"],
        NOTE: "All variants of one state of the pipeline. Select the child runs and press Compare.",
    }


def _dataset(state: State, split: str) -> list[DatasetInput]:
    digest = state.data["data_sha256"]
    return [
        DatasetInput(
            # MLflow takes no digest longer than 36 characters.
            Dataset(state.data["source"], digest[:16], "local", json.dumps({"uri": state.data["path"]})),
            [InputTag("mlflow.data.context", split)],
        )
    ]


def _log_parent(client: MlflowClient, run_id: str, state: State, table: Sequence[Row]) -> None:
    now, metric = get_current_time_millis(), state.teacher["metric"]
    metrics = {
        f"teacher_{metric}": state.teacher["test"][metric],
        f"teacher_{metric}_val": state.teacher["val"][metric],
        "variants": len(table),
        "variants_accepted": sum(row.verdict == "accept" for row in table),
    }
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
        params=[Param(key, str(value)) for key, value in _flat(state.parameters).items()],
    )
    client.log_inputs(run_id, _dataset(state, "all splits"))
    for place, folder in state.folders.items():
        client.log_artifacts(run_id, str(folder), place)


def _log_variant(
    client: MlflowClient,
    experiment_id: str,
    parent: str,
    state: State,
    row: Row,
    entry: Entry,
    file: Path,
) -> None:
    figures = asdict(row)
    tags = {
        **_source_tags(state),
        PARENT_RUN: parent,
        "parent_variant": row.parent,
        "op": row.op,
        "verdict": row.verdict,
        "sha256": row.sha256,
        NOTE: _note(row),
    }
    run_id = client.create_run(experiment_id, run_name=row.variant, tags=tags).info.run_id
    now = get_current_time_millis()
    model_id = _log_model(run_id, row, file)
    # With the model's id, so that MLflow's table of models shows them too.
    metrics = [
        Metric(column(key, row.metric), figures[key], now, 0, model_id=model_id, run_id=run_id)
        for key in FIGURES
        if figures[key] is not None
    ]
    for line in entry.history:
        metrics += [
            Metric(f"training/{key}", float(value), now, round(line["step"]))
            for key, value in line.items()
            if isinstance(value, int | float) and key != "step"
        ]
    settings = {"variant": row.variant, "parent": row.parent, "op": row.op, **_flat(entry.settings)}
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in settings.items()])
    for first in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + METRICS_A_BATCH])
    client.log_inputs(run_id, _dataset(state, "test"))
    client.set_terminated(run_id)


def _note(row: Row) -> str:
    words = METRICS[row.metric].words
    return (
        f"**{row.op}** of {row.parent}, **{row.verdict}ed** by the gate: {words} {row.score:.2%}, "
        f"{100 * row.score_delta:+.2f} points against {row.parent} "
        f"(95 % interval {100 * row.delta_lo:+.2f} to {100 * row.delta_hi:+.2f})."
    )


def _log_model(run_id: str, row: Row, file: Path) -> str:
    """Log the shipped file as an MLflow model; returns the model's id."""
    model = onnx.load(file)
    images, logits = model.graph.input[0], model.graph.output[0]
    signature = ModelSignature(
        inputs=Schema([_tensor_spec(images, np.uint8)]), outputs=Schema([_tensor_spec(logits, np.float32)])
    )
    with mlflow.start_run(run_id=run_id):
        info = log_model(
            model,
            name="model",
            tags={"variant": row.variant, "verdict": row.verdict, "sha256": row.sha256},
            onnx_execution_providers=["CPUExecutionProvider"],
            signature=signature,
            # Named, so that MLflow need not load the model in another process to find them out.
            pip_requirements=[
                f"{package}=={version(package)}" for package in ("onnxruntime", "onnx", "numpy")
            ],
            save_as_external_data=False,
        )
    return info.model_id


def _tensor_spec(value: onnx.ValueInfoProto, kind: type[np.generic]) -> TensorSpec:
    shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
    return TensorSpec(np.dtype(kind), shape, value.name)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots between the keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _quiet() -> None:
    """MLflow's own progress and advice do not belong into a stage's output."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # The default asks a server that does not answer for many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    warnings.filterwarnings("ignore", module="mlflow")
