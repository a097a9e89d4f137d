"""Writing to MLflow. This is the only module that imports it.

All functions add what is missing and leave the rest alone, so that interrupted work is completed by repeating
it.
"""

import json
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

# MLflow reads this when it is imported: it sends no usage data unless asked to.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow import MlflowClient, MlflowException
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.models import Model, ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.types import ParamSchema, ParamSpec
from mlflow.utils.time import get_current_time_millis
from sqlalchemy.exc import SQLAlchemyError

from pipeline import pixels
from pipeline.tracking import addresses, database, patience, serving
from pipeline.tracking.records import (
    ARTIFACT,
    NOTE,
    STATE,
    URI_VARIABLE,
    VARIANT,
    ExportedFile,
    RunRecord,
    TrackingError,
    TrackingServer,
    UnreachableError,
)

TRAINING = "training/"
"""Prefix of the metrics that have one point per epoch."""

BATCH = 100
"""Number of parameters, tags or metrics per request; MLflow accepts no more parameters or tags at once."""

MODEL_NAME = r"""[/:.%"']"""
"""Characters that the name of a logged model must not have."""

SERVING_PACKAGES = ("onnxruntime", "numpy", "pillow")
"""Packages that a logged model needs where it is served."""

LONGEST_MESSAGE = 300
"""Number of characters of a server's answer that an error shows."""

Point = tuple[str, int]
"""Key and step of a metric."""


@contextmanager
def connect(server: TrackingServer) -> Iterator[MlflowClient]:
    """Direct MLflow to a server while the block runs.

    MLflow keeps the address in the environment, which is restored afterwards.

    Raises:
        TrackingError: the server cannot be reached or refuses a request.
    """
    configured, address = os.environ.get(URI_VARIABLE), server.address()
    file = make_ready(server)
    mlflow.set_tracking_uri(address)
    try:
        client = MlflowClient()
        if file is None:
            _greet(client, address)
        yield client
    except TrackingError:
        raise
    except (MlflowException, OSError, ModuleNotFoundError, SQLAlchemyError) as error:
        if file is not None:
            raise TrackingError(f"MLflow: {database.explain(file, error)}") from error
        raise UnreachableError(
            f"MLflow at {address}: {_short(_cause(database.reason(error)))}",
            passing=re.search("failed with (timeout )?exception", str(error)) is not None,
        ) from error
    finally:
        if configured is None:
            os.environ.pop(URI_VARIABLE, None)
        else:
            os.environ[URI_VARIABLE] = configured


def make_ready(server: TrackingServer) -> Path | None:
    """Make the file of a SQLite database whole if there is none, and return its path; None for a server.

    Raises:
        TrackingError: the database cannot be used.
    """
    _silence()
    file = addresses.database(server.address())
    if file is not None:
        database.prepare(file, _make_database)
    return file


def _greet(client: MlflowClient, address: str) -> None:
    """Ask a server something that MLflow can answer, before anything is written to it."""
    try:
        default = client.get_experiment_by_name("Default")
        nameless = default is not None and not default.experiment_id
        unlike = "an experiment without an id" if nameless else None
    except (MlflowException, OSError, ModuleNotFoundError, SQLAlchemyError):
        raise
    # The answer of another kind of server fails wherever MLflow reads it.
    except Exception as error:
        unlike = f"{type(error).__name__}: {error}"
    if unlike is not None:
        raise UnreachableError(f"MLflow at {address}: the answer is not one of MLflow ({_short(unlike)})")


def _make_database(file: Path) -> None:
    address = f"{addresses.SQLITE}{file}"
    # The first question makes all tables.
    MlflowClient(address, address).search_experiments(max_results=1)


