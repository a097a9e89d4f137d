"""The model card of a run: Hugging Face's format, filled from what was measured and configured.

Every number in its prose and tables comes through ``figures``, so that a reader, or a test, finds it in the
artifacts. What a run did not measure, and what nobody configured, is said to be so, with the reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pipeline import provenance
from pipeline.report.evidence import Evidence, Part
from pipeline.report.figures import figure, span
from pipeline.report.page.page import SNIPPET, data_name
from pipeline.report.page.scores import SHOWN_CLASSES, calibrated, largest, mistakes
from pipeline.report.tables import Entry, Row, lineage
from pipeline.selection.budget import Choice, listed
from pipeline.tasks import SINGLE_LABEL, TASKS, Task

ARCHITECTURES = {"mobilenet_v1": "MobileNetV1"}
"""Names as their papers spell them."""

TAGS = {"distill": "knowledge-distillation", "prune": "pruning", "quantize": "quantization"}
"""Operation to the tag of a variant made by it."""

METRIC_IDS = {"top1": "accuracy", "map": "mean_average_precision"}
"""Metric to what Hugging Face calls it."""

UNKNOWN = {
    "developers": "a pipeline does not know who runs it",
    "funded_by": "money leaves no trace in a training run",
    "shared_by": "the pipeline writes files and publishes nothing",
    "license": "weights inherit conditions from the data, the teacher and those who trained them, which only "
    "people can settle",
    "repository": "the code may lie anywhere",
    "demo": "nobody has said where one runs",
    "contact": "a pipeline does not know who runs it",
    "cloud_provider": "a virtual machine does not know whose it is",
}
"""Why the pipeline cannot know what the configuration leaves open."""

PTQ_SETTINGS = ("method", "calibration", "ptq", "float_layers", "saturation_safe")
"""What counts where nothing is trained."""


def render(
    table: Sequence[Row],
    entries: Sequence[Entry],
    *,
    said: Mapping[str, str | None],
    student: Mapping[str, Any],
    built: Sequence[Mapping[str, Any]],
    views: Mapping[str, Any],
    teacher: Mapping[str, Any],
    teacher_history: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    benchmark: Mapping[str, Any],
    max_drop: float,
    choice: Choice,
    evidence: Evidence | None = None,
) -> str:
    """The card of all variants of a run, YAML front matter included.

    Args:
        table: what is compared.
        entries: what the table was made of, in its order.
        said: section ``card`` of the parameters.
        student: section ``student``.
        built: cards of the variants' models, in the order of the table.
        views: section ``views``.
        teacher: the teacher's card.
        teacher_history: its training.
        data: the data report.
        benchmark: as ``latency.measure`` returns it.
        max_drop: the gate, as a fraction of 1.
        choice: what the budget chooses.
        evidence: what else was measured.
    """
    task = TASKS[data["task"]]
    evidence = evidence or Evidence()
    shipped = next(row for row in table if row.variant == choice.closest)
    told = next(entry for entry in entries if entry.variant == shipped.variant)
    architecture = ARCHITECTURES.get(student["architecture"], student["architecture"])
    name = (
        said["name"]
        or f"{architecture} {figure(student['width'])}/{figure(student['size'])} for {data_name(data)}"
    )
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).from_string(files("pipeline.report.card").joinpath("card.md").read_text())
    text = template.render(
        name=name,
        architecture=architecture,
        said=said,
        unknown=_unknown,
        figure=figure,
        span=span,
        task=task,
        noun="class" if task is SINGLE_LABEL else "attribute",
        nouns="classes" if task is SINGLE_LABEL else "attributes",
        listed=listed,
        table=table,
        student=student,
        built=built[0],
        git_commit=provenance.git_commit(),
        versions=provenance.versions(),
        views=views,
        teacher=teacher,
        data=data,
        data_name=data_name(data),
        benchmark=benchmark,
        max_drop=max_drop,
        choice=choice,
        best=shipped if choice.variant else None,
        shipped=shipped,
        path=[row.variant for row in reversed(lineage(table, shipped.variant))],
        told=told,
        comparison=evidence.comparison,
        moved=(evidence.comparison or {"variants": {}})["variants"].get(told.variant),
        groups=[part for part in (evidence.comparison or {}).get("slices", ()) if part["groups"]],
        corruptions=(evidence.robustness or {}).get("corruptions"),
        adversarial=(evidence.robustness or {}).get("adversarial"),
        outside=(evidence.robustness or {}).get("out_of_distribution"),
        explanations=evidence.explanations,
        costs=evidence.costs,
        calibration=told.scores.get("calibration"),
        attack=_first_attack(evidence.robustness, told),
        extremes=_extremes(told),
        mistakes=mistakes(told),
        snippet=SNIPPET.format(variant=shipped.variant),
        settings=_settings(teacher, built),
        results=_results(table, task),
        speeds=_speeds(table, benchmark),
        efforts=_efforts(entries, teacher_history, evidence.costs),
        class_table=_class_table(entries, told, task),
        reasons=_reasons(evidence.comparison),
        corruption_table=_corruption_table(evidence.robustness),
        attack_table=_attack_table(evidence.robustness),
        outside_table=_outside_table(evidence.robustness),
        group_tables=_group_tables(evidence.comparison, told),
        calibration_table=_calibration_table(entries, evidence.comparison),
        energy_table=_energy_table(evidence.costs),
    )
    return str(
        ModelCard(f"---\n{_metadata(name, table, said, student, data, task).to_yaml()}\n---\n\n{text}")
    )


def _metadata(
    name: str,
    table: Sequence[Row],
    said: Mapping[str, str | None],
    student: Mapping[str, Any],
    data: Mapping[str, Any],
    task: Task,
) -> ModelCardData:
    return ModelCardData(
        language=said["language"],
        license=(said["license"] or "unknown").lower(),
        library_name="onnx",
        pipeline_tag="image-classification",
        tags=["image-classification", "onnx", student["architecture"], *(TAGS[row.op] for row in table)],
        metrics=[METRIC_IDS[task.metric]],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=data_name(data),
                dataset_name=data_name(data),
                dataset_split="test",
                dataset_revision=data["data_sha256"],
                metric_type=METRIC_IDS[task.metric],
                metric_name=f"{task.words} of {row.variant}.onnx",
                metric_value=round(row.score, 6),
            )
            for row in table
        ],
    )


def _unknown(key: str) -> str:
    return f"Not stated: {UNKNOWN[key]}, and `card.{key}` of this run's configuration is null."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def _within(
    value: int | float, lo: int | float, hi: int | float, unit: str, digits: int | None = None
) -> str:
    return f"{figure(value, unit, digits)} ({span(lo, hi, unit, digits)})"


def _results(table: Sequence[Row], task: Task) -> str:
    return _table(
        ["variant", "made by", task.words, "against its parent", "verdict", "file", "parameters", "MACs"],
        (
            [
                f"{row.variant}.onnx",
                f"{row.op} of {row.parent}",
                _within(row.score, row.score_lo, row.score_hi, "%"),
                _within(row.score_delta, row.delta_lo, row.delta_hi, "points"),
                row.verdict,
                figure(row.size_bytes, "MB"),
                figure(row.parameters, "M"),
                figure(row.macs, "M", 0),
            ]
            for row in table
        ),
    )


def _speeds(table: Sequence[Row], benchmark: Part) -> str:
    footprint = benchmark.get("footprint") or {}
    large = next((c for c in benchmark.get("conditions", ()) if c["batch_size"] > 1), None)
    header = ["variant", "median", "p90", "p99", "speed, fp32's being one"]
    if large:
        header.append(f"batches of {figure(large['batch_size'])}, threads: {figure(large['threads'])}")
    if footprint:
        header += ["to load", "memory at the peak"]
    rows = []
    for row in table:
        of = benchmark["variants"][row.variant]
        line = [row.variant, *(figure(of[f"latency_ms_{tail}"], "ms") for tail in ("p50", "p90", "p99"))]
        line.append(
            "no fp32"
            if of["ratio"] is None
            else _within(of["ratio"], of["ratio_lo"], of["ratio_hi"], "times")
        )
        if large:
            line.append(figure(large["variants"][row.variant]["images_per_second"], "/s"))
        if footprint:
            own = footprint[row.variant]
            line += [figure(own["load_ms"], "ms"), figure(own["memory_peak_bytes"], "MB")]
        rows.append(line)
    return _table(header, rows)


def _efforts(
    entries: Sequence[Entry], teacher_history: Sequence[Mapping[str, Any]], costs: Part | None
) -> str:
    """How long each training took and how fast it went."""
    histories = {"teacher": teacher_history} | {entry.variant: entry.history for entry in entries}
    rows = []
    for name, history in histories.items():
        seconds = figure(sum(line["seconds"] for line in history), "minutes") if history else "no training"
        speeds = [line["images_per_second"] for line in history if line.get("images_per_second")]
        line = [name, seconds, figure(max(speeds), "/s") if speeds else "not kept"]
        if costs:
            own = costs["training"][name]["own"]
            line += [figure(own["kwh"], "Wh"), figure(own["gram_co2"], "g")]
        rows.append(line)
    energy = ["energy", "CO2"] if costs else []
    return _table(["step", "training", "fastest epoch", *energy], rows)


def _extremes(told: Entry) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The class that is named best and the one that is named worst."""
    ranked = sorted((c for c in told.scores["classes"] if c["n"]), key=_share)
    return (ranked[-1], ranked[0]) if len(ranked) > 1 else None


