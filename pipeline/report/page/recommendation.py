"""The top of the page: which variant is recommended, why, and what one loses by it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.lineage import REFERENCE
from pipeline.report import words
from pipeline.report.figures import figure, span
from pipeline.report.results import RunResults
from pipeline.selection import budget
from pipeline.selection.budget import listed
from pipeline.selection.table import TEACHER, Row


@dataclass(frozen=True)
class Headline:
    """One large figure at the top of the page."""

    name: str
    """Stable name of the figure."""
    label: str
    value: str
    small: str


@dataclass(frozen=True)
class Recommendation:
    """The variant to ship and its price, or what to do where there is none."""

    variant: str
    """Name of the variant; empty where none is recommended."""
    title: str
    """The result in one sentence."""
    reason: str
    """Why the budget picks the variant, or why it picks none."""
    headlines: Sequence[Headline]
    """The variant in four figures; none where no variant is recommended."""
    context: str
    """The teacher, and how many variants are accepted."""
    advice: Sequence[str]
    """What to do where no variant is recommended."""


def recommendation(results: RunResults) -> Recommendation:
    """The answer to "which variant do I ship, and what do I lose by it"."""
    best = results.best
    return Recommendation(
        variant=best.variant if best else "",
        title=_title(results, best),
        reason=words.sentence(results.choice.reason),
        headlines=_headlines(results, best) if best else (),
        context=_context(results),
        advice=() if best else _advice(results),
    )


def _title(results: RunResults, best: Row | None) -> str:
    if best is None:
        return "No variant to ship yet."
    score = f"{figure(best.score, '%', 1)} {results.task.words}"
    return f"Ship {best.variant}: {score}, {figure(best.size_bytes, 'MB')}, {_speed(best)}."


def _speed(row: Row) -> str:
    ratio = row.latency_ratio_to_fp32
    if ratio is None or row.variant == REFERENCE:
        return f"{figure(row.latency_ms_p50, 'ms', 1)} per image"
    if ratio >= 1:
        return f"{figure(ratio, 'times', 1)} faster than {REFERENCE}"
    return f"{figure(1 / ratio, 'times', 1)} slower than {REFERENCE}"


def _headlines(results: RunResults, best: Row) -> list[Headline]:
    ratio, latency = best.latency_ratio_to_fp32, results.closest_results.latency
    return [
        Headline(
            "score",
            f"{results.task.words} of {best.variant}",
            figure(best.score, "%", 1),
            f"95 % CI {span(best.score_lo, best.score_hi, '%')}",
        ),
        _loss(results, best),
        Headline("size", "file size", figure(best.size_bytes, "MB"), _smaller(results, best)),
        Headline(
            "latency",
            "median latency",
            figure(best.latency_ms_p50, "ms"),
            f"{REFERENCE} was not measured"
            if ratio is None
            else f"90th percentile {figure(latency['latency_ms_p90'], 'ms')}"
            if best.variant == REFERENCE
            else f"{figure(ratio, 'times')} the speed of {REFERENCE} "
            f"({span(latency['ratio_lo'], latency['ratio_hi'], 'times')})",
        ),
    ]


def _loss(results: RunResults, best: Row) -> Headline:
    """The loss against the reference of all variants; for the reference itself, against its teacher."""
    change = results.change(best.variant)
    reference = change.get("reference", {})
    teacher = f"vs {results.teacher_name} {figure(best.score - results.teacher_score, 'points')}"
    if reference.get("variant", best.variant) == best.variant:
        # The reference is made from the teacher: its parent is the teacher.
        first = results.shown(best.parent)
        name, interval, more = first, change, "" if best.parent == TEACHER else f"; {teacher}"
    else:
        name, interval, more = reference["variant"], reference, f"; {teacher}"
    return Headline(
        "loss",
        f"vs {name}",
        figure(interval["delta"], "points"),
        f"95 % CI {span(interval['lo'], interval['hi'], 'points')}{more}",
    )


def _smaller(results: RunResults, best: Row) -> str:
    reference = next((row for row in results.table if row.variant == REFERENCE), None)
    if reference is None or reference is best:
        return f"{figure(best.parameters, 'M')} parameters"
    ratio = reference.size_bytes / best.size_bytes
    if ratio < 1:
        return f"{figure(1 / ratio, 'times', 1)} the size of {REFERENCE}"
    return f"{figure(ratio, 'times', 1)} smaller than {REFERENCE}"


def _context(results: RunResults) -> str:
    accepted = sum(row.verdict == "accept" for row in results.table)
    return (
        f"{accepted} of {words.counted(len(results.table), 'variant')} "
        f"{'is' if accepted == 1 else 'are'} accepted. "
        f"{results.teacher_name.capitalize()}: {results.teacher['origin']}, "
        f"{figure(results.teacher_score, '%', 1)} {results.task.words}."
    )


def _advice(results: RunResults) -> list[str]:
    undecided = budget.undecided(results.table)
    more_images = []
    if undecided:
        least = min(row.images_needed or 0 for row in undecided)
        more_images = [
            f"Add test images: there are {figure(undecided[0].test_images)}, and from about {figure(least)} "
            f"on, the first of {listed(row.variant for row in undecided)} would be accepted, at this rate of "
            "changed answers."
        ]
    if budget.accepted(results.table):
        return [
            *more_images,
            f"Raise the limit in budget, or ship {results.closest.variant}, which comes closest.",
            *(
                []
                if undecided
                else ["Or declare a smaller or faster variant in variants, and run dvc repro."]
            ),
        ]
    return [
        *more_images,
        f"Do not ship a file of this run, unless {figure(results.closest.score, '%', 1)} "
        f"{results.task.words} are enough for you.",
        "Train longer, or start from pretrained weights; the section Variants says what each one lacks.",
    ]
