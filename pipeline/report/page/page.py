"""The report as one self-contained page."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.escaping import visible
from pipeline.report import findings, pictures, words
from pipeline.report.evidence import Part
from pipeline.report.figures import figure, span
from pipeline.report.page import (
    costs,
    data,
    explanations,
    groups,
    labels,
    litert,
    robustness,
    scores,
    sensitivity,
    training,
)
from pipeline.report.page.explanations import Explanations
from pipeline.report.page.grid import Figure, Grid
from pipeline.report.page.labels import SuspiciousLabels
from pipeline.report.page.recommendation import Recommendation, recommendation
from pipeline.report.page.scores import Verdict
from pipeline.report.results import RunResults, VariantResults
from pipeline.selection.table import Row

Facts = Sequence[tuple[str, str]]

BREAK = re.compile(r"(?<=\d) (?=(?:%|MB|KB|M|ms|s|px|Wh|mWh|g|mg|mJ|points?)(?![\w/]))")
"""The space between a number and its unit, where no line may end."""

SHOWN_REJECTED = 50
"""Greatest number of rejected files that are listed."""


@dataclass(frozen=True)
class Line:
    """One row of the table of variants, as text."""

    row: Row
    origin: str
    score: str
    score_interval: str
    delta: str
    delta_interval: str
    forest: str
    """Positions of the interval, of zero and of the limit, as CSS variables."""
    p: str
    size: str
    compressed: str
    parameters: str
    macs: str
    latency: str
    latency_tails: Sequence[str]
    ratio: str
    ratio_interval: str


@dataclass(frozen=True)
class Page:
    """Everything that ``page.html`` shows."""

    kicker: str
    recommendation: Recommendation
    task: str
    """Name of the metric."""
    nouns: str
    gate: str
    shipped: Row
    """The best variant, or the one that comes closest to the budget."""
    teacher: str
    """The teacher in words."""
    is_distilled: bool
    """Whether any variant was distilled from the teacher."""
    tradeoffs: Sequence[Markup]
    lines: Sequence[Line]
    verdicts: Sequence[Verdict]
    export_check: Grid | None
    classes: Grid
    mistakes: Sequence[Part]
    confusions: Sequence[tuple[str, Grid]]
    """Variant and its confusion matrix, the shipped variant first; none among attributes."""
    robustness_advice: Sequence[str]
    corruption_means: Grid | None
    corruptions: Grid | None
    adversarial: Grid | None
    out_of_distribution: Grid | None
    groups: Sequence[Figure]
    gaps: Grid | None
    calibrations: Sequence[Figure]
    explanations: Explanations | None
    sensitivity: Sequence[Figure]
    sensitivity_note: str
    curves: Sequence[Figure]
    trainings: Sequence[str]
    """One sentence for each training that is too short for a curve."""
    means: Sequence[Grid]
    pruning: Sequence[Grid]
    labels: SuspiciousLabels | None
    test_images: str
    val_images: str
    facts: Facts
    counts: Grid | None
    rejected: Sequence[Part]
    rejected_more: str
    latency: Grid | None
    noise: Sequence[str]
    """Why the machine counts as noisy; empty where it was quiet."""
    machine: Facts
    energy: Sequence[Grid]
    litert: Grid | None
    snippet: str
    size: int
    """Width and height of the images that the files take, in pixels."""
    class_count: int


def render(results: RunResults) -> str:
    """The HTML of the page, which fetches nothing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "page"),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _sources("charts.css", "page.css"), _sources("page.js")
    text = environment.get_template("page.html").render(
        page=_page(results), style=style, script=script, policy=_policy(style, script)
    )
    return BREAK.sub("\N{NO-BREAK SPACE}", text)


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _sources(*names: str) -> Markup:
    """Files beside this one, for an element of the page that contains them as they are."""
    return Markup("".join(files("pipeline.report.page").joinpath(name).read_text() for name in names))