def open_experiment(client: MlflowClient, server: TrackingServer, name: str, description: str) -> str:
    """Return the id of an experiment, which is created if it does not exist.

    Raises:
        TrackingError: the experiment was deleted in MLflow.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = mlflow.get_tracking_uri().startswith("sqlite")
        files = (server.home / "mlartifacts").resolve().as_uri() if local else None
        # Without the kind, MLflow shows the experiment on its pages for language models.
        tags = {"mlflow.experimentKind": "custom_model_development", NOTE: description}
        return client.create_experiment(name, artifact_location=files, tags=tags)
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name} was deleted in MLflow; restore it, or change `tracking.experiment`"
        )
    return experiment.experiment_id


def equals(key: str, value: str) -> str:
    """A condition of MLflow's search filters, which know two kinds of quotes and no way to escape one.

    Raises:
        TrackingError: the value has both kinds.
    """
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise TrackingError(f"{key} = {value!r}: MLflow cannot search for a value with both kinds of quotes")
    return f"{key} = {quote}{value}{quote}"


def find_run(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Run | None:
    """Return a run that has all these tags, if there is one."""
    condition = " and ".join(equals(f"tags.`{key}`", value) for key, value in tags.items())
    return next(iter(client.search_runs([experiment_id], condition)), None)


def find_unfinished_run(
    client: MlflowClient, experiment_id: str, record: RunRecord, history: Sequence[Mapping[str, Any]]
) -> Run | None:
    """Return the run that has recorded this very training so far, if there is one.

    It is not complete, all its parameters are those of the record, and each of its points is in the history.
    """
    params = flatten(record.params)
    losses = {(round(line["step"]), float(line["loss"])) for line in history}
    best, most = None, -1
    for run in client.search_runs([experiment_id], equals(f"tags.`{VARIANT}`", record.name)):
        if ARTIFACT in run.data.tags or not run.data.params.items() <= params.items():
            continue
        points = client.get_metric_history(run.info.run_id, f"{TRAINING}loss")
        if {(point.step, point.value) for point in points} <= losses and len(points) > most:
            best, most = run, len(points)
    return best


def create_run(
    client: MlflowClient, experiment_id: str, record: RunRecord, tags: Mapping[str, str] | None = None
) -> Run:
    """Create a run with the tags and parameters of the record, and further tags."""
    all_tags = {**record.tags, **(tags or {}), VARIANT: record.name}
    run = client.create_run(experiment_id, run_name=record.name, tags=all_tags)
    log_params(client, run.info.run_id, record.params)
    return run


def log_history(
    client: MlflowClient,
    run_id: str,
    history: Sequence[Mapping[str, Any]],
    logged: set[Point] | None = None,
) -> set[Point]:
    """Log the metrics of each epoch that are missing.

    Args:
        client: MLflow's client.
        run_id: id of the run.
        history: one line per epoch, with ``step``.
        logged: points that the server has; None to ask it.

    Returns:
        All points that the server has now.
    """
    values = {
        (f"{TRAINING}{key}", round(line["step"])): float(value)
        for line in history
        for key, value in line.items()
        if isinstance(value, int | float) and key != "step"
    }
    if logged is None:
        keys = {key for key, _ in values}
        logged = {(key, point.step) for key in keys for point in client.get_metric_history(run_id, key)}
    now = get_current_time_millis()
    missing = [
        Metric(key, value, now, step) for (key, step), value in values.items() if (key, step) not in logged
    ]
    for batch in _batches(missing):
        client.log_batch(run_id, metrics=batch)
    return logged | set(values)


def log_metrics(
    client: MlflowClient, run: Run, metrics: Mapping[str, float], model_id: str | None = None
) -> None:
    """Log the metrics that the run does not have; with the id of a model, for the table of models, too."""
    now, run_id = get_current_time_millis(), run.info.run_id
    missing = [
        Metric(key, value, now, 0, model_id=model_id, run_id=run_id if model_id else None)
        for key, value in metrics.items()
        if key not in run.data.metrics
    ]
    for batch in _batches(missing):
        client.log_batch(run_id, metrics=batch)


def update_metrics(client: MlflowClient, run: Run, metrics: Mapping[str, float]) -> None:
    """Add a point to each metric whose latest value differs."""
    now, run_id, changed = get_current_time_millis(), run.info.run_id, []
    for key, value in metrics.items():
        if run.data.metrics.get(key) != value:
            steps = [point.step for point in client.get_metric_history(run_id, key)]
            changed.append(Metric(key, value, now, max(steps, default=-1) + 1))
    for batch in _batches(changed):
        client.log_batch(run_id, metrics=batch)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Log nested parameters, with dots between the keys."""
    for batch in _batches([Param(key, value) for key, value in flatten(params).items()]):
        client.log_batch(run_id, params=batch)