def _first_attack(robustness: Part | None, told: Entry) -> Mapping[str, Any] | None:
    """The strongest attack of the least radius on the shipped variant."""
    found = (robustness or {}).get("adversarial") or {"results": []}
    own = [result for result in found["results"] if result["variant"] == told.variant]
    return min(own, key=lambda result: (result["radius"], result["accuracy"]), default=None)


def _share(counts: Mapping[str, Any]) -> int | float:
    if "average_precision" in counts:
        return counts["average_precision"] or 0.0
    return counts["correct"] / counts["n"]


def _class_table(entries: Sequence[Entry], told: Entry, task: Task) -> str:
    counted = told.scores["classes"]
    chosen = sorted(
        (index for index, counts in enumerate(counted) if counts["n"]),
        key=lambda index: _share(counted[index]) if len(counted) > SHOWN_CLASSES else index,
    )[:SHOWN_CLASSES]
    return _table(
        ["class" if task is SINGLE_LABEL else "attribute", "images", *(entry.variant for entry in entries)],
        (
            [
                counted[index]["label"],
                figure(counted[index]["n"]),
                *(figure(_share(entry.scores["classes"][index]), "%", 1) for entry in entries),
            ]
            for index in chosen
        ),
    )


def _reasons(comparison: Part | None) -> str:
    if comparison is None:
        return ""
    lines = []
    for variant, of in comparison["variants"].items():
        line = f"- **{variant}**, {of['verdict']}: {of['reason'].rstrip('.')}."
        flips = of.get("flips")
        if flips:
            line += (
                f" Of the images that {of['parent']} has right it gets {figure(flips['lost'])} wrong, and "
                f"{figure(flips['gained'])} right that {of['parent']} has wrong."
            )
        if of.get("classes_worse"):
            line += f" Shown to be worse on: {listed(of['classes_worse'])}."
        lines.append(line)
    return "\n".join(lines)


