"""The page's tables of scores: per class, verdicts, export check and calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report import findings, words
from pipeline.report.figures import figure, span
from pipeline.report.page import charts
from pipeline.report.page.grid import DARKEST, Cell, Figure, Grid
from pipeline.report.results import RunResults, VariantResults
from pipeline.selection.budget import listed
from pipeline.tasks import SINGLE_LABEL

LEAST_RANGE = 0.02
"""Least difference to the parent, as a fraction of 1, that may have the strongest colour."""

MATRIX = 20
"""Greatest number of classes in a confusion matrix."""

STEPS = {
    "torch_float": "PyTorch, float activations",
    "torch_half": "every layer's output rounded to float16, as GPUs do",
    "onnx_float": "the same network in ONNX Runtime",
    "fake_quant": "activations rounded, float arithmetic",
    "simulator": "integer arithmetic, simulated, 32-bit sums",
    "sums_16_bit": "integer arithmetic, 16-bit sums of older CPUs",
    "onnx_plain": "ONNX file, not optimised",
    "onnx": "ONNX file, as shipped",
}
"""The steps from the PyTorch module to the shipped file."""


@dataclass(frozen=True)
class Verdict:
    """The verdict of the gate on one variant, in words."""

    variant: str
    verdict: str
    sentence: str
    details: str
    """The gate's own reason, the answers that changed, and the classes that became worse or better."""


def classes(results: RunResults) -> Grid:
    """Score of each variant on each class or attribute, and its difference to the parent."""
    counts = results.closest_results.scores["classes"]
    attributes = results.task is not SINGLE_LABEL
    shown = findings.worst_classes(results.closest_results)
    note = (
        f"{'Average precision of each attribute' if attributes else 'Accuracy on each class'}, in per cent. "
        "Below it, the difference to the parent in points: orange is worse, blue is better, and bold is "
        f"significant, {'' if attributes else 'by a paired exact test '}corrected for the number of "
        f"{words.noun(results.task, 2)}."
    )
    if len(counts) > len(shown):
        note += (
            f" Shown are the {len(shown)} of {len(counts):,} {words.noun(results.task, 2)} with the most "
            f"errors of {results.closest.variant}."
        )
    # By name: a class that no test image has is not compared.
    changes = [
        {change["label"]: change for change in results.change(one.variant)["classes"]}
        for one in results.variants
    ]
    names = [counts[index]["label"] for index in shown]
    deltas = (abs(of[name]["delta"]) for of in changes for name in names if name in of)
    greatest = max([LEAST_RANGE, *deltas])

    def cell(one: VariantResults, change: Mapping[str, Any] | None, index: int) -> Cell:
        score = findings.class_score(one.scores["classes"][index])
        if score is None:
            return Cell("no images")
        text = figure(score, "%", 1, bare=True)
        if change is None:
            return Cell(text)
        return Cell(
            text,
            small=figure(change["delta"], "points", 1, bare=True),
            shade=round(DARKEST * abs(change["delta"]) / greatest),
            tone="heat" if change["delta"] < 0 else "accept",
            title=f"95 % CI {span(change['lo'], change['hi'], 'points', 1)} points",
            strong=bool(change.get("worse") or change.get("better")),
        )

    rows = [
        (
            name,
            [
                cell(one, change.get(name), index)
                for one, change in zip(results.variants, changes, strict=True)
            ],
        )
        for index, name in zip(shown, names, strict=True)
    ]
    return Grid(words.noun(results.task), [one.variant for one in results.variants], rows, note)


def verdicts(results: RunResults) -> list[Verdict]:
    """Why each variant is accepted or rejected, and which answers changed."""
    sentences = []
    for row in results.table:
        change = results.change(row.variant)
        details = [change["reason"], words.flips(change)]
        for key, direction in (("classes_worse", "worse"), ("classes_better", "better")):
            if change[key]:
                details.append(f"Significantly {direction}: {listed(change[key])}.")
        sentences.append(
            Verdict(
                row.variant,
                row.verdict,
                words.verdict(change),
                " ".join(part for part in details if part),
            )
        )
    return sentences


