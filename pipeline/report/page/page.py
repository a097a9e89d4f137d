"""The report as one self-contained page."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.models.histories import continued
from pipeline.report.evidence import Evidence
from pipeline.report.figures import figure, span
from pipeline.report.page import charts, scores, sensitivity
from pipeline.report.pictures import COST_LABELS, Cost, cost_of
from pipeline.report.tables import Entry, Row
from pipeline.selection.budget import TEACHER, Choice
from pipeline.tasks import METRICS, SINGLE_LABEL, TASKS, Task

Facts = Sequence[tuple[str, str]]

NOUNS = {"single_label": "classes", "multi_label": "attributes"}
SHOWN_REJECTED = 50
"""Of more rejected files than this, the first are shown."""

SNIPPET = """\
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{variant}.onnx")
about = session.get_modelmeta().custom_metadata_map
labels, rule = json.loads(about["labels"]), json.loads(about["input"])

image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
side = rule["crop"] * min(image.size)
left, top = (image.width - side) / 2, (image.height - side) / 2
pixels = image.resize(
    (rule["size"], rule["size"]),
    Image.Resampling[rule["interpolation"].upper()],
    box=(left, top, left + side, top + side),
)
[logits] = session.run(["logits"], {{"images": np.asarray(pixels)[None]}})
print(labels[logits[0].argmax()])
"""


def render(
    table: Sequence[Row],
    entries: Sequence[Entry],
    *,
    teacher: Mapping[str, Any],
    teacher_history: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    benchmark: Mapping[str, Any],
    size: int,
    max_drop: float,
    choice: Choice,
    evidence: Evidence | None = None,
) -> str:
    """The page's HTML.

    Args:
        table: what is compared.
        entries: what the table was made of, in its order.
        teacher: the teacher's card.
        teacher_history: its training.
        data: the data report.
        benchmark: as ``latency.measure`` returns it.
        size: of the shipped files' images, in pixels.
        max_drop: the gate, as a fraction of 1.
        choice: what the budget chooses.
        evidence: what else was measured.
    """
    shipped = next(row for row in table if row.variant == choice.closest)
    best = shipped if choice.variant else None
    told = next(entry for entry in entries if entry.variant == shipped.variant)
    task = TASKS[data["task"]]
    evidence = evidence or Evidence()
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("pipeline.report.page").joinpath("page.html").read_text())
    group_pictures, gaps = scores.groups(evidence.comparison, told)
    return template.render(
        tradeoffs=[_tradeoff(table, cost, teacher["test"][task.metric], task) for cost in COST_LABELS],
        metric=task.words,
        noun=NOUNS[task.name],
        kicker=f"Distillery report: {data_name(data)}, {len(data['classes'])} {NOUNS[task.name]}",
        title=_title(best, choice, task),
        lead=_lead(table, teacher, max_drop, task),
        figures=_figures(best, told, teacher, task) if best else (),
        table=table,
        lines=_lines(table, entries, max_drop, evidence, benchmark["settings"].get("reference")),
        best=best,
        choice=choice.reason,
        gate=f"A variant is rejected when its interval reaches below {figure(-max_drop, 'points')}: "
        "it has to be shown that no more is lost.",
        reasons=scores.reasons(entries, evidence.comparison),
        parity=scores.parity(entries),
        classes=scores.classes(entries, told, evidence.comparison),
        mistakes_of=shipped.variant,
        mistakes=scores.mistakes(told),
        corruptions=scores.corruptions(evidence.robustness),
        adversarial=scores.adversarial(evidence.robustness),
        outside=scores.outside(evidence.robustness),
        groups=group_pictures,
        gaps=gaps,
        calibrations=scores.calibrations(entries, evidence.comparison),
        explanations=scores.explanations(evidence, shipped.variant),
        sensitivity=sensitivity.pictures(evidence.sensitivity),
        sensitivity_note=sensitivity.note(evidence.sensitivity),
        curves=_curves(teacher_history, entries),
        test_images=data["images"]["test"],
        val_images=data["images"]["val"],
        facts=_facts(teacher, data),
        counts=scores.counts(data) if "counts" in data else None,
        rejected=data["rejected"][:SHOWN_REJECTED],
        rejected_more=max(0, len(data["rejected"]) - SHOWN_REJECTED),
        conditions=scores.conditions(benchmark),
        noise=benchmark.get("noise"),
        machine=_machine(benchmark),
        costs=scores.costs(evidence.costs),
        shipped=shipped,
        snippet=SNIPPET.format(variant=shipped.variant),
        size=size,
        class_count=len(data["classes"]),
    )


def data_name(data: Mapping[str, Any]) -> str:
    """What people call the data."""
    return Path(data["path"]).name if data["source"] != "fashion_mnist" else data["source"].replace("_", "-")


def _does(score: float, task: Task) -> str:
    """What a classifier of this score does."""
    return (
        f"names {score:.1%} of the test images right" if task is SINGLE_LABEL else f"has a mAP of {score:.1%}"
    )


def _title(best: Row | None, choice: Choice, task: Task) -> str:
    """The result in one sentence."""
    if best is None:
        return f"Nothing to ship: {choice.reason}."
    sentence = f"{best.variant} {_does(best.score, task)} with {figure(best.size_bytes, 'MB')}"
    if best.latency_ratio_to_fp32 is None or best.variant == "fp32":
        return f"{sentence} and {best.latency_ms_p50:.1f} ms an image."
    return f"{sentence}, {best.latency_ratio_to_fp32:.1f} times as fast as fp32."


def _lead(table: Sequence[Row], teacher: Mapping[str, Any], max_drop: float, task: Task) -> str:
    accepted = sum(row.verdict == "accept" for row in table)
    return (
        f"The teacher, {teacher['origin']}, {_does(teacher['test'][task.metric], task)}. "
        f"{accepted} of {len(table)} variants {'is' if accepted == 1 else 'are'} shown to lose "
        f"no more than {100 * max_drop:g} points against their parents."
    )


def _figures(
    best: Row, told: Entry, teacher: Mapping[str, Any], task: Task
) -> Sequence[tuple[str, str, str]]:
    """The recommended variant in four figures: what, how much, and its small print."""
    ratio = best.latency_ratio_to_fp32
    return (
        (
            f"{best.variant}: {task.words}",
            f"{best.score:.1%}",
            f"95% interval {span(best.score_lo, best.score_hi, '%')}",
        ),
        (
            "against the teacher",
            f"{figure(best.score - teacher['test'][task.metric], 'points')}",
            f"teacher {teacher['test'][task.metric]:.1%}",
        ),
        ("file", f"{figure(best.size_bytes, 'MB')}", f"{best.parameters / 1e6:.2f} M parameters"),
        (
            "median latency",
            f"{best.latency_ms_p50:.2f} ms",
            "no fp32 to compare with"
            if ratio is None
            else f"{ratio:.2f} times the speed of fp32"
            f" ({told.latency['ratio_lo']:.2f} to {told.latency['ratio_hi']:.2f})",
        ),
    )


def _tradeoff(table: Sequence[Row], cost: Cost, teacher_score: float, task: Task) -> Markup:
    words = "ms" if cost == "latency" else "MB"
    marks = [
        charts.Mark(
            name=row.variant,
            x=cost_of(row, cost),
            y=100 * row.score,
            lo=100 * row.score_lo,
            hi=100 * row.score_hi,
            kind=row.verdict,
            note=f"{row.variant}: {task.words} {figure(row.score, '%')} "
            f"({span(row.score_lo, row.score_hi, '%')}), {cost_of(row, cost):.2f} {words}, {row.verdict}",
        )
        for row in table
    ]
    return charts.tradeoff(
        marks,
        title=f"{task.words} against {cost}",
        x_label=COST_LABELS[cost],
        y_label=f"{task.words} on test, %",
        line=(f"{TEACHER} {figure(teacher_score, '%', 1)}", 100 * teacher_score),
        ceiling=100.5,
    )


def _lines(
    table: Sequence[Row],
    entries: Sequence[Entry],
    max_drop: float,
    evidence: Evidence,
    reference: str | None,
) -> list[dict[str, Any]]:
    """The table's cells as they are read."""
    low = min(-max_drop, *(row.delta_lo for row in table))
    high = max(0.0, *(row.delta_hi for row in table))
    margin = 0.05 * (high - low)

    def place(delta: float) -> str:
        return f"{100 * (delta - low + margin) / (high - low + 2 * margin):.2f}%"

    lines = []
    for row, entry in zip(table, entries, strict=True):
        marks = {
            "lo": row.delta_lo,
            "at": row.score_delta,
            "hi": row.delta_hi,
            "zero": 0.0,
            "gate": -max_drop,
        }
        ratio, latency = row.latency_ratio_to_fp32, entry.latency
        compressed = entry.scores.get("compressed_bytes")
        found = evidence.comparison["variants"][row.variant] if evidence.comparison else {}
        lines.append(
            {
                "row": row,
                "origin": f"{row.op} of {row.parent}" if row.parent != TEACHER else f"{row.op}, from teacher",
                "score": figure(row.score, "%", bare=True),
                "score_interval": span(row.score_lo, row.score_hi, "%"),
                "delta": figure(row.score_delta, "points", bare=True),
                "delta_interval": span(row.delta_lo, row.delta_hi, "points"),
                "forest": ";".join(f"--{name}:{place(value)}" for name, value in marks.items()),
                "p": "not distinguishable" if found.get("distinguishable") is False else _p(row.mcnemar_p),
                "size": figure(row.size_bytes, "MB", bare=True),
                "compressed": "" if compressed is None else f"{figure(compressed, 'MB', bare=True)} gzipped",
                "parameters": figure(row.parameters, "M", bare=True),
                "macs": figure(row.macs, "M", 0, bare=True),
                "latency": figure(row.latency_ms_p50, "ms", bare=True),
                "latency_tails": [
                    f"{tail} {figure(latency[f'latency_ms_{tail}'], 'ms', bare=True)}"
                    for tail in ("p90", "p99")
                ],
                "ratio": "" if ratio is None else figure(ratio, "times", bare=True),
                "ratio_interval": ""
                if ratio is None
                else "not distinguishable"
                if latency.get("distinguishable") is False and row.variant != reference
                else span(latency["ratio_lo"], latency["ratio_hi"], "times"),
            }
        )
    return lines


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _curves(
    teacher_history: Sequence[Mapping[str, Any]], entries: Sequence[Entry]
) -> list[tuple[str, str, Markup]]:
    """Per training run: its name, how long it was, and its picture."""
    trained = [(TEACHER, teacher_history), *((entry.variant, entry.history) for entry in entries)]
    return [
        (name, f"{history[-1]['epoch']:.3g} epochs, {figure(seconds, 'minutes')}", _curve(name, history))
        for name, history, seconds in (
            (name, continued(lines), sum(line["seconds"] for line in lines))
            for name, lines in trained
            if lines
        )
    ]


