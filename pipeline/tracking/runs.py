"""The variants in MLflow: a parent run for each state of the pipeline, and a nested run for each variant.

Whatever exists is left as it is and whatever is missing is added, so that a process that was killed at any
moment, or a server that did not answer, is made up for by running it again.
"""

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from pipeline.escaping import for_markdown
from pipeline.models.histories import continued
from pipeline.tracking import client, registry, unfinished, views
from pipeline.tracking.client import MlflowClient, Run
from pipeline.tracking.records import (
    ANSWER,
    ARTIFACT,
    CHAMPION,
    DATASET,
    LATEST,
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
    "nested runs are the variants that were new; the table links to those that an earlier run has logged. "
    "The saved views show the newest variants of each data set."
)
NOTE_COLUMNS = 5
"""Number of columns of the summary that the narrow description of a parent run has room for."""
LONGEST_NOTE = 4900
"""Greatest number of characters of an experiment's description; MLflow's database accepts 5,000."""
WRITTEN = "distillery.note"
"""Tag of an experiment: the description that was written last, which nobody has edited if it still stands."""
BEING_LOGGED = "This state is being logged. If it stays like this, the next `dvc repro` completes it."
TEACHERS_NOTE = (
    "Teachers, one run for each that was adapted to a data set. The runs of the variants link here."
)


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
            tags = {STATE: state.sha256, NOTE: BEING_LOGGED}
            parent = mlflow.create_run(experiment, run_name=name, tags=tags)
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
                client.set_tags(mlflow, run, {**exported.tags, **exported.summary})
                client.update_metrics(mlflow, run, exported.metrics)
            runs[name] = run
        _log_parent_run(mlflow, parent, state, teacher_run, variants, runs)
        registry.register(mlflow, server.model, state, variants, runs)
        _mark_latest(mlflow, experiment, state, runs)
        views.save(mlflow, experiment, state, variants, runs)
        _describe(mlflow, experiment, state)
        for place in (experiment, teacher_experiment):
            unfinished.collect(mlflow, place)
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
    summary = model.summary if isinstance(model, ExportedFile) else {}
    client.set_tags(mlflow, run, {**model.run.tags, **model.tags, **summary, **tags})
    if PARENT_RUN not in tags and PARENT_RUN in run.data.tags:
        mlflow.delete_tag(run_id, PARENT_RUN)
    # MLflow's pages list metrics in the order in which they came: the figures first, then the curves.
    if isinstance(model, ExportedFile):
        client.log_metrics(mlflow, run, model.metrics, client.log_model(mlflow, run, model))
        client.log_dataset(mlflow, run, state.dataset, state.data, "test")
        if model.card is not None:
            mlflow.log_text(run_id, model.card, "model_card.md")
    else:
        client.log_metrics(mlflow, run, model.metrics)
        client.log_dataset(mlflow, run, state.dataset, state.data, "all splits")
    client.log_history(mlflow, run_id, history)
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
        DATASET: state.data_id,
        ANSWER: state.answer,
        RUNS: json.dumps({name: run.info.run_id for name, run in runs.items()}),
        NOTE: _parent_note(state, teacher, variants, runs, run_id),
    }
    client.set_tags(mlflow, parent, tags)
    if parent.info.status == "FINISHED":
        return
    client.log_params(mlflow, run_id, state.parameters)
    client.log_metrics(mlflow, parent, state.metrics)
    client.log_dataset(mlflow, parent, state.dataset, state.data, "all splits")
    client.log_files(mlflow, run_id, state.files)
    mlflow.set_terminated(run_id)


def _mark_latest(
    mlflow: MlflowClient, experiment: str, state: PipelineState, runs: Mapping[str, Run]
) -> None:
    """Mark the runs of this state as the latest ones of its data set, and no others."""
    current = {run.info.run_id for run in runs.values()}
    for run in mlflow.search_runs([experiment], client.equals(f"tags.`{LATEST}`", state.data_id)):
        if run.info.run_id not in current:
            mlflow.delete_tag(run.info.run_id, LATEST)
    colours = views.colours([*runs], state.champion)
    for name, run in runs.items():
        client.set_tags(mlflow, run, {LATEST: state.data_id, views.COLOUR: colours[name]})


def _describe(mlflow: MlflowClient, experiment: str, state: PipelineState) -> None:
    """Write the answers of all data sets into the description of the experiment, the present one first.

    A description that somebody has edited is left alone.
    """
    answers = {state.data_id: state.answer}
    for run in mlflow.search_runs([experiment], f"tags.`{ANSWER}` != ''"):
        answers.setdefault(run.data.tags[DATASET], run.data.tags[ANSWER])
    lines = [
        f"{answer} [Chart]({views.address(experiment, data, charts=True)})"
        for data, answer in answers.items()
    ]
    text = "\n\n".join([*lines, VARIANTS_NOTE])
    written = mlflow.get_experiment(experiment).tags
    if written.get(NOTE) in (None, "", VARIANTS_NOTE, written.get(WRITTEN)) and written.get(NOTE) != text:
        for key in (WRITTEN, NOTE):
            mlflow.set_experiment_tag(experiment, key, text[:LONGEST_NOTE])


def _parent_note(
    state: PipelineState,
    teacher: Run,
    variants: Sequence[ExportedFile],
    runs: Mapping[str, Run],
    parent: str,
) -> str:
    """The description of a parent run, with links that work in MLflow's pages."""
    experiments = [next(iter(runs.values())).info.experiment_id]
    ids = [run.info.run_id for run in runs.values()]
    compare = f"runs={_query(ids)}&experiments={_query(experiments)}&{views.PAGES}"
    headings = list(variants[0].summary)[:NOTE_COLUMNS]
    lines = [
        state.answer,
        "",
        state.reason,
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
        cells = " | ".join(exported.summary[heading] for heading in headings)
        lines.append(f"| [{exported.run.name}]({_link(run)}) | {cells} | {origin} |")
    lines += ["", f"Teacher: [{for_markdown(state.tags['teacher'])}]({_link(teacher)})"]
    return "\n".join(lines)


def _query(values: Sequence[str]) -> str:
    return quote(json.dumps(values))


def _link(run: Run, run_id: str | None = None) -> str:
    return f"#/experiments/{run.info.experiment_id}/runs/{run_id or run.info.run_id}?{views.PAGES}"