def _corruption_table(robustness: Part | None) -> str:
    found = (robustness or {}).get("corruptions")
    if not found:
        return ""
    variants = found["variants"]
    rows = [
        ["none", *(figure(of["clean"], "%", 1) for of in variants.values())],
        [
            "all kinds",
            *(_within(of["mean"], of["mean_lo"], of["mean_hi"], "%", 1) for of in variants.values()),
        ],
    ]
    rows += [
        [kind.replace("_", " "), *(figure(of["kinds"][kind]["accuracy"], "%", 1) for of in variants.values())]
        for kind in found["kinds"]
    ]
    return _table(["corruption", *variants], rows)


def _attack_table(robustness: Part | None) -> str:
    found = (robustness or {}).get("adversarial")
    if not found or not found["results"]:
        return ""
    return _table(
        ["attack", "gradients of", "answered by", "radius, grey levels", "named right", "without attack"],
        (
            [
                result["attack"],
                result["module"],
                f"{result['variant']}.onnx",
                figure(result["radius"]),
                _within(result["accuracy"], result["lo"], result["hi"], "%", 1),
                figure(found["clean"][result["variant"]]["accuracy"], "%", 1),
            ]
            for result in found["results"]
        ),
    )


def _outside_table(robustness: Part | None) -> str:
    found = (robustness or {}).get("out_of_distribution")
    if not found or not found["sets"]:
        return ""
    rows = [
        [
            name,
            variant,
            figure(of["confidence"], "%", 1),
            figure(of["over_90"], "%", 1),
            figure(of["auroc"], "plain"),
        ]
        for name, images in found["sets"].items()
        for variant, of in images["variants"].items()
    ]
    return _table(
        ["images", "variant", "mean confidence", "at 90% or more", "AUROC against test images"], rows
    )


