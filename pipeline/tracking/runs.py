"""The variants in MLflow: a run for each state of the pipeline and for each variant, and a registered model.

What is there already is left as it is and what is missing is added, so that a process killed at any moment,
or a server that was away, is made good by doing it all again.
"""

import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

# Read when mlflow is imported: a book of results sends no word about its reader unless asked to.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow import MlflowClient
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

from pipeline.errors import DistilleryError
from pipeline.models.histories import continued
from pipeline.selection.budget import TEACHER
from pipeline.tracking import serving

STATE = "distillery.state"
"""Tag of a parent run: the hash of all that DVC has of it."""
ARTIFACT = "distillery.artifact"
"""Tag of a child run: the hash of what it made. Set last, so that a run that has it is whole."""
VARIANT = "variant"
RUNS = "runs"
"""Tag of a parent run: each of its variants' runs, be it a child or linked."""
CHAMPION = "champion"
"""Alias of the version that the budget chooses, and tag of the parent run that says which variant it is."""

URI_VARIABLE = "MLFLOW_TRACKING_URI"
PARENT_RUN = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
VARIANTS = (
    "Compressed classifiers. A run is one state of the pipeline; its children are the variants, and its "
    "description lists them all, with those that were made for an earlier state."
)
TEACHERS = "Teachers, each adapted to its data once. Runs of the variants' experiment link here."
PAGES = "workflowType=machine_learning"
"""Keeps MLflow from showing its pages for language models."""
TRAINING = "training/"
BATCH = 100
"""MLflow takes no more params and tags at once, and a thousand metrics."""
DESCRIPTION = 4900
"""Characters of a version's description; MLflow's database takes 5,000."""
HEADLINES = ("top1", "map", "latency_ms_p50", "size_bytes")
"""Figures that a version of the registered model has as tags."""
SERVING_NEEDS = ("onnxruntime", "numpy", "pillow")
POLL_SECONDS = 1.0
SAMPLE_SECONDS = 5


class TrackingError(DistilleryError):
    """The tracking server cannot be used."""


@dataclass(frozen=True)
class Book:
    """Where MLflow writes."""

    uri: str
    """Tracking server or database; the variable ``MLFLOW_TRACKING_URI`` goes before."""
    experiment: str
    """Experiment of the variants, and name of the registered model; made where it does not exist."""
    home: Path
    """Folder that a relative SQLite path starts from, and that holds a database's ``mlartifacts``."""

    @property
    def teachers(self) -> str:
        """Experiment of the teachers, whose figures do not compare with the variants'."""
        return f"{self.experiment}-teachers"

    def address(self) -> str:
        """Where to write."""
        uri = os.environ.get(URI_VARIABLE) or self.uri
        path = uri.removeprefix("sqlite:///")
        relative = uri != path and not path.startswith("/")
        return f"sqlite:///{(self.home / path).resolve()}" if relative else uri


@dataclass(frozen=True)
class Training:
    """What a training run is known by while it goes on, and when it is done."""

    name: str
    """`teacher`, or the variant."""
    params: Mapping[str, Any]
    """Plain values, nested; runs of equal params are told apart by their histories."""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """A training, or another operation, and what came out of it."""

    training: Training
    artifact: str
    """Hash of what was made; a run of this hash is linked, not logged again."""
    figures: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    """One line per epoch: ``step``, ``epoch`` and figures; parts of one training start anew."""
    tags: Mapping[str, str]
    files: Sequence[tuple[str, Path]] = ()
    """Artifact folders, and the files or folders that are logged there."""


@dataclass(frozen=True)
class Shipped(Made):
    """A variant with its file and what the table says of it."""

    file: Path = Path()
    verdict: str = "reject"
    shown: Mapping[str, str] = field(default_factory=dict)
    """Heading to cell of the table in the parent's description."""


@dataclass(frozen=True)
class State:
    """One state of the pipeline."""

    name: str
    """What the parent run is called."""
    sha256: str
    """Equal for equal outputs of DVC's stages."""
    tags: Mapping[str, str]
    """Git commit, hashes of `dvc.lock`, and what else tells states apart."""
    parameters: Mapping[str, Any]
    """All parameters, nested."""
    data: Mapping[str, Any]
    """The data report."""
    figures: Mapping[str, float]
    """Of the state as a whole, and a few of each variant."""
    files: Sequence[tuple[str, Path]]
    """Artifact folders, and the files or folders that are logged there, on the parent."""
    champion: str | None
    """The variant that the budget chooses."""
    reason: str
    """Why, in one sentence."""
    card: str | None = None
    """Model card, in Markdown."""


