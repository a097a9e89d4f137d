"""Runs that belong to no state: trainings that go on, that were interrupted, or whose pipeline did not end.

They have a parent run of their own in each experiment, so that the list of runs begins with states alone.
"""

from pipeline.tracking import client
from pipeline.tracking.client import MlflowClient
from pipeline.tracking.records import ARTIFACT, NOTE, PARENT_RUN, UNFINISHED, VARIANT

NAME = "unfinished trainings"
PARENT_NOTE = (
    "Trainings that go on, that were interrupted, or whose pipeline has not reached its end. The next "
    "`dvc repro` takes up those that it needs; the others can be deleted."
)
LOOSE_NOTE = (
    "This training belongs to no state: its pipeline did not reach its end, or another one replaced it."
)


def parent(mlflow: MlflowClient, experiment: str) -> str:
    """Return the id of the parent run of unfinished trainings, which is created if there is none."""
    run = client.find_run(mlflow, experiment, {UNFINISHED: "yes"})
    if run is None:
        tags = {UNFINISHED: "yes", NOTE: PARENT_NOTE}
        run = mlflow.create_run(experiment, run_name=NAME, tags=tags)
        mlflow.set_terminated(run.info.run_id)
    return run.info.run_id


def collect(mlflow: MlflowClient, experiment: str) -> None:
    """Give trainings without a parent the one of unfinished trainings, which is deleted if it has none."""
    runs = mlflow.search_runs([experiment], f"tags.`{VARIANT}` != ''")
    open_runs = [run for run in runs if ARTIFACT not in run.data.tags]
    for run in open_runs:
        if PARENT_RUN not in run.data.tags:
            note = {} if NOTE in run.data.tags else {NOTE: LOOSE_NOTE}
            client.set_tags(mlflow, run, {PARENT_RUN: parent(mlflow, experiment), **note})
    holder = client.find_run(mlflow, experiment, {UNFINISHED: "yes"})
    if holder is not None and not open_runs:
        mlflow.delete_run(holder.info.run_id)