def _policy(style: str, script: str) -> str:
    """The Content-Security-Policy: nothing but the page's own style and script, and pictures within it.

    Attributes of style hold positions and shades, and no text from elsewhere.
    """
    return (
        f"default-src 'none'; script-src {_source_hash(script)}; style-src {_source_hash(style)}; "
        "style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _page(results: RunResults) -> Page:
    about, evidence, task = results.data, results.evidence, results.task
    noise = results.benchmark.get("noise", {})
    hidden = len(about["rejected"]) - SHOWN_REJECTED
    shipped = results.closest.variant

    def led(grid: Grid | None) -> Grid | None:
        return grid and grid.led_by(shipped)

    return Page(
        kicker=f"Distillery report · {words.data_name(about)} · "
        f"{words.counted(len(about['classes']), words.noun(task), words.noun(task, 2))}",
        recommendation=recommendation(results),
        task=task.words,
        nouns=words.noun(task, 2),
        gate="A variant is rejected when its interval reaches below the limit of its step (dashed line), "
        "because a greater loss cannot be ruled out then: that is no proof of a loss, and with few test "
        "images every interval is wide. It is also rejected when a class is shown to lose more than is "
        "allowed.",
        shipped=results.closest,
        teacher=results.teacher_name,
        is_distilled=results.is_distilled,
        tradeoffs=pictures.tradeoffs(results),
        lines=sorted(_lines(results), key=lambda line: line.row.variant != shipped),
        verdicts=sorted(scores.verdicts(results), key=lambda verdict: verdict.variant != shipped),
        export_check=led(scores.export_check(results)),
        classes=scores.classes(results).led_by(shipped),
        mistakes=findings.mistakes(results.closest_results),
        confusions=scores.confusions(results),
        robustness_advice=robustness.advice(evidence, shipped),
        corruption_means=led(robustness.corruption_means(evidence)),
        corruptions=led(robustness.corruptions(evidence)),
        adversarial=robustness.adversarial(evidence),
        out_of_distribution=led(robustness.out_of_distribution(evidence)),
        groups=groups.groups(results),
        gaps=led(groups.gaps(results)),
        calibrations=scores.calibrations(results),
        explanations=explanations.explanations(results),
        sensitivity=sensitivity.pictures(evidence.sensitivity),
        sensitivity_note=sensitivity.note(evidence.sensitivity),
        curves=training.curves(results),
        trainings=training.sentences(results),
        means=training.means(results),
        pruning=training.pruning(results),
        labels=labels.suspicious_labels(results),
        test_images=figure(about["images"]["test"]),
        val_images=figure(about["images"]["val"]),
        facts=data.facts(results),
        counts=data.counts(results),
        rejected=about["rejected"][:SHOWN_REJECTED],
        rejected_more=figure(hidden) if hidden > 0 else "",
        latency=led(costs.latency(results.benchmark)),
        noise=noise["reasons"] if noise.get("noisy") else (),
        machine=costs.machine(results.benchmark),
        energy=costs.energy(evidence.costs),
        litert=litert.files(evidence.litert, shipped),
        snippet=words.snippet(shipped),
        size=results.student["size"],
        class_count=len(about["classes"]),
    )


def _lines(results: RunResults) -> list[Line]:
    """The table of variants as text."""
    table = results.table
    limits = {row.variant: results.change(row.variant)["limits"]["max_drop"] for row in table}
    low = min(*(-limit for limit in limits.values()), *(row.delta_lo for row in table))
    high = max(0.0, *(row.delta_hi for row in table))
    margin = 0.05 * (high - low)

    def place(delta: float) -> str:
        return f"{100 * (delta - low + margin) / (high - low + 2 * margin):.2f}%"

    lines = []
    for row, one in zip(table, results.variants, strict=True):
        marks = {
            "lo": row.delta_lo,
            "at": row.score_delta,
            "hi": row.delta_hi,
            "zero": 0.0,
            "gate": -limits[row.variant],
        }
        compressed = one.scores.get("compressed_bytes")
        change = results.change(row.variant)
        lines.append(
            Line(
                row=row,
                origin=words.origin(row),
                score=figure(row.score, "%", bare=True),
                score_interval=span(row.score_lo, row.score_hi, "%"),
                delta=figure(row.score_delta, "points", bare=True),
                delta_interval=span(row.delta_lo, row.delta_hi, "points"),
                forest=";".join(f"--{name}:{place(value)}" for name, value in marks.items()),
                p=_p(row.mcnemar_p) if change["distinguishable"] else words.within(change),
                size=figure(row.size_bytes, "MB", bare=True),
                compressed=f"{figure(compressed, 'MB', bare=True)} gzipped" if compressed else "",
                parameters=figure(row.parameters, "M", bare=True),
                macs=figure(row.macs, "M", 0, bare=True),
                latency=figure(row.latency_ms_p50, "ms", bare=True),
                latency_tails=[
                    f"{tail} {figure(one.latency[f'latency_ms_{tail}'], 'ms', bare=True)}"
                    for tail in ("p90", "p99")
                ],
                ratio="" if row.latency_ratio_to_fp32 is None else figure(row.latency_ratio_to_fp32, "times"),
                ratio_interval=_ratio_interval(one, results.benchmark["settings"].get("reference")),
            )
        )
    return lines


def _ratio_interval(one: VariantResults, reference: str | None) -> str:
    latency = one.latency
    if latency["ratio"] is None or one.variant == reference:
        return ""
    if latency.get("distinguishable") is False:
        return words.NO_DIFFERENCE
    return span(latency["ratio_lo"], latency["ratio_hi"], "times")


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