def track(state: State, teacher: Made, variants: Sequence[Shipped], book: Book) -> tuple[str, list[str]]:
    """Log a state of the pipeline: a parent run, and a child run for each variant that has none yet.

    Variants that an earlier state has logged are linked: the parent's description and its tag `runs` name
    them, their runs stay where they are. Accepted variants become versions of the registered model.

    Returns:
        The parent's run id, and the variants that are newly logged.

    Raises:
        TrackingError: the server cannot be reached or refuses.
    """
    _quiet()
    with _server(book) as address:
        try:
            client = MlflowClient()
            experiment = _experiment(client, book.experiment, book, address)
            teachers = _experiment(client, book.teachers, book, address)
            teacher_run = _find(client, teachers, ARTIFACT, teacher.artifact)
            if teacher_run is None:
                teacher_run = _log_made(client, teachers, teacher, state, {})
            parent = _find(client, experiment, STATE, state.sha256)
            if parent is None:
                name = f"{state.name} {state.sha256[:7]}"
                parent = client.create_run(experiment, run_name=name, tags={STATE: state.sha256})
            runs, new = {}, []
            for made in variants:
                run = _find(client, experiment, ARTIFACT, made.artifact, made.training.name)
                if run is None:
                    parent_tag = {PARENT_RUN: parent.info.run_id}
                    run = _log_made(client, experiment, made, state, parent_tag)
                    new.append(made.training.name)
                else:
                    _renew(client, run, made)
                runs[made.training.name] = run
            models = {name: _model(client, experiment, run.info.run_id) for name, run in runs.items()}
            _log_parent(client, parent, state, teacher_run, variants, runs)
            _register(client, book.experiment, state, variants, runs, models)
        except (mlflow.MlflowException, OSError, ModuleNotFoundError) as error:
            raise TrackingError(f"MLflow at {address}: {' '.join(str(error).split())}") from error
    return parent.info.run_id, new


def follow(
    training: Training,
    history: Callable[[], Sequence[Mapping[str, Any]]],
    over: threading.Event,
    book: Book,
    *,
    finished: Callable[[], bool] = lambda: True,
) -> None:
    """Show a training while it goes on, epoch by epoch, with the machine's load; returns after ``over``.

    A server that does not answer is asked again each second; what it missed in the end is `track`'s to
    deliver. A run that was killed and goes on is the same run.

    Args:
        training: which one.
        history: its epochs so far.
        over: set when it has ended.
        book: where to write.
        finished: whether it came to its end, asked after ``over``.
    """
    _quiet()
    live: _Live | None = None
    last = False
    while not last:
        last = over.wait(POLL_SECONDS)
        try:
            with _server(book) as address:
                # Checkpoints are gone when the training is done.
                lines = continued(history()) or (live.lines if live is not None else [])
                if live is None or not live.tells(lines):
                    if live is not None:
                        live.close("KILLED")
                    live = _Live.open(training, lines, book, address)
                live.tell(lines)
                if last:
                    live.close("FINISHED" if finished() else "KILLED")
        # A database, a socket and MLflow each have their own errors; none of them is worth a training.
        except Exception:
            if live is not None:
                live.told = None