def confusions(results: RunResults) -> list[tuple[str, Grid]]:
    """The confusion matrix of every variant, the shipped one first; none among attributes.

    Of many classes, those with the most errors of the shipped variant are shown.
    """
    shipped = results.closest_results
    if not shipped.scores.get("confusion"):
        return []
    counts = shipped.scores["classes"]
    by_errors = sorted(range(len(counts)), key=lambda index: -findings.class_errors(counts[index]))
    shown = sorted(by_errors[:MATRIX])
    ordered = sorted(results.variants, key=lambda one: one.variant != shipped.variant)
    return [(one.variant, _confusion(one, shown)) for one in ordered if one.scores.get("confusion")]


def _confusion(one: VariantResults, shown: Sequence[int]) -> Grid:
    names = [one.scores["classes"][index]["label"] for index in shown]
    hidden = len(one.scores["classes"]) - len(shown)
    rows = []
    for index, name in zip(shown, names, strict=True):
        line = one.scores["confusion"][index]
        total = sum(line)
        counts = [line[answer] for answer in shown]
        cells = [
            Cell(
                figure(count) if count else "",
                shade=round(DARKEST * count / total) if total else 0,
                tone="accept" if answer == index else "heat",
                title=f"{figure(count / total, '%', 1)} of {name}" if count else "",
            )
            for answer, count in zip(shown, counts, strict=True)
        ]
        if hidden:
            cells.append(Cell(figure(total - sum(counts))))
        rows.append((name, cells))
    note = "Rows are the true classes, columns the answers; each cell counts test images."
    if hidden:
        note += f" Shown are the {len(shown)} of {len(one.scores['classes']):,} classes with the most errors."
    return Grid("true class", [*names, "others"] if hidden else names, rows, note)


def export_check(results: RunResults) -> Grid | None:
    """Score of every variant at each step from its module to its shipped file; None if not compared."""
    checked = [one for one in results.variants if one.scores.get("parity")]
    if not checked:
        return None
    ladders = [{rung["rung"]: rung for rung in one.scores["parity"]["rungs"]} for one in checked]

    def cell(one: VariantResults, rung: Mapping[str, Any] | None) -> Cell:
        if rung is None:
            return Cell("")
        title = words.counted(rung["ties"], "tie") if rung.get("ties") else ""
        if rung.get("proven"):
            title = "proven: no sum of this file can exceed 16 bits"
        score = figure(rung[one.scores["metric"]], "%", 1, bare=True)
        return Cell(score, small=f"{figure(rung['shipped'], '%', 1)} identical", title=title)

    rows = [
        (text, [cell(one, rungs.get(name)) for one, rungs in zip(checked, ladders, strict=True)])
        for name, text in STEPS.items()
        if any(name in rungs for rungs in ladders)
    ]
    note = (
        f"Score ({results.task.words}) in per cent on {figure(checked[0].scores['parity']['n'])} validation "
        "images, and the share of answers that are identical to those of the shipped file. Steps that must "
        "compute the same are compared on every image, and layer by layer where an answer differs."
    )
    return Grid("computed as", [one.variant for one in checked], rows, note)


def calibrations(results: RunResults) -> list[Figure]:
    """A reliability diagram of the teacher, of the shipped variant, and of each other one."""
    first = (results.teacher_name, results.closest.variant)
    every = sorted(
        findings.calibrations(results),
        key=lambda item: first.index(item[0]) if item[0] in first else len(first),
    )
    drawn = []
    for name, parent, calibration, change in every:
        bins = [(b["confidence"], b["accuracy"], b["n"]) for b in calibration["reliability"] if b["n"]]
        drawn.append(
            Figure(
                title=name,
                text=f"ECE {figure(calibration['ece'], '%')} "
                f"({span(calibration['ece_lo'], calibration['ece_hi'], '%')}), "
                f"mean confidence {figure(calibration['confidence'], '%', 1)}",
                note=f"vs {results.shown(parent)}: ECE {figure(change['ece_delta'], 'points')} "
                f"({span(change['ece_delta_lo'], change['ece_delta_hi'], 'points')}), "
                f"confidence {figure(change['confidence_delta'], 'points')}"
                if change and parent
                else "",
                chart=charts.calibration(bins, title=f"Reliability diagram of {name}"),
            )
        )
    return drawn
