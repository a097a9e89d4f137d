"""Log the variants to MLflow."""

import json

import numpy as np

from pipeline import models, parameters, paths, provenance, tracking
from pipeline.data import store
from pipeline.parameters import ParameterError
from pipeline.process import stage
from pipeline.report import tables
from pipeline.tracking import State, TrackingError


def main() -> None:
    """Write `artifacts/tracked.json`, which says where the runs are."""
    p = parameters.load()
    benchmark = json.loads(paths.BENCHMARK.read_text())
    teacher = json.loads((paths.TEACHER / models.CARD).read_text())
    data = store.read_report(paths.DATA)
    entries = tables.gather(p.declared(), metrics=paths.metrics, folder=paths.model, benchmark=benchmark)
    table = tables.rows(
        entries,
        teacher=np.load(paths.TEACHER_PREDICTIONS),
        labels=store.read(paths.DATA, "test").labels,
        max_drop=p.gate.max_drop,
    )
    settings = p.model_dump(
        mode="json", exclude={"variants", "distill", "prune", "quantize", "compute", "tracking"}
    )
    identity = provenance.identity(
        parameters=settings,
        declared=p.declared(),
        data=data["data_sha256"],
        files={row.variant: row.sha256 for row in table},
        benchmark=provenance.sha256(paths.BENCHMARK),
    )
    state = State(
        name=p.data.source,
        sha256=identity,
        git_commit=provenance.git_commit(),
        parameters=settings,
        data=data,
        teacher=teacher,
        folders={"report": paths.REPORT},
    )
    run_id, new = tracking.track(
        state,
        table,
        entries,
        {row.variant: paths.onnx(row.variant) for row in table},
        uri=p.tracking.uri,
        experiment=p.tracking.experiment,
        artifacts=paths.MLARTIFACTS,
    )
    paths.TRACKED.write_text(json.dumps({"run_id": run_id, "state": identity}) + "\n")
    print(f"MLflow: {len(table)} variants under run {run_id}{'' if new else ', which was there already'}")


if __name__ == "__main__":
    with stage(ParameterError, TrackingError):
        main()
