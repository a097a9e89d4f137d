"""Log the variants to MLflow."""

import csv
import json
import os
from collections.abc import Mapping
from typing import Any

from pipeline import parameters, paths, provenance
from pipeline.data import store
from pipeline.models import storage
from pipeline.parameters import Parameters
from pipeline.process import stage
from pipeline.tasks import METRICS
from pipeline.tracking import runs
from pipeline.tracking.runs import Book, Made, Shipped, State, Training

HEADLINES = ("score", "latency_ms_p50", "size_bytes")
"""Figures of each variant that the parent run has too, so that states can be compared."""

TEXT = ("variant", "parent", "op", "verdict", "sha256")
"""Columns that hold no figures, though a hash may look like one."""


def main() -> None:
    """Write `artifacts/tracked.json`, which says where the runs are."""
    p = parameters.load()
    outputs = _outputs(p)
    teacher = json.loads((paths.TEACHER / storage.CARD).read_text())
    metric = teacher["metric"]
    with (paths.VARIANTS).open() as file:
        table = {row["variant"]: row for row in csv.DictReader(file)}
    source = provenance.source_tags()
    variants = [_shipped(p, table[name], metric, source) for name in p.variants]
    choice = json.loads(paths.CHOICE.read_text())
    state_sha256 = provenance.identity(**outputs)
    card = paths.REPORT / "model_card.md"
    state = State(
        name=os.environ.get("DVC_EXP_NAME") or p.data.source,
        sha256=state_sha256,
        tags={
            **source,
            "git_commit": source["mlflow.source.git.commit"],
            "teacher": teacher["origin"],
            **{f"dvc.{name}": _listed(hashes) for name, hashes in outputs.items()},
        },
        parameters=p.model_dump(mode="json", exclude={"variants", "compute", "tracking", "budget", "card"}),
        data=store.read_report(paths.DATA),
        figures={
            "variants": len(variants),
            "variants_accepted": sum(made.verdict == "accept" for made in variants),
            f"teacher_{metric}": teacher["test"][metric],
            **{
                f"{key}/{made.training.name}": made.figures[key]
                for name in HEADLINES
                for key in (name.replace("score", metric),)
                for made in variants
            },
        },
        files=[("report", paths.REPORT), ("dvc", paths.LOCK), ("dvc", paths.PARAMETERS)],
        champion=choice["variant"],
        reason=choice["reason"],
        card=card.read_text() if card.is_file() else None,
    )
    made_teacher = Made(
        Training("teacher", p.recipe("teacher"), source),
        artifact=outputs["teach"][str(paths.TEACHER)],
        figures={metric: teacher["test"][metric], f"val_{metric}": teacher["val"][metric]},
        history=storage.read_history(paths.TEACHER),
        tags={"origin": teacher["origin"]},
        files=[("teacher", paths.TEACHER / storage.CARD)],
    )
    book = Book(p.tracking.uri, p.tracking.experiment, paths.home())
    run_id, new = runs.track(state, made_teacher, variants, book)
    paths.TRACKED.write_text(json.dumps({"run_id": run_id, "state": state_sha256}) + "\n")
    print(f"MLflow: {len(variants)} variants under run {run_id}; new: {', '.join(new) or 'none'}")
    print(f"{runs.CHAMPION}: {choice['reason']}")


def _outputs(p: Parameters) -> dict[str, dict[str, str]]:
    """Hashes of the outputs of each stage before this one, by kind of stage.

    `dvc.lock` forgets no stage, so that it still has those of variants that were removed.
    """
    outputs: dict[str, dict[str, str]] = {}
    for name, hashes in provenance.dvc_outputs(paths.LOCK).items():
        kind, _, variant = name.partition("@")
        if kind not in ("check", "track") and (not variant or variant in p.variants):
            outputs.setdefault(kind, {}).update(hashes)
    return outputs


def _listed(hashes: Mapping[str, str]) -> str:
    return ", ".join(f"{md5} {path}" for path, md5 in sorted(hashes.items()))


def _shipped(p: Parameters, row: Mapping[str, str], metric: str, source: Mapping[str, str]) -> Shipped:
    """What MLflow is told of a variant: the table's figures, and all others that were measured."""
    name = row["variant"]
    scores = json.loads(paths.metrics(name).read_text())
    latency = json.loads(paths.BENCHMARK.read_text())["variants"][name]
    # The table's own come first: MLflow's comparisons begin with the first figure.
    figures = {key: number for key, cell in row.items() if (number := _number(key, cell)) is not None}
    figures |= {key: value for key, value in _numbers(scores).items() if key not in figures}
    figures |= {f"latency/{key}": value for key, value in _numbers(latency).items() if key not in figures}
    return Shipped(
        Training(name, p.recipe(name), source),
        artifact=row["sha256"],
        figures=figures,
        history=storage.read_history(paths.model(name)),
        tags={
            "parent_variant": row["parent"],
            "op": row["op"],
            "verdict": row["verdict"],
            runs.NOTE: _note(row, metric),
        },
        files=[
            ("build", paths.model(name) / storage.CARD),
            ("build", paths.model(name) / storage.HISTORY),
            ("scores", paths.metrics(name)),
        ],
        file=paths.onnx(name),
        verdict=row["verdict"],
        shown={
            "verdict": row["verdict"],
            f"{METRICS[metric].words}, % (95 %)": _interval(
                row, metric, f"{metric}_lo", f"{metric}_hi", ".2f"
            ),
            "points against its parent (95 %)": _interval(
                row, f"{metric}_delta", "delta_lo", "delta_hi", "+.2f"
            ),
            "ms": f"{figures['latency_ms_p50']:.2f}",
            "MB": f"{figures['size_bytes'] / 1e6:.2f}",
        },
    )


def _note(row: Mapping[str, str], metric: str) -> str:
    score = _interval(row, metric, f"{metric}_lo", f"{metric}_hi", ".2f")
    delta = _interval(row, f"{metric}_delta", "delta_lo", "delta_hi", "+.2f")
    return (
        f"**{row['op']}** of {row['parent']}, **{row['verdict']}ed** by the gate: "
        f"{METRICS[metric].words} {score} %, {delta} points against {row['parent']} (95 % intervals)."
    )


def _interval(row: Mapping[str, str], key: str, lo: str, hi: str, form: str) -> str:
    value, low, high = (format(100 * float(row[name]), form) for name in (key, lo, hi))
    return f"{value} ({low} to {high})"


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The single numbers of nested mappings, with slashes between the keys."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            numbers |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = value
    return numbers


def _number(column: str, cell: str) -> float | None:
    try:
        return None if column in TEXT else float(cell)
    except ValueError:
        return None


if __name__ == "__main__":
    with stage():
        main()
