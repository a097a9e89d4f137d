"""The report as one self-contained page."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pipeline.budget import NEARLY_AS_FAST, TEACHER
from pipeline.report import pictures
from pipeline.report.tables import Entry, Row, recommended
from pipeline.tasks import SINGLE_LABEL, TASKS, Task

Facts = Sequence[tuple[str, str]]

NOUNS = {"single_label": "classes", "multi_label": "attributes"}
SHOWN_CLASSES = 30
"""Of more classes than this, those with the most errors are shown."""

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
    """
    best = recommended(table)
    shipped = best or max(table, key=lambda row: row.score)
    told = next(entry for entry in entries if entry.variant == shipped.variant)
    classes, classes_note = _classes(entries, told)
    task = TASKS[data["task"]]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files("pipeline.report").joinpath("page.html").read_text()
    )
    return template.render(
        **_tradeoffs(table, teacher["test"][task.metric]),
        metric=task.words,
        noun=NOUNS[task.name],
        kicker=f"Distillery report: {_data_name(data)}, {len(data['classes'])} {NOUNS[task.name]}",
        title=_title(table, best, task),
        lead=_lead(table, teacher, max_drop, task),
        figures=_figures(best, told, teacher, task) if best else (),
        table=table,
        lines=_lines(table, entries, max_drop),
        best=best,
        choice=f"The most accurate of those within {NEARLY_AS_FAST - 1:.0%} of the fastest, "
        "among variants that are accepted with all their ancestors.",
        gate=f"A variant is rejected when its interval reaches below {_signed(-max_drop)} points: "
        "it has to be shown that no more is lost.",
        classes=classes,
        classes_note=classes_note,
        mistakes_of=shipped.variant,
        mistakes=_mistakes(told),
        curves=_curves(teacher_history, entries),
        test_images=data["images"]["test"],
        val_images=data["images"]["val"],
        facts=_facts(teacher, data),
        machine=_machine(benchmark),
        shipped=shipped,
        snippet=SNIPPET.format(variant=shipped.variant),
        size=size,
        class_count=len(data["classes"]),
    )


def _data_name(data: Mapping[str, Any]) -> str:
    return Path(data["path"]).name if data["source"] != "fashion_mnist" else data["source"].replace("_", "-")


def _does(score: float, task: Task) -> str:
    """What a classifier of this score does."""
    return (
        f"names {score:.1%} of the test images right" if task is SINGLE_LABEL else f"has a mAP of {score:.1%}"
    )


def _title(table: Sequence[Row], best: Row | None, task: Task) -> str:
    """The result in one sentence."""
    if best is None:
        top = max(table, key=lambda row: row.score)
        return f"No variant passes the gate; the most accurate is {top.variant} with {top.score:.1%}."
    sentence = f"{best.variant} {_does(best.score, task)} with {_megabytes(best)} MB"
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
            f"95% interval {_range(best.score_lo, best.score_hi)}",
        ),
        (
            "against the teacher",
            f"{_signed(best.score - teacher['test'][task.metric])} points",
            f"teacher {teacher['test'][task.metric]:.1%}",
        ),
        ("file", f"{_megabytes(best)} MB", f"{best.parameters / 1e6:.2f} M parameters"),
        (
            "median latency",
            f"{best.latency_ms_p50:.2f} ms",
            "no fp32 to compare with"
            if ratio is None
            else f"{ratio:.2f} times the speed of fp32"
            f" ({told.latency['ratio_lo']:.2f} to {told.latency['ratio_hi']:.2f})",
        ),
    )


def _tradeoffs(table: Sequence[Row], teacher_score: float) -> dict[str, Markup]:
    return {
        f"{cost}_picture": Markup(
            pictures.inline(
                pictures.tradeoff(table, cost, teacher_score, pictures.PLACEHOLDERS),
                cost,
                f"Top-1 accuracy against {cost}",
            )
        )
        for cost in pictures.COST_LABELS
    }