def _curve(name: str, history: Sequence[Mapping[str, Any]]) -> Markup:
    panels = []
    for metric, task in METRICS.items():
        points = _points(history, f"val_{metric}", 100)
        if points:
            panels.append(charts.Series(f"val {task.words}, %", points, f"{points[-1][1]:.1f}", "accept"))
    points = _points(history, "loss", 1)
    if points:
        panels.append(charts.Series("loss", points, f"{points[-1][1]:.3f}", "muted"))
    return charts.curves(panels, title=f"Training of {name}", x_label="epoch")


def _points(
    history: Sequence[Mapping[str, Any]], key: str, scale: int
) -> list[tuple[int | float, int | float]]:
    return [(line["epoch"], scale * line[key]) for line in history if line.get(key) is not None]


def _facts(teacher: Mapping[str, Any], data: Mapping[str, Any]) -> Facts:
    task = TASKS[data["task"]]
    images = ", ".join(f"{count:,} {name}" for name, count in data["images"].items())
    rejected, leaked = len(data["rejected"]), data["leaked_between_splits"]
    return (
        ("images", f"{images}; from {data['source']}"),
        (NOUNS[task.name], _shortened(data["classes"])),
        (
            "left out",
            f"{rejected:,} {'file or repeated image' if rejected == 1 else 'files or repeated images'}, "
            "each with its reason in report.json"
            if rejected
            else "nothing",
        ),
        (
            "shared by two splits",
            f"{leaked:,} images, taken out of train or val" if leaked else "no image",
        ),
        ("license", data["license"]),
        ("data sha256", data["data_sha256"]),
        ("teacher", f"{teacher['origin']}, at {teacher['input']['size']} px"),
        (
            f"{task.words} of the teacher",
            f"val {teacher['val'][task.metric]:.2%} of {teacher['val']['n']:,}, "
            f"test {teacher['test'][task.metric]:.2%} of {teacher['test']['n']:,}",
        ),
    )


def _machine(benchmark: Mapping[str, Any]) -> Facts:
    machine, settings, load = benchmark["machine"], benchmark["settings"], benchmark["load_average"]
    facts = [
        ("processor", f"{machine['cpu']}, {machine['cores_usable']} cores"),
        ("features that matter", ", ".join(machine["flags"]) or "none known"),
        (
            "calls",
            f"{settings['rounds']:,} of each file after {settings['warmup']} untimed ones, interleaved in "
            f"random order; batch {settings['batch_size']}, "
            f"{settings['threads']} {'thread' if settings['threads'] == 1 else 'threads'}",
        ),
        ("versions", ", ".join(f"{name} {value}" for name, value in machine["versions"].items())),
    ]
    if load["before"] and load["after"]:
        facts.append(("load average", f"{load['before'][0]} before, {load['after'][0]} after (one minute)"))
    return facts


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[: scores.SHOWN_CLASSES])
    return (
        shown
        if len(names) <= scores.SHOWN_CLASSES
        else f"{shown} and {len(names) - scores.SHOWN_CLASSES:,} more"
    )
