"""Log the variants to MLflow.

A server that is away does not make a pipeline fail whose models are built: what it was to be told is kept and
delivered by the next `dvc repro`, and a warning says so.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from pipeline import escaping, files, parameters, paths, provenance
from pipeline.data import store
from pipeline.models import histories
from pipeline.parameters import Parameters
from pipeline.report import words
from pipeline.report.figures import figure, span
from pipeline.running.process import stage
from pipeline.selection import budget, table
from pipeline.selection.table import TEACHER, Row
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

SCORES = {"top1": "accuracy", "map": "mAP"}
"""Metric to its name in MLflow, which does not allow every character in a name."""

LITERT = "litert"
"""Beginning of the names in MLflow of what was measured on LiteRT files, and the folder of these files."""

LATENCY, SIZE = "latency_ms", "size_mb"
"""Names in MLflow of the median latency and of the size of the file."""

REFERENCE, NO_FP32 = "reference", "no fp32"
"""What stands in the place of a comparison with itself, or with a variant that is missing."""


def main() -> None:
    """Write `artifacts/tracked.json`: id of the parent run, and hashes of the states not yet delivered."""
    p = parameters.load()
    outputs = _outputs(p)
    teacher = json.loads((paths.TEACHER / paths.CARD).read_text())
    rows = {row.variant: row for row in table.read(paths.VARIANTS)}
    choice = json.loads(paths.CHOICE.read_text())
    judged = _Judged(rows, {row.variant for row in budget.accepted([*rows.values()])}, choice["variant"])
    comparison = json.loads(paths.COMPARISON.read_text())["variants"]
    benchmark = json.loads(paths.BENCHMARK.read_text())["variants"]
    source = records.source_tags()
    litert = _litert_metrics(json.loads(paths.LITERT_RESULTS.read_text())) if p.litert.results else {}
    variants = [
        _exported_file(
            p,
            judged,
            variant,
            comparison[variant]["reason"],
            benchmark[variant],
            source,
            litert.get(variant, {}),
        )
        for variant in p.variants
    ]
    metric = teacher["metric"]
    data = store.read_report(paths.DATA)
    name = escaping.for_terminal(words.data_name(data))
    champion = next((exported for exported in variants if exported.run.name == judged.champion), None)
    score = _percent(metric)
    state = PipelineState(
        name=os.environ.get("DVC_EXP_NAME") or name,
        sha256=provenance.identity(**outputs),
        tags={
            **source,
            "git_commit": source["mlflow.source.git.commit"],
            "teacher": teacher["origin"],
            **{f"dvc.{kind}": _listing(hashes) for kind, hashes in outputs.items()},
        },
        parameters=p.model_dump(mode="json", exclude={"variants", "compute", "tracking", "budget", "card"}),
        data=data,
        metrics={
            "variants": len(variants),
            "variants_accepted": len(judged.accepted),
            f"teacher_{score}": 100 * teacher["test"][metric],
            **(champion.metrics if champion else {}),
        },
        files=[
            ("report", paths.REPORT),
            ("measurements", paths.BENCHMARK),
            ("measurements", paths.COMPARISON),
            ("dvc", paths.LOCK),
            ("dvc", paths.PARAMETERS),
            *([(LITERT, paths.LITERT)] if p.litert.results else []),
        ],
        champion=choice["variant"],
        reason=choice["reason"],
        dataset=name,
        budget=", ".join(f"{key} {limit}" for key, limit in choice["budget"].items() if limit is not None)
        or "no limit",
        answer=_answer(champion, rows[champion.run.name].parent if champion else "", name, choice["reason"]),
        costs=(LATENCY, SIZE),
        score=score,
    )
    trained_teacher = TrainedModel(
        RunRecord("teacher", records.parameters(p.recipe("teacher")), source),
        artifact=outputs["teach"][str(paths.TEACHER)],
        metrics={score: 100 * teacher["test"][metric], f"val_{score}": 100 * teacher["val"][metric]},
        history=histories.read(paths.TEACHER, paths.timings),
        tags={
            "origin": teacher["origin"],
            records.NOTE: f"{escaping.for_markdown(teacher['origin'])}: {METRICS[metric].words} "
            f"{figure(teacher['test'][metric], '%')} on the test split of {escaping.code(name)}.",
        },
        files=[("teacher", paths.TEACHER / paths.CARD)],
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
    print(f"{records.CHAMPION}: {choice['variant'] or 'none'}")


def _warning(outcome: Outcome, folder: Path) -> str:
    count, size = len(outcome.undelivered), outbox.size(folder)
    return (
        f"warning: {escaping.without_passwords(outcome.problem)}. All results are complete; MLflow is told "
        f"of them by the next `dvc repro` ({folder} keeps {count} state{'s' if count != 1 else ''}, "
        f"{size / 1e6:.0f} MB)"
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


@dataclass(frozen=True)
class _Judged:
    """All variants, and what the gate and the budget say about them."""

    rows: Mapping[str, Row]
    accepted: Set[str]
    """Variants that the gate accepts together with all their ancestors."""
    champion: str | None
    """The variant that the budget chooses."""

    @property
    def root(self) -> Row:
        """The variant that losses are counted from: the best of those that are made from the teacher."""
        return max((row for row in self.rows.values() if row.parent == TEACHER), key=lambda row: row.score)

    def recommendation(self, row: Row) -> str:
        """What to do with a variant, in a few words."""
        if row.variant == self.champion:
            return "ship this"
        if row.variant in self.accepted:
            return "accepted"
        if row in budget.undecided([*self.rows.values()]):
            return "more test images"
        return "rejected" if row.verdict != "accept" else "ancestor rejected"


def _exported_file(
    p: Parameters,
    judged: _Judged,
    name: str,
    reason: str,
    latency: Mapping[str, Any],
    source: Mapping[str, str],
    litert: Mapping[str, float],
) -> ExportedFile:
    """The variant with its figures, as the report shows them."""
    integrity.check(paths.onnx(name), {})
    row, root, card = judged.rows[name], judged.root, paths.card(name)
    score, percent = _interval(row.score, row.score_lo, row.score_hi, "%"), _percent(row.metric)
    lost = row.score - root.score
    ratio = latency["ratio"]
    metrics = {
        percent: 100 * row.score,
        f"{percent}_low": 100 * row.score_lo,
        f"{percent}_high": 100 * row.score_hi,
        "points_vs_reference": 100 * lost,
        LATENCY: row.latency_ms_p50,
        **({} if ratio is None else {"speed_vs_fp32": ratio}),
        SIZE: row.size_bytes / 1e6,
        **litert,
    }
    made_from = "the given network" if row.op == "load" else row.parent
    return ExportedFile(
        RunRecord(name, records.parameters(p.recipe(name)), source),
        artifact=row.sha256,
        metrics={key: round(value, table.DECIMALS) for key, value in metrics.items()},
        history=histories.read(paths.model(name), paths.timings),
        tags={
            "verdict": row.verdict,
            records.NOTE: f"**{row.op}** of {made_from}: {METRICS[row.metric].words} {score}. {reason}",
        },
        files=[
            ("build", paths.model(name) / paths.CARD),
            ("build", paths.model(name) / histories.HISTORY),
            ("scores", paths.metrics(name)),
        ],
        file=paths.onnx(name),
        verdict=row.verdict,
        accepted=name in judged.accepted,
        summary={
            "recommendation": judged.recommendation(row),
            SCORES[row.metric]: score,
            f"vs {root.variant}": REFERENCE if row is root else figure(lost, "points"),
            "latency": figure(row.latency_ms_p50, "ms"),
            "size": figure(row.size_bytes, "MB"),
            "speed vs fp32": NO_FP32
            if ratio is None
            else _interval(ratio, latency["ratio_lo"], latency["ratio_hi"], "times"),
            "verdict": row.verdict,
            "vs parent": _interval(row.score_delta, row.delta_lo, row.delta_hi, "points"),
        },
        card=ModelCard(card.read_text()).text if card.is_file() else None,
    )


def _litert_metrics(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics of each variant's LiteRT file."""
    times = results["conditions"][0]["variants"]
    return {
        name: {
            f"{LITERT}_{_percent(row['metric'])}": 100 * row[row["metric"]],
            f"{LITERT}_same_answers_percent": 100 * row["agreement"],
            f"{LITERT}_{LATENCY}": times[name]["latency_ms_p50"],
            f"{LITERT}_{SIZE}": row["size_bytes"] / 1e6,
        }
        for name, row in results["variants"].items()
    }


def _answer(champion: ExportedFile | None, parent: str, dataset: str, reason: str) -> str:
    """Which variant to ship, and what it loses and gains, in one line."""
    data = escaping.code(dataset)
    if champion is None:
        return f"**Nothing to ship yet** ({data}): {escaping.for_markdown(reason)}"
    _, (_, score), (reference, lost), (_, latency), (_, size), (_, speed), *_ = champion.summary.items()
    if lost == REFERENCE:
        reference, lost = f"vs {parent}", champion.summary["vs parent"].partition(" (")[0]
        speed = NO_FP32
    loss = f" ({lost} {reference})"
    gain = "" if speed == NO_FP32 else f" ({speed.partition(' (')[0]} as fast)"
    return (
        f"**Ship {champion.run.name}** ({data}): {score.partition(' (')[0]}{loss}, {latency}{gain}, {size}."
    )


def _percent(metric: str) -> str:
    """The name in MLflow of a score in per cent."""
    return f"{SCORES[metric]}_percent"


def _interval(value: float, lo: float, hi: float, unit: str) -> str:
    return f"{figure(value, unit)} ({span(lo, hi, unit)})"


if __name__ == "__main__":
    with stage():
        main()
    patience.leave()
