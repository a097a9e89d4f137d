"""The variants in MLflow: a parent run for each state of the pipeline, and a nested run for each variant.

Whatever exists is left as it is and whatever is missing is added, so that a process that was killed at any
moment, or a server that did not answer, is made up for by running it again.
"""

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from pipeline.escaping import for_markdown
from pipeline.models.histories import continued
from pipeline.tracking import client, registry
from pipeline.tracking.client import MlflowClient, Run
from pipeline.tracking.records import (
    ARTIFACT,
    CHAMPION,
    NOTE,
    PARENT_RUN,
    RUNS,
    STATE,
    VARIANT,
    ExportedFile,
    PipelineState,
    TrackingServer,
    TrainedModel,
)

VARIANTS_NOTE = (
    "Compressed image classifiers. Each run is one `dvc repro`: open it for the table of its variants. Its "
    "nested runs are the variants that were new; the table links to those that an earlier run has logged."
)
TEACHERS_NOTE = (
    "Teachers, one run for each that was adapted to a data set. The runs of the variants link here."
)

PAGES = "workflowType=machine_learning"
"""Query that keeps MLflow from showing its pages for language models."""


def track(
    state: PipelineState, teacher: TrainedModel, variants: Sequence[ExportedFile], server: TrackingServer
) -> tuple[str, list[str]]:
    """Log a state of the pipeline: a parent run, and a nested run for each variant that has none yet.

    Variants that an earlier state has logged are linked: the description and the tag `runs` of the parent run
    name them, and their runs stay where they are. Accepted variants become versions of the registered model.

    Returns:
        The id of the parent run, and the names of the variants that were logged for the first time.

    Raises:
        TrackingError: the server cannot be reached or refuses a request.
    """
    with client.connect(server) as mlflow:
        experiment, teacher_experiment = open_experiments(mlflow, server)
        teacher_run = client.find_run(mlflow, teacher_experiment, {ARTIFACT: teacher.artifact})
        if teacher_run is None:
            teacher_run = _log_model_run(mlflow, teacher_experiment, teacher, state, {})
        parent = client.find_run(mlflow, experiment, {STATE: state.sha256})
        if parent is None:
            name = f"{state.name} {state.sha256[:7]}"
            parent = mlflow.create_run(experiment, run_name=name, tags={STATE: state.sha256})
        runs, new = {}, []
        for exported in variants:
            name = exported.run.name
            run = client.find_run(mlflow, experiment, {ARTIFACT: exported.artifact, VARIANT: name})
            if run is None:
                run = _log_model_run(mlflow, experiment, exported, state, {PARENT_RUN: parent.info.run_id})
                new.append(name)
            else:
                # Verdict and latency may change while the file stays the same. With the latest ones in all
                # runs, variants of several states can be compared by one benchmark.
                client.set_tags(mlflow, run, exported.tags)
                client.update_metrics(mlflow, run, exported.metrics)
            runs[name] = run
        _log_parent_run(mlflow, parent, state, teacher_run, variants, runs)
        registry.register(mlflow, server.model, state, variants, runs)
    return parent.info.run_id, new


def open_experiments(mlflow: MlflowClient, server: TrackingServer) -> tuple[str, str]:
    """Return the ids of the experiments of the variants and of the teachers."""
    return (
        client.open_experiment(mlflow, server, server.experiment, VARIANTS_NOTE),
        client.open_experiment(mlflow, server, server.teacher_experiment, TEACHERS_NOTE),
    )


def _log_model_run(
    mlflow: MlflowClient, experiment: str, model: TrainedModel, state: PipelineState, tags: Mapping[str, str]
) -> Run:
    """Complete the run of a model: a new one, one that was shown live, or one that was interrupted."""
    history = continued(model.history)
    run = client.find_unfinished_run(mlflow, experiment, model.run, history)
    if run is None:
        run = client.create_run(mlflow, experiment, model.run)
    run_id = run.info.run_id
    client.set_tags(mlflow, run, {**model.run.tags, **model.tags, **tags})
    client.log_history(mlflow, run_id, history)
    if isinstance(model, ExportedFile):
        client.log_metrics(mlflow, run, model.metrics, client.log_model(mlflow, run, model))
        client.log_dataset(mlflow, run, state.data, "test")
    else:
        client.log_metrics(mlflow, run, model.metrics)
        client.log_dataset(mlflow, run, state.data, "all splits")
    client.log_files(mlflow, run_id, model.files)
    if run.info.status != "FINISHED":
        mlflow.set_terminated(run_id)
    mlflow.set_tag(run_id, ARTIFACT, model.artifact)
    return mlflow.get_run(run_id)


def _log_parent_run(
    mlflow: MlflowClient,
    parent: Run,
    state: PipelineState,
    teacher: Run,
    variants: Sequence[ExportedFile],
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
    client.set_tags(mlflow, parent, tags)
    if parent.info.status == "FINISHED":
        return
    client.log_params(mlflow, run_id, state.parameters)
    client.log_metrics(mlflow, parent, state.metrics)
    client.log_dataset(mlflow, parent, state.data, "all splits")
    client.log_files(mlflow, run_id, state.files)
    mlflow.set_terminated(run_id)


def _parent_note(
    state: PipelineState,
    teacher: Run,
    variants: Sequence[ExportedFile],
    runs: Mapping[str, Run],
    parent: str,
) -> str:
    """The description of a parent run, with links that work in MLflow's pages."""
    experiments = [next(iter(runs.values())).info.experiment_id]
    compare = (
        f"runs={_query([r.info.run_id for r in runs.values()])}&experiments={_query(experiments)}&{PAGES}"
    )
    headings = list(variants[0].summary)
    lines = [
        f"**{f'Ship {state.champion}' if state.champion else 'Nothing to ship'}.** {state.reason}",
        "",
        f"[**Compare the {len(runs)} variants**](#/compare-runs?{compare})",
        "",
        f"| variant | {' | '.join(headings)} | logged with |",
        "|---" * (len(headings) + 2) + "|",
    ]
    for exported in variants:
        run = runs[exported.run.name]
        home = run.data.tags[PARENT_RUN]
        origin = "this run" if home == parent else f"[an earlier run]({_link(run, home)})"
        cells = " | ".join(exported.summary.values())
        lines.append(f"| [{exported.run.name}]({_link(run)}) | {cells} | {origin} |")
    lines += ["", f"Teacher: [{for_markdown(state.tags['teacher'])}]({_link(teacher)})"]
    return "\n".join(lines)


def _query(values: Sequence[str]) -> str:
    return quote(json.dumps(values))


def _link(run: Run, run_id: str | None = None) -> str:
    return f"#/experiments/{run.info.experiment_id}/runs/{run_id or run.info.run_id}?{PAGES}"