def _lines(table: Sequence[Row], entries: Sequence[Entry], max_drop: float) -> list[dict[str, Any]]:
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
        lines.append(
            {
                "row": row,
                "origin": f"{row.op} of {row.parent}" if row.parent != TEACHER else f"{row.op}, from teacher",
                "score": f"{100 * row.score:.2f}",
                "score_interval": _range(row.score_lo, row.score_hi),
                "delta": _signed(row.score_delta),
                "delta_interval": f"{_signed(row.delta_lo)} to {_signed(row.delta_hi)}",
                "forest": ";".join(f"--{name}:{place(value)}" for name, value in marks.items()),
                "p": _p(row.mcnemar_p),
                "size": _megabytes(row),
                "parameters": f"{row.parameters / 1e6:.2f}",
                "macs": f"{row.macs / 1e6:.0f}",
                "latency": f"{row.latency_ms_p50:.2f}",
                "latency_p90": f"p90 {latency['latency_ms_p90']:.2f}",
                "ratio": "" if ratio is None else f"{ratio:.2f}",
                "ratio_interval": ""
                if ratio is None
                else f"{latency['ratio_lo']:.2f} to {latency['ratio_hi']:.2f}",
            }
        )
    return lines


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _classes(entries: Sequence[Entry], told: Entry) -> tuple[list[tuple[str, list[dict[str, Any]]]], str]:
    """Per class or attribute: how good each variant is and how dark its cell is; and what is shown."""
    counts = told.scores["classes"]
    chosen = range(len(counts))
    note = (
        "Average precision of each attribute, in per cent; the stronger the shade, the less."
        if "average_precision" in counts[0]
        else "Per cent of each class's test images that are named right; the stronger the shade, the fewer."
    )
    if len(counts) > SHOWN_CLASSES:
        by_errors = sorted(chosen, key=lambda index: _errors(counts[index]), reverse=True)
        chosen = sorted(by_errors[:SHOWN_CLASSES])
        note += f" Of {len(counts):,} classes, the {SHOWN_CLASSES} with the most errors of {told.variant}."
    cells = [
        (counts[index]["label"], [_class_cell(entry.scores["classes"][index]) for entry in entries])
        for index in chosen
    ]
    return cells, note


def _errors(counts: Mapping[str, Any]) -> int | float:
    """Images that are named wrong; for attributes what their average precision lacks of 1."""
    if "average_precision" in counts:
        return 1 - (counts["average_precision"] or 0)
    return counts["n"] - counts["correct"]


def _class_cell(counts: Mapping[str, Any]) -> dict[str, Any]:
    if not counts["n"]:
        return {"text": "no images", "shade": 0}
    accuracy = (
        counts["average_precision"] if "average_precision" in counts else counts["correct"] / counts["n"]
    )
    return {"text": f"{100 * accuracy:.1f}", "shade": round(min(45, 110 * (1 - accuracy)))}


def _mistakes(told: Entry) -> list[dict[str, Any]]:
    """The three most frequent confusions; none among attributes."""
    if "confusion" not in told.scores:
        return []
    confusion = np.array(told.scores["confusion"])
    names = [counts["label"] for counts in told.scores["classes"]]
    images = confusion.sum(axis=1)
    np.fill_diagonal(confusion, 0)
    most = [divmod(int(place), len(names)) for place in np.argsort(-confusion, axis=None, kind="stable")[:3]]
    return [
        {
            "truth": names[truth],
            "answer": names[answer],
            "count": int(confusion[truth, answer]),
            "of": int(images[truth]),
        }
        for truth, answer in most
        if confusion[truth, answer]
    ]


def _curves(
    teacher_history: Sequence[Mapping[str, Any]], entries: Sequence[Entry]
) -> list[tuple[str, str, Markup]]:
    """Per training run: its name, how long it was, and its picture."""
    trained = [(TEACHER, teacher_history), *((entry.variant, entry.history) for entry in entries)]
    drawn = []
    for number, (name, history) in enumerate((name, history) for name, history in trained if history):
        lines = _continued(history)
        minutes = sum(line["seconds"] for line in lines) / 60
        picture = pictures.inline(
            pictures.curves(lines, pictures.PLACEHOLDERS), f"c{number}", f"Training of {name}"
        )
        drawn.append((name, f"{lines[-1]['epoch']:.3g} epochs, {minutes:.1f} minutes", Markup(picture)))
    return drawn


def _continued(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Epochs that go on counting where one part of a training follows another."""
    lines, before, last = [], 0.0, 0.0
    for line in history:
        if line["epoch"] <= last:
            before += last
        last = line["epoch"]
        lines.append({**line, "epoch": before + last})
    return lines


def _facts(teacher: Mapping[str, Any], data: Mapping[str, Any]) -> Facts:
    task = TASKS[data["task"]]
    images = ", ".join(f"{count:,} {name}" for name, count in data["images"].items())
    rejected, leaked = len(data["rejected"]), data["leaked_between_splits"]
    return (
        ("images", f"{images}; from {data['source']}"),
        (NOUNS[task.name], _shortened(data["classes"])),
        (
            "left out",
            f"{rejected:,} files or repeated images, each with its reason in report.json"
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
    shown = ", ".join(names[:SHOWN_CLASSES])
    return shown if len(names) <= SHOWN_CLASSES else f"{shown} and {len(names) - SHOWN_CLASSES:,} more"


def _megabytes(row: Row) -> str:
    return f"{row.size_bytes / 1e6:.2f}"


def _range(lo: float, hi: float) -> str:
    return f"{100 * lo:.2f} to {100 * hi:.2f}"


def _signed(fraction: float) -> str:
    """In points, with a true minus sign."""
    return f"{100 * fraction:+.2f}".replace("-", "\N{MINUS SIGN}")
