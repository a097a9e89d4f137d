"""A training shown in MLflow while it goes on."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.models.histories import continued
from pipeline.selection.table import TEACHER
from pipeline.tracking import client, unfinished
from pipeline.tracking.client import MlflowClient, Point, SystemMetricsMonitor
from pipeline.tracking.records import NOTE, PARENT_RUN, RunRecord, TrackingServer
from pipeline.tracking.runs import open_experiments

POLL_SECONDS = 1.0
"""Seconds between two looks at the history."""

SAMPLE_SECONDS = 5
"""Seconds between two samples of the machine's load."""

NOTES = {
    "RUNNING": "This training goes on. When all stages are complete, its run moves to those of its state.",
    "KILLED": "This training was interrupted. The next `dvc repro` continues it in this run.",
    "FINISHED": "This training is complete. When all stages are, its run moves to those of its state.",
}
"""Status of a run to its description."""

MONITOR = "SystemMetricsMonitor"
"""Name of the thread that samples the machine's load."""


def follow(
    record: RunRecord,
    history: Callable[[], Sequence[Mapping[str, Any]]],
    ended: threading.Event,
    server: TrackingServer,
    *,
    finished: Callable[[], bool] = lambda: True,
) -> None:
    """Log a training epoch by epoch, with the load of the machine, until ``ended`` is set.

    A server that does not answer is asked again every second; `track` logs whatever is still missing in the
    end. A training that was interrupted and resumes continues the same run.

    Args:
        record: what identifies the training.
        history: returns its epochs so far.
        ended: set when the training has ended.
        server: where to write.
        finished: whether the training was completed, asked after ``ended`` is set.
    """
    live: LiveRun | None = None
    last = False
    while not last:
        last = ended.wait(POLL_SECONDS)
        try:
            with client.connect(server) as mlflow:
                # The checkpoints are removed when the training is complete.
                lines = continued(history()) or (live.lines if live is not None else [])
                if live is None or not live.continues_with(lines):
                    if live is not None:
                        live.close("KILLED")
                    live = LiveRun.open(mlflow, server, record, lines)
                live.update(lines)
                if last:
                    live.close("FINISHED" if finished() else "KILLED")
        # A database, a socket and MLflow raise errors of many kinds, and none of them may stop a training.
        except Exception:
            if live is not None:
                live.logged = None


@dataclass
class LiveRun:
    """The run of a training that goes on."""

    mlflow: MlflowClient
    run_id: str
    monitor: SystemMetricsMonitor | None = None
    lines: Sequence[Mapping[str, Any]] = ()
    """Epochs that were logged."""
    logged: set[Point] | None = None
    """Points that the server has; None if it has to be asked."""

    @classmethod
    def open(
        cls,
        mlflow: MlflowClient,
        server: TrackingServer,
        record: RunRecord,
        lines: Sequence[Mapping[str, Any]],
    ) -> "LiveRun":
        """Continue the run of an interrupted training, or create one."""
        experiment, teacher_experiment = open_experiments(mlflow, server)
        experiment_id = teacher_experiment if record.name == TEACHER else experiment
        run = client.find_unfinished_run(mlflow, experiment_id, record, lines)
        tags = {NOTE: NOTES["RUNNING"], PARENT_RUN: unfinished.parent(mlflow, experiment_id)}
        if run is None:
            run = client.create_run(mlflow, experiment_id, record, tags)
        else:
            mlflow.update_run(run.info.run_id, status="RUNNING")
            client.set_tags(mlflow, run, tags)
        return cls(mlflow, run.info.run_id)

    def continues_with(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Whether these epochs begin with those that were logged; else another training has begun."""
        return list(lines[: len(self.lines)]) == list(self.lines)

    def update(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs that are missing, and keep the monitor running."""
        if self.logged is None or len(lines) > len(self.lines):
            self.logged = client.log_history(self.mlflow, self.run_id, lines, self.logged)
            self.lines = list(lines)
        # The monitor's thread ends for good when the server does not answer for a moment.
        if not any(thread.name == MONITOR for thread in threading.enumerate()):
            self.mlflow.get_run(self.run_id)
            self.monitor = client.start_monitor(self.run_id, SAMPLE_SECONDS)

    def close(self, status: str) -> None:
        """End the run."""
        if self.monitor is not None:
            self.monitor.finish()
        self.mlflow.set_tag(self.run_id, NOTE, NOTES[status])
        self.mlflow.set_terminated(self.run_id, status)