def _group_tables(comparison: Part | None, told: Entry) -> list[str]:
    """A table for each column, of the shipped variant."""
    return [
        _table(
            [part["column"].replace("_", " "), "images", f"{told.variant} (95% interval)"],
            (
                [
                    group["group"],
                    figure(group["n"]),
                    _within(group["score"], group["lo"], group["hi"], "%", 1),
                ]
                for group in largest(part["variants"][told.variant]["groups"])
            ),
        )
        for part in (comparison or {}).get("slices", ())
        if part["groups"]
    ]


def _calibration_table(entries: Sequence[Entry], comparison: Part | None) -> str:
    known = list(calibrated(entries, comparison))
    if not known:
        return ""
    return _table(
        [
            "variant",
            "calibration error (ECE)",
            "error against its parent",
            "mean confidence",
            "negative log likelihood",
            "Brier score",
        ],
        (
            [
                name,
                _within(of["ece"], of["ece_lo"], of["ece_hi"], "%"),
                _within(moved["ece_delta"], moved["ece_delta_lo"], moved["ece_delta_hi"], "points")
                if moved
                else "",
                figure(of["confidence"], "%", 1),
                figure(of["nll"], "plain"),
                figure(of["brier"], "plain"),
            ]
            for name, _, of, moved in known
        ),
    )


def _energy_table(costs: Part | None) -> str:
    if not costs:
        return ""
    return _table(
        ["variant", "energy of a thousand images", "CO2 of a thousand images"],
        (
            [variant, figure(of["kwh_per_1000"], "mWh"), figure(of["gram_co2_per_1000"], "mg")]
            for variant, of in costs["inference"].items()
        ),
    )


def _settings(teacher: Part, built: Sequence[Part]) -> str:
    """How everything was trained, as YAML."""
    made: dict[str, Any] = {"teacher": teacher["settings"]}
    for of in built:
        applied = of["settings"]
        if applied.get("method") == "ptq":
            applied = {key: applied[key] for key in PTQ_SETTINGS}
        made[of["variant"]] = {"parent": of["parent"], "op": of["op"], **applied}
    return yaml.safe_dump(made, sort_keys=False, default_flow_style=None, width=100).rstrip()