@dataclass
class _Live:
    """An open run of a training that goes on."""

    client: MlflowClient
    run_id: str
    monitor: SystemMetricsMonitor | None = None
    lines: Sequence[Mapping[str, Any]] = ()
    told: set[tuple[str, int]] | None = None
    """Points that the server has; None where it has to be asked."""

    @classmethod
    def open(
        cls,
        training: Training,
        lines: Sequence[Mapping[str, Any]],
        book: Book,
        address: str,
    ) -> "_Live":
        client = MlflowClient()
        experiment = book.teachers if training.name == TEACHER else book.experiment
        experiment_id = _experiment(client, experiment, book, address)
        run = _open_run(client, experiment_id, training, lines)
        if run is None:
            run = _create(client, experiment_id, training)
        else:
            client.update_run(run.info.run_id, status="RUNNING")
        return cls(client, run.info.run_id)

    def tells(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Whether these epochs go on from those told; else another training has begun."""
        return list(lines[: len(self.lines)]) == list(self.lines)

    def tell(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.told is None or len(lines) > len(self.lines):
            self.told = _deliver(self.client, self.run_id, lines, self.told)
            self.lines = list(lines)
        # It ends for good when the server is away for a moment.
        if not any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate()):
            self.client.get_run(self.run_id)
            self.monitor = SystemMetricsMonitor(self.run_id, SAMPLE_SECONDS, resume_logging=True)
            self.monitor.start()

    def close(self, status: str) -> None:
        if self.monitor is not None:
            self.monitor.finish()
        self.client.set_terminated(self.run_id, status)


@contextmanager
def _server(book: Book) -> Iterator[str]:
    """Where MLflow writes meanwhile; it keeps that in the environment, which is put back."""
    configured, address = os.environ.get(URI_VARIABLE), book.address()
    mlflow.set_tracking_uri(address)
    try:
        yield address
    finally:
        if configured is None:
            os.environ.pop(URI_VARIABLE, None)
        else:
            os.environ[URI_VARIABLE] = configured


def _experiment(client: MlflowClient, name: str, book: Book, address: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        files = (book.home / "mlartifacts").resolve().as_uri() if address.startswith("sqlite") else None
        tags = {
            # Without it, MLflow opens the experiment among its pages for language models.
            "mlflow.experimentKind": "custom_model_development",
            NOTE: TEACHERS if name == book.teachers else VARIANTS,
        }
        return client.create_experiment(name, artifact_location=files, tags=tags)
    if found.lifecycle_stage != "active":
        raise TrackingError(f"experiment {name} was deleted in MLflow; restore it, or name another one")
    return found.experiment_id


def _find(
    client: MlflowClient, experiment_id: str, tag: str, value: str, variant: str | None = None
) -> Run | None:
    wanted = f"tags.`{tag}` = '{value}'"
    if variant is not None:
        wanted += f" and tags.`{VARIANT}` = '{variant}'"
    return next(iter(client.search_runs([experiment_id], wanted)), None)


def _open_run(
    client: MlflowClient,
    experiment_id: str,
    training: Training,
    history: Sequence[Mapping[str, Any]],
) -> Run | None:
    """The run that has shown this very training so far, if there is one.

    It has no other params, is not whole yet, and has no point that is not in the history.
    """
    params = _params(training.params)
    lines = {(round(line["step"]), float(line["loss"])) for line in history}
    best, most = None, -1
    for run in client.search_runs([experiment_id], f"tags.`{VARIANT}` = '{training.name}'"):
        if ARTIFACT in run.data.tags or not run.data.params.items() <= params.items():
            continue
        points = client.get_metric_history(run.info.run_id, f"{TRAINING}loss")
        if {(point.step, point.value) for point in points} <= lines and len(points) > most:
            best, most = run, len(points)
    return best


def _create(client: MlflowClient, experiment_id: str, training: Training) -> Run:
    tags = {**training.tags, VARIANT: training.name}
    run = client.create_run(experiment_id, run_name=training.name, tags=tags)
    _log_params(client, run.info.run_id, _params(training.params))
    return run


def _log_made(
    client: MlflowClient, experiment_id: str, made: Made, state: State, tags: dict[str, str]
) -> Run:
    """Bring a run up to what was made, be it new, shown live, or left half done."""
    history = continued(made.history)
    run = _open_run(client, experiment_id, made.training, history)
    if run is None:
        run = _create(client, experiment_id, made.training)
    run_id = run.info.run_id
    _set_tags(client, run, {**made.training.tags, **made.tags, **tags})
    _deliver(client, run_id, history)
    if isinstance(made, Shipped):
        model_id = _log_model(client, experiment_id, run_id, made)
        _log_figures(client, run, made.figures, model_id)
    else:
        _log_figures(client, run, made.figures)
    _log_data(client, run, state.data, "test" if isinstance(made, Shipped) else "all splits")
    _log_files(client, run_id, made.files)
    if run.info.status != "FINISHED":
        client.set_terminated(run_id)
    client.set_tag(run_id, ARTIFACT, made.artifact)
    return client.get_run(run_id)


def _renew(client: MlflowClient, run: Run, made: Shipped) -> None:
    """What may have changed of a file that did not: its verdict, and its latency when all are timed again.

    Compared side by side, variants that were made for different states then have figures of one benchmark.
    """
    _set_tags(client, run, made.tags)
    now, last = get_current_time_millis(), run.data.metrics
    changed = {key: value for key, value in made.figures.items() if last.get(key) != value}
    anew = []
    for key, value in changed.items():
        steps = [seen.step for seen in client.get_metric_history(run.info.run_id, key)]
        anew.append(Metric(key, value, now, max(steps, default=-1) + 1))
    for first in range(0, len(anew), BATCH):
        client.log_batch(run.info.run_id, metrics=anew[first : first + BATCH])


def _log_parent(
    client: MlflowClient,
    parent: Run,
    state: State,
    teacher: Run,
    variants: Sequence[Shipped],
    runs: Mapping[str, Run],
) -> None:
    run_id = parent.info.run_id
    tags = {
        **state.tags,
        "teacher_run": teacher.info.run_id,
        CHAMPION: state.champion or "none",
        RUNS: json.dumps({name: run.info.run_id for name, run in runs.items()}),
        NOTE: _parent_note(state, teacher, variants, runs, run_id),
    }
    _set_tags(client, parent, tags)
    if parent.info.status == "FINISHED":
        return
    _log_params(client, run_id, _params(state.parameters))
    _log_figures(client, parent, state.figures)
    _log_data(client, parent, state.data, "all splits")
    _log_files(client, run_id, state.files)
    client.set_terminated(run_id)


def _parent_note(
    state: State, teacher: Run, variants: Sequence[Shipped], runs: Mapping[str, Run], parent: str
) -> str:
    """What the parent's page says, with links that MLflow's pages follow."""
    experiment = next(iter(runs.values())).info.experiment_id
    chosen, every = (quote(json.dumps(v)) for v in ([r.info.run_id for r in runs.values()], [experiment]))
    headings = list(variants[0].shown)
    lines = [
        f"**{state.champion or 'No variant'} ships:** {state.reason}.",
        "",
        f"[**Compare the {len(runs)} variants**](#/compare-runs?runs={chosen}&experiments={every}&{PAGES})",
        "",
        f"| variant | {' | '.join(headings)} | made for |",
        "|---" * (len(headings) + 2) + "|",
    ]
    for made in variants:
        run = runs[made.training.name]
        home = run.data.tags[PARENT_RUN]
        origin = "this state" if home == parent else f"[an earlier state]({_link(run, home)})"
        cells = " | ".join(made.shown.values())
        lines.append(f"| [{made.training.name}]({_link(run)}) | {cells} | {origin} |")
    lines += ["", f"Teacher: [{state.tags['teacher']}]({_link(teacher)})"]
    return "\n".join(lines)


def _link(run: Run, run_id: str | None = None) -> str:
    return f"#/experiments/{run.info.experiment_id}/runs/{run_id or run.info.run_id}?{PAGES}"


def _register(
    client: MlflowClient,
    name: str,
    state: State,
    variants: Sequence[Shipped],
    runs: Mapping[str, Run],
    models: Mapping[str, LoggedModel],
) -> None:
    """Accepted variants as versions of one model; the alias where the budget wants it, or nowhere."""
    accepted = [made for made in variants if made.verdict == "accept"]
    found = client.search_registered_models(f"name = '{name}'")
    if not found and not accepted:
        return
    model = found[0] if found else client.create_registered_model(name, description=_model_note(name))
    versions = {v.tags.get("sha256"): v for v in client.search_model_versions(f"name = '{name}'")}
    for made in variants:
        seen = versions.get(made.artifact)
        if seen is None and made.verdict == "accept":
            variant = made.training.name
            versions[made.artifact] = client.create_model_version(
                name,
                f"models:/{models[variant].model_id}",
                runs[variant].info.run_id,
                tags=_version_tags(made),
                description=_version_note(made, state),
                model_id=models[variant].model_id,
            )
        elif seen is not None and seen.tags.get("verdict") != made.verdict:
            client.set_model_version_tag(name, seen.version, "verdict", made.verdict)
    champion = next((versions[m.artifact] for m in accepted if m.training.name == state.champion), None)
    holder = {alias.lower(): number for alias, number in model.aliases.items()}.get(CHAMPION)
    if champion is None and holder is not None:
        client.delete_registered_model_alias(name, CHAMPION)
    elif champion is not None and str(holder) != str(champion.version):
        client.set_registered_model_alias(name, CHAMPION, champion.version)


def _version_tags(made: Shipped) -> dict[str, str]:
    told = {key: str(round(value, 6)) for key, value in made.figures.items() if key in HEADLINES}
    return {
        **made.tags,
        **told,
        VARIANT: made.training.name,
        "verdict": made.verdict,
        "sha256": made.artifact,
    }


def _version_note(made: Shipped, state: State) -> str:
    """What a version's page says; the card as far as MLflow has room for it."""
    note = made.tags[NOTE]
    if state.card is None:
        return note
    whole = f"{note}\n\n{state.card}"
    if len(whole) <= DESCRIPTION:
        return whole
    return f"{whole[: whole.rindex(chr(10), 0, DESCRIPTION)]}\n\nThe rest is in the parent run's `report/`."


def _model_note(name: str) -> str:
    return (
        "The variants that the gate accepts, each as one version; `champion` is what the budget chooses.\n\n"
        f"    mlflow models serve -m models:/{name}@{CHAMPION} --env-manager local -p 5001\n"
        "    curl 127.0.0.1:5001/invocations -H 'Content-Type: application/json' "
        "-d '{\"inputs\": [\"'$(base64 -w0 photo.jpg)'\"]}'\n"
    )


def _log_model(client: MlflowClient, experiment_id: str, run_id: str, made: Shipped) -> str:
    """Log the shipped file as a model that takes photographs, once; returns the model's id."""
    for model in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if model.status == LoggedModelStatus.READY:
            return model.model_id
        client.delete_logged_model(model.model_id)
    model = client.create_logged_model(
        experiment_id,
        name="model",
        source_run_id=run_id,
        tags={VARIANT: made.training.name, "verdict": made.verdict, "sha256": made.artifact},
        params=_params(made.training.params),
    )
    Model.log(
        None,
        flavor=mlflow.pyfunc,
        run_id=run_id,
        model_id=model.model_id,
        loader_module=Path(serving.__file__).stem,
        code_paths=[serving.__file__],
        data_path=str(made.file),
        # Without inputs: photographs in base64 and arrays of pixels are both taken.
        signature=ModelSignature(params=ParamSchema([ParamSpec("top", "integer", 0)])),
        # Named, so that MLflow need not load the model in another process to find them out.
        pip_requirements=[f"{package}=={version(package)}" for package in SERVING_NEEDS],
    )
    return model.model_id


def _model(client: MlflowClient, experiment_id: str, run_id: str) -> LoggedModel:
    return client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")[0]


def _deliver(
    client: MlflowClient,
    run_id: str,
    history: Sequence[Mapping[str, Any]],
    told: set[tuple[str, int]] | None = None,
) -> set[tuple[str, int]]:
    """Log the epochs' figures that are not there yet; returns the points that are there now."""
    now = get_current_time_millis()
    points = {
        (f"{TRAINING}{key}", round(line["step"])): float(value)
        for line in history
        for key, value in line.items()
        if isinstance(value, int | float) and key != "step"
    }
    if told is None:
        keys = {key for key, _ in points}
        told = {(key, seen.step) for key in keys for seen in client.get_metric_history(run_id, key)}
    missing = [
        Metric(key, value, now, step) for (key, step), value in points.items() if (key, step) not in told
    ]
    for first in range(0, len(missing), BATCH):
        client.log_batch(run_id, metrics=missing[first : first + BATCH])
    return told | set(points)


def _log_figures(
    client: MlflowClient, run: Run, figures: Mapping[str, float], model_id: str | None = None
) -> None:
    """Log what is not there yet; with the model's id, MLflow's table of models shows it too."""
    now, run_id = get_current_time_millis(), run.info.run_id
    missing = [
        Metric(key, value, now, 0, model_id=model_id, run_id=run_id if model_id else None)
        for key, value in figures.items()
        if key not in run.data.metrics
    ]
    for first in range(0, len(missing), BATCH):
        client.log_batch(run_id, metrics=missing[first : first + BATCH])


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    pairs = [Param(key, value) for key, value in params.items()]
    for first in range(0, len(pairs), BATCH):
        client.log_batch(run_id, params=pairs[first : first + BATCH])


def _set_tags(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    missing = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
    for first in range(0, len(missing), BATCH):
        client.log_batch(run.info.run_id, tags=missing[first : first + BATCH])


def _log_data(client: MlflowClient, run: Run, data: Mapping[str, Any], split: str) -> None:
    if run.inputs and run.inputs.dataset_inputs:
        return
    # MLflow takes no digest longer than 36 characters.
    digest, source = data["data_sha256"][:16], json.dumps({"uri": str(data["path"])})
    dataset = Dataset(data["source"], digest, "local", source, profile=json.dumps(data["images"]))
    client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", split)])])


def _log_files(client: MlflowClient, run_id: str, files: Sequence[tuple[str, Path]]) -> None:
    for place, path in files:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), place)
        else:
            client.log_artifact(run_id, str(path), place)


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in _flat(values).items()}


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