def set_tags(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    """Set the tags that the run does not have or that have another value."""
    for batch in _batches(
        [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
    ):
        client.log_batch(run.info.run_id, tags=batch)


def log_dataset(client: MlflowClient, run: Run, name: str, data: Mapping[str, Any], context: str) -> None:
    """Log the data set as an input of a run that has none.

    Args:
        client: MLflow's client.
        run: the run.
        name: name of the data set.
        data: report on the data set.
        context: which part of the data set the run used.
    """
    if run.inputs and run.inputs.dataset_inputs:
        return
    # MLflow accepts digests of up to 36 characters.
    digest, source = data["data_sha256"][:16], json.dumps({"uri": str(data["path"])})
    dataset = Dataset(name, digest, "local", source, profile=json.dumps(data["images"]))
    client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])


def log_files(client: MlflowClient, run_id: str, files: Iterable[tuple[str, Path]]) -> None:
    """Log files and folders, each into its artifact folder."""
    for folder, path in files:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), folder)
        else:
            client.log_artifact(run_id, str(path), folder)


def log_model(client: MlflowClient, run: Run, exported: ExportedFile) -> str:
    """Log the ONNX file as a model that accepts photographs, unless the run has it; return the model's id."""
    experiment_id, run_id = run.info.experiment_id, run.info.run_id
    for model in _search_models(client, experiment_id, run_id):
        if model.status == LoggedModelStatus.READY:
            return model.model_id
        client.delete_logged_model(model.model_id)
    model = client.create_logged_model(
        experiment_id,
        name=re.sub(MODEL_NAME, "-", exported.run.name),
        source_run_id=run_id,
        tags={VARIANT: exported.run.name, "verdict": exported.verdict, "sha256": exported.artifact},
        params=flatten(exported.run.params),
    )
    Model.log(
        None,
        flavor=mlflow.pyfunc,
        run_id=run_id,
        model_id=model.model_id,
        loader_module=Path(serving.__file__).stem,
        code_paths=[serving.__file__, pixels.__file__],
        data_path=str(exported.file),
        # Without a schema of inputs: the model accepts photographs in base64 as well as arrays of pixels.
        signature=ModelSignature(params=ParamSchema([ParamSpec("top", "integer", 0)])),
        # Listed here, so that MLflow does not load the model in another process to infer them.
        pip_requirements=[f"{package}=={version(package)}" for package in SERVING_PACKAGES],
    )
    return model.model_id


def model_id(client: MlflowClient, run: Run) -> str:
    """Return the id of the model that was logged with a run."""
    return _search_models(client, run.info.experiment_id, run.info.run_id)[0].model_id


def find_parent(client: MlflowClient, run_id: str | None) -> Run | None:
    """Return the parent run of this id, or else the newest one, if there is any."""
    with suppress(MlflowException):
        return client.get_run(run_id or "")
    experiments = [found.experiment_id for found in client.search_experiments()]
    return next(iter(client.search_runs(experiments, f"tags.`{STATE}` != ''", max_results=1)), None)


def start_monitor(run_id: str, seconds: int) -> SystemMetricsMonitor:
    """Log the load of the machine to a run, once per interval, until ``finish`` is called."""
    monitor = SystemMetricsMonitor(run_id, seconds, resume_logging=True)
    monitor.start()
    return monitor


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one mapping to strings, with dots between the keys."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _search_models(client: MlflowClient, experiment_id: str, run_id: str) -> Sequence[LoggedModel]:
    return client.search_logged_models([experiment_id], equals("source_run_id", run_id))


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]


def _cause(text: str) -> str:
    """What went wrong with a request, without the addresses and classes that MLflow names around it."""
    cause = re.search(r"Caused by \w+\((.*)\)\)$", text)
    return cause.group(1).rpartition("): ")[2].strip("'\"") if cause else text


def _short(text: str) -> str:
    """The beginning of a message that may hold a whole page of HTML."""
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."


def _silence() -> None:
    """Keep MLflow's progress bars and advice out of the output of the stages, and its patience short."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # What it logs with a traceback, it raises, too, and one line says it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # By default, requests to a server that does not answer are repeated for many minutes.
    for name, value in patience.DEFAULTS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module="mlflow")
