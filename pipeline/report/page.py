"""The report as one self-contained page."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.report import pictures
from pipeline.report.tables import Entry, Row, recommended

Facts = Sequence[tuple[str, str]]


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
    palette = pictures.PLACEHOLDERS
    top1 = teacher["test"]["top1"]
    best = recommended(table)
    drawn = [("teacher", teacher_history), *((entry.variant, entry.history) for entry in entries)]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files("pipeline.report").joinpath("page.html").read_text()
    )
    pair = {
        f"{cost}_picture": Markup(
            pictures.inline(
                pictures.tradeoff(table, cost, top1, palette), cost, f"top-1 accuracy against {cost}"
            )
        )
        for cost in pictures.COST_LABELS
    }
    return template.render(
        **pair,
        title=f"{len(table)} variants of a classifier for {len(data['classes'])} classes",
        lead=_lead(table, best, top1),
        table=table,
        best=best,
        gate=f"A variant is rejected if the interval allows a loss of more than {100 * max_drop:g} points.",
        classes=_classes(entries),
        curves=[
            (
                name,
                Markup(
                    pictures.inline(
                        pictures.curves(_continued(history), palette), f"c-{name}", f"training of {name}"
                    )
                ),
            )
            for name, history in drawn
            if history
        ],
        test_images=data["images"]["test"],
        val_images=data["images"]["val"],
        facts=_facts(teacher, data),
        machine=_machine(benchmark),
        size=size,
    )


def _lead(table: Sequence[Row], best: Row | None, teacher_top1: float) -> str:
    first = f"The teacher names {teacher_top1:.1%} of the test images as they are labelled. "
    if best is None:
        return first + "No variant passes the gate."
    saved = 1 - best.size_bytes / max(row.size_bytes for row in table)
    return (
        f"{first}{best.variant} names {best.top1:.1%} with {best.size_bytes / 1e6:.2f} MB, "
        f"{saved:.0%} less than the largest file, and needs {best.latency_ms_p50:.1f} ms an image."
    )


def _classes(entries: Sequence[Entry]) -> list[tuple[str, list[dict[str, float]]]]:
    """Per class: accuracy of each variant, and how dark its cell is, in per cent."""
    names = [row["label"] for row in entries[0].scores["classes"]]
    rows = []
    for index, name in enumerate(names):
        counts = [entry.scores["classes"][index] for entry in entries]
        accuracies = [count["correct"] / max(1, count["n"]) for count in counts]
        rows.append((name, [{"accuracy": a, "shade": round(min(75, 150 * (1 - a)))} for a in accuracies]))
    return rows


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
    images = ", ".join(f"{count:,} {name}" for name, count in data["images"].items())
    return (
        ("images", f"{images}, from {data['source']}"),
        ("classes", ", ".join(data["classes"])),
        ("left out", f"{len(data['rejected']):,} files or repeated images, with reasons in report.json"),
        ("leaks", f"{data['leaked_between_splits']} images stood in two splits and were taken out of train"),
        ("license", data["license"]),
        ("teacher", f"{teacher['origin']}, at {teacher['input']['size']} px"),
        (
            "teacher's top-1",
            f"val {teacher['val']['top1']:.2%} of {teacher['val']['n']:,}, "
            f"test {teacher['test']['top1']:.2%} of {teacher['test']['n']:,}",
        ),
    )


def _machine(benchmark: Mapping[str, Any]) -> Facts:
    machine, settings = benchmark["machine"], benchmark["settings"]
    return (
        ("processor", f"{machine['cpu']}, {machine['cores_usable']} cores"),
        ("relevant features", ", ".join(machine["flags"]) or "none known"),
        (
            "calls",
            f"{settings['rounds']} of each file after {settings['warmup']} untimed ones, in random order, "
            f"batch {settings['batch_size']}, {settings['threads']} thread(s)",
        ),
        (
            "load average",
            f"{benchmark['load_average']['before']} before, {benchmark['load_average']['after']} after",
        ),
        ("versions", ", ".join(f"{name} {value}" for name, value in machine["versions"].items())),
    )
