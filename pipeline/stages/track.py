"""Log the variants to MLflow.

A server that is away does not make a pipeline fail whose models are built: what it was to be told is kept and
delivered by the next `dvc repro`, and a warning says so.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from pipeline import files, parameters, paths, provenance
from pipeline.data import store
from pipeline.models import histories, storage
from pipeline.parameters import Parameters
from pipeline.process import stage
from pipeline.selection import table
from pipeline.selection.table import Row
from pipeline.shipping import integrity
from pipeline.tasks import METRICS
from pipeline.tracking import delivery, outbox, patience, records
from pipeline.tracking.delivery import Outcome
from pipeline.tracking.outbox import Delivery
from pipeline.tracking.records import (
    ExportedFile,
    PipelineState,
    RunRecord,
    TrackingServer,
    TrainedModel,
    UnreachableError,
)

HEADLINES = ("score", "latency_ms_p50", "size_bytes")
"""Metrics of each variant that the parent run has, too, so that states can be compared."""


def main() -> None:
    """Write `artifacts/tracked.json`: id of the parent run, and hashes of the states not yet delivered."""
    p = parameters.load()
    outputs = _outputs(p)
    teacher = json.loads((paths.TEACHER / storage.CARD).read_text())
    rows = {row.variant: row for row in table.read(paths.VARIANTS)}
    comparison = json.loads(paths.COMPARISON.read_text())["variants"]
    benchmark = json.loads(paths.BENCHMARK.read_text())["variants"]
    source = records.source_tags()
    variants = [
        _exported_file(p, rows[name], comparison[name]["reason"], benchmark[name], source)
        for name in p.variants
    ]
    choice = json.loads(paths.CHOICE.read_text())
    metric = teacher["metric"]
    card = paths.REPORT / "model_card.md"
    state = PipelineState(
        name=os.environ.get("DVC_EXP_NAME") or p.data.source,
        sha256=provenance.identity(**outputs),
        tags={
            **source,
            "git_commit": source["mlflow.source.git.commit"],
            "teacher": teacher["origin"],
            **{f"dvc.{name}": _listing(hashes) for name, hashes in outputs.items()},
        },
        parameters=p.model_dump(mode="json", exclude={"variants", "compute", "tracking", "budget", "card"}),
        data=store.read_report(paths.DATA),
        metrics={
            "variants": len(variants),
            "variants_accepted": sum(exported.verdict == "accept" for exported in variants),
            f"teacher_{metric}": teacher["test"][metric],
            **{
                f"{key}/{exported.run.name}": exported.metrics[key]
                for field in HEADLINES
                for key in (table.column(field, metric),)
                for exported in variants
            },
        },
        files=[("report", paths.REPORT), ("dvc", paths.LOCK), ("dvc", paths.PARAMETERS)],
        champion=choice["variant"],
        reason=choice["reason"],
        card=ModelCard(card.read_text()).text if card.is_file() else None,
    )
    trained_teacher = TrainedModel(
        RunRecord("teacher", p.recipe("teacher"), source),
        artifact=outputs["teach"][str(paths.TEACHER)],
        metrics={metric: teacher["test"][metric], f"val_{metric}": teacher["val"][metric]},
        history=histories.read(paths.TEACHER, paths.timings),
        tags={"origin": teacher["origin"]},
        files=[("teacher", paths.TEACHER / storage.CARD)],
    )
    server = TrackingServer(p.tracking.uri, p.tracking.experiment, paths.home())
    undelivered = paths.home() / paths.UNDELIVERED
    outcome = delivery.deliver(
        Delivery(server.experiment, state, trained_teacher, variants), server, undelivered
    )
    if outcome.problem is not None:
        _ask_again()
        if not isinstance(outcome.problem, UnreachableError):
            raise outcome.problem
    content = {"run_id": outcome.run_id, "state": state.sha256, "undelivered": outcome.undelivered}
    files.write(paths.TRACKED, json.dumps(content) + "\n")
    if outcome.late:
        print(f"MLflow: delivered {len(outcome.late)} earlier states that were kept in {undelivered}")
    if outcome.problem is None:
        new = ", ".join(outcome.new) or "none"
        print(f"MLflow: run {outcome.run_id} with {len(variants)} variants; new: {new}")
    else:
        print(_warning(outcome, undelivered), file=sys.stderr)
    print(f"{records.CHAMPION}: {choice['reason']}")


def _warning(outcome: Outcome, folder: Path) -> str:
    count, size = len(outcome.undelivered), outbox.size(folder)
    return (
        f"warning: {outcome.problem}. All results are complete; MLflow is told of them by the next "
        f"`dvc repro` ({folder} keeps {count} state{'s' if count != 1 else ''}, {size / 1e6:.0f} MB)"
    )


def _ask_again() -> None:
    """Make the next `dvc repro` run this stage again, although nothing that it reads has changed.

    DVC notes the fingerprint of this stage's code as it is when the stage ends. One that is not that of the
    code is restored by the next run of `check`, and differs then from what was noted.
    """
    fingerprint = paths.CODE / "track"
    if fingerprint.is_file():
        original = fingerprint.read_text().partition("\n")[0]
        files.write(fingerprint, f"{original}\nnot delivered at {time.time_ns()}\n")


def _outputs(p: Parameters) -> dict[str, dict[str, str]]:
    """Hashes of the outputs of each kind of stage before this one.

    `dvc.lock` still holds the stages of variants that were removed; they are left out.
    """
    outputs: dict[str, dict[str, str]] = {}
    for name, hashes in records.dvc_outputs(paths.LOCK).items():
        kind, _, variant = name.partition("@")
        if kind not in ("check", "track") and (not variant or variant in p.variants):
            outputs.setdefault(kind, {}).update(hashes)
    return outputs


def _listing(hashes: Mapping[str, str]) -> str:
    return ", ".join(f"{md5} {path}" for path, md5 in sorted(hashes.items()))


def _exported_file(
    p: Parameters, row: Row, reason: str, latency: Mapping[str, Any], source: Mapping[str, str]
) -> ExportedFile:
    """The variant with the columns of its row and everything else that was measured."""
    name = row.variant
    integrity.check(paths.onnx(name), {})
    scores = json.loads(paths.metrics(name).read_text())
    # The columns come first, because MLflow's comparisons begin with the first metric.
    metrics = _numbers({table.column(field, row.metric): getattr(row, field) for field in table.COLUMNS})
    metrics |= {key: value for key, value in _numbers(scores).items() if key not in metrics}
    metrics |= {f"latency/{key}": value for key, value in _numbers(latency).items() if key not in metrics}
    score = _interval(row.score, row.score_lo, row.score_hi, ".2f")
    words = METRICS[row.metric].words
    return ExportedFile(
        RunRecord(name, p.recipe(name), source),
        artifact=row.sha256,
        metrics=metrics,
        history=histories.read(paths.model(name), paths.timings),
        tags={
            "parent_variant": row.parent,
            "op": row.op,
            "verdict": row.verdict,
            records.NOTE: f"**{row.op}** of {row.parent}: {words} {score} % (95 % CI). {reason}",
        },
        files=[
            ("build", paths.model(name) / storage.CARD),
            ("build", paths.model(name) / histories.HISTORY),
            ("scores", paths.metrics(name)),
        ],
        file=paths.onnx(name),
        verdict=row.verdict,
        summary={
            "verdict": row.verdict,
            f"{words}, % (95 % CI)": score,
            "points vs parent (95 % CI)": _interval(row.score_delta, row.delta_lo, row.delta_hi, "+.2f"),
            "ms": f"{row.latency_ms_p50:.2f}",
            "MB": f"{row.size_bytes / 1e6:.2f}",
        },
    )


def _interval(value: float, lo: float, hi: float, form: str) -> str:
    """A fraction of 1 and its interval in per cent."""
    return f"{100 * value:{form}} ({100 * lo:{form}} to {100 * hi:{form}})"


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The single numbers of nested mappings, with slashes between the keys."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            numbers |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = value
    return numbers


if __name__ == "__main__":
    with stage():
        main()
    patience.leave()
