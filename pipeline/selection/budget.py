"""Which variant fits a budget best, from the table of variants alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pipeline import lineage
from pipeline.selection import scored
from pipeline.selection.scored import ScoredVariant
from pipeline.selection.table import TEACHER

NEARLY_AS_FAST = 1.05
"""Latencies within this factor count as equal where they have no intervals, since there is no reference."""

ROUNDING = 1e-9
"""Tolerance that lets a drop of exactly the limit meet it, whatever the rounding of the difference."""

BUSY = "The latencies were measured on a busy machine (see Latency in the report)."

NAMED = 2
"""Greatest number of rejected variants whose rejection is explained."""

Preference = Literal["speed", "accuracy"]
"""What ranks the variants; ``rank`` describes both."""


AnyVariant = TypeVar("AnyVariant", bound=ScoredVariant)


@dataclass(frozen=True)
class Choice:
    """The selected variant, or why there is none."""

    variant: str | None
    """Name of the selected variant; None if no accepted variant meets every limit."""
    reason: str
    """The reason, in full sentences."""
    closest: str
    """The selected variant, or the one that misses the limits by the least, relative to them."""


def choose(
    rows: Sequence[ScoredVariant],
    *,
    prefer: Preference = "speed",
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_size_bytes: int | None = None,
    first_step: Literal["distill", "load"] = "distill",
    noisy: bool = False,
) -> Choice:
    """Select the first variant of the ranking that meets every limit; a limit of None does not limit.

    Only a variant that the gate accepts together with all its ancestors can be selected: a verdict compares
    a variant with its parent, and means nothing if the parent was rejected. These variants are ranked by
    ``rank``, without a look at the limits, which only strike variants out. Therefore a limit that the first
    one meets changes nothing, and a looser limit never selects one that ranks lower.

    Args:
        rows: all variants.
        prefer: what the ranking goes by.
        max_drop: greatest loss of score, as a fraction of 1, against the reference: the variant that is
            made from the teacher, or the most accurate one of several. As in the gate, the burden of
            proof lies with the variant: the paired 95 % interval of the difference must exclude a greater
            loss.
        max_latency_ms: greatest median latency in milliseconds, as the benchmark measured it.
        max_size_bytes: greatest size of the ONNX file in bytes.
        first_step: operation of the variants whose parent is the teacher.
        noisy: whether other work disturbed the measurement of the latencies.
    """
    root = reference(rows)
    limits = [
        *_drop_limit(max_drop, root),
        *_latency_limit(max_latency_ms),
        *_size_limit(max_size_bytes),
    ]
    candidates = accepted(rows)
    if not candidates:
        sound = rank(_soundly_compressed(rows), prefer)
        closest = sound[0] if sound else root
        return Choice(None, _why_nothing_passed(rows, root, closest, first_step), closest.variant)
    ranked = rank(candidates, prefer)
    fitting = [row for row in ranked if _is_within(row, limits)]
    busy = [BUSY] if noisy else []
    if not fitting:
        closest = min(ranked, key=lambda row: max(limit.excess(row) for limit in limits))
        sentences = [
            _why_nothing_fits(candidates, limits, closest),
            *_why_rejected(rank([row for row in rows if _is_within(row, limits)], prefer), rows),
        ]
        return Choice(None, " ".join([*sentences, *busy]), closest.variant)
    best = fitting[0]
    sentences = [
        _why_best(best, root, prefer, limits, len(rows) > len(candidates) == 1),
        *_alternative(best, root, fitting),
        *_doubt(best, root, ranked, limits),
        *_lacking_proof(best, rows, prefer, limits),
        *busy,
    ]
    return Choice(best.variant, " ".join(sentences), best.variant)


def reference(rows: Sequence[AnyVariant]) -> AnyVariant:
    """The variant that others are compared with: the most accurate one that is made from the teacher."""
    return max((row for row in rows if row.parent == TEACHER), key=lambda row: row.score)


def rank(rows: Sequence[AnyVariant], prefer: Preference = "speed") -> list[AnyVariant]:
    """Order variants from the best to the worst.

    With ``speed``, the fastest is first. Latencies are compared by their ratios to fp32, which are measured
    in pairs: variants whose 95 % intervals overlap are equally fast, and of these the more accurate one is
    first, then the smaller one.

    With ``accuracy``, those that are not shown to be worse than the reference are first, ordered as with
    ``speed``: the paired 95 % interval of their difference reaches 0. The others follow by their scores.
    """
    if prefer == "accuracy":
        worse = [row for row in rows if _is_worse(row)]
        return [
            *rank([row for row in rows if not _is_worse(row)]),
            *sorted(worse, key=lambda row: (-row.score, row.latency_ms_p50, row.size_bytes, row.variant)),
        ]
    remaining, ranked = list(rows), []
    while remaining:
        least = min(remaining, key=lambda row: (row.latency_ms_p50, row.variant))
        equal = [row for row in remaining if _latencies(row)[0] <= _latencies(least)[1] or row is least]
        first = min(equal, key=lambda row: (-row.score, row.size_bytes, row.latency_ms_p50, row.variant))
        remaining.remove(first)
        ranked.append(first)
    return ranked


def accepted(rows: Sequence[AnyVariant]) -> list[AnyVariant]:
    """The variants that the gate accepts together with all their ancestors, in the order given."""
    return _without_descendants(rows, {row.variant for row in rows if row.verdict != "accept"})


def undecided(rows: Sequence[AnyVariant]) -> list[AnyVariant]:
    """The variants that the gate rejects only because there are too few test images, in the order given."""
    proven = {row.variant for row in rows if row.verdict != "accept" and row.images_needed is None}
    return [row for row in _without_descendants(rows, proven) if row.images_needed is not None]


def first_rejected(rows: Sequence[AnyVariant], variant: str) -> AnyVariant | None:
    """The oldest of a variant and its ancestors that the gate rejects; None if it accepts all of them."""
    by_name = {row.variant: row for row in rows}
    ancestors = lineage.ancestors({row.variant: row.parent for row in rows}, variant)
    path = (by_name.get(name) for name in reversed([variant, *ancestors]))
    return next((row for row in path if row is not None and row.verdict != "accept"), None)


def why_rejected(rows: Sequence[ScoredVariant], variant: str) -> str:
    """Why the gate does not accept a variant together with its ancestors, as a clause; empty if it does."""
    row = first_rejected(rows, variant)
    if row is None:
        return ""
    reason = scored.of_gate(row, "its teacher" if row.parent == TEACHER else row.parent)
    return reason if row.variant == variant else f"made from {row.variant}, which is rejected: {reason}"


def _soundly_compressed(rows: Sequence[AnyVariant]) -> list[AnyVariant]:
    """The compressed variants that the gate accepts, whatever it says of those made from the teacher."""
    rejected = {row.variant for row in rows if row.verdict != "accept" and row.parent != TEACHER}
    return [row for row in _without_descendants(rows, rejected) if row.parent != TEACHER]


def _without_descendants(rows: Sequence[AnyVariant], rejected: set[str]) -> list[AnyVariant]:
    """The variants that are not rejected and descend from none that is."""
    parents = {row.variant: row.parent for row in rows}
    return [
        row for row in rows if rejected.isdisjoint([row.variant, *lineage.ancestors(parents, row.variant)])
    ]


def listed(parts: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _is_worse(row: ScoredVariant) -> bool:
    """Whether a variant is shown to be worse than the reference."""
    return row.reference_hi < 0


def _latencies(row: ScoredVariant) -> tuple[float, float]:
    """The ends of the interval of a variant's latency in milliseconds, fp32's being taken as it is."""
    middle, ratio = row.latency_ms_p50, row.latency_ratio_to_fp32
    lo, hi = row.latency_ratio_lo, row.latency_ratio_hi
    if not ratio or not lo or not hi:
        return middle, middle * NEARLY_AS_FAST
    return middle * ratio / hi, middle * ratio / lo


@dataclass(frozen=True)
class _Limit:
    """One limit of the budget."""

    name: str
    """The limit in words."""
    value: Callable[[ScoredVariant], str]
    """What a variant has of the limited quantity, in words."""
    excess: Callable[[ScoredVariant], float]
    """By which share a variant exceeds the limit; it meets the limit if this is at most 0."""
    estimate: Callable[[ScoredVariant], float] | None = None
    """The same for the estimate, where ``excess`` is that of the end of an interval."""

    def estimated_excess(self, row: ScoredVariant) -> float:
        """By which share a variant is estimated to exceed the limit."""
        return (self.estimate or self.excess)(row)


def _is_within(row: ScoredVariant, limits: Sequence[_Limit]) -> bool:
    return all(limit.excess(row) <= 0 for limit in limits)


def _drop_limit(limit: float | None, root: ScoredVariant) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(
            f"{scored.points(limit)} of {root.variant}",
            lambda row: f"a score {scored.of_reference(row, root.variant)}",
            lambda row: (-row.reference_lo - limit - ROUNDING) / max(root.score, ROUNDING),
            lambda row: -row.reference_delta - limit - ROUNDING,
        )


def _latency_limit(limit: float | None) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(f"{limit:g} ms", scored.latency, lambda row: row.latency_ms_p50 / limit - 1)


def _size_limit(limit: int | None) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(f"{limit:,} bytes", scored.size, lambda row: row.size_bytes / limit - 1)


def _why_best(
    best: ScoredVariant, root: ScoredVariant, prefer: Preference, limits: Sequence[_Limit], only: bool
) -> str:
    title = "fastest accepted variant"
    if only:
        title = "only accepted variant"
    elif prefer == "accuracy":
        title = (
            "most accurate accepted variant"
            if _is_worse(best)
            else f"fastest accepted variant that is not shown to be worse than {root.variant}"
        )
    within = f"within {listed(limit.name for limit in limits)}" if limits else "(no limit is set)"
    if only and limits:
        within = f"and {within}"
    comparison = "" if best is root else f" ({scored.of_reference(best, root.variant)})"
    return (
        f"{best.variant} is the {title} {within}: {100 * best.score:.2f} %{comparison}, {scored.cost(best)}."
    )


def _alternative(best: ScoredVariant, root: ScoredVariant, fitting: Sequence[ScoredVariant]) -> Iterator[str]:
    """What to choose instead of a variant that is shown to lose something, if there is anything."""
    other = rank(fitting, "accuracy")[0]
    if _is_worse(best) and not _is_worse(other):
        yield (
            f"{other.variant} ({scored.latency(other)}) is not shown to be worse than {root.variant}; "
            "`budget.prefer=accuracy` chooses it."
        )


def _doubt(
    best: ScoredVariant, root: ScoredVariant, ranked: Sequence[ScoredVariant], limits: Sequence[_Limit]
) -> Iterator[str]:
    """The variant that ranks before the best one and is estimated, but not shown, to be within all limits."""
    for row in ranked[: next(index for index, one in enumerate(ranked) if one is best)]:
        missed = [limit for limit in limits if limit.excess(row) > 0]
        if all(limit.estimated_excess(row) <= 0 for limit in missed):
            yield (
                f"{row.variant} ({scored.latency(row)}) ranks before it and is "
                f"{scored.of_reference(row, root.variant)}, so a loss within the limit is likely and not "
                "shown; more test images would settle it."
            )
            return


def _lacking_proof(
    best: ScoredVariant, rows: Sequence[ScoredVariant], prefer: Preference, limits: Sequence[_Limit]
) -> Iterator[str]:
    """How many variants are rejected where only one is accepted, and the best one that more test images might
    put before it."""
    rejected = len(rows) - len(accepted(rows))
    if len(rows) - rejected == 1 < len(rows):
        yield f"{rejected} {'is' if rejected == 1 else 'are'} rejected."
    fitting = [row for row in undecided(rows) if _is_within(row, limits)]
    first = rank([*fitting, best], prefer)[0]
    if first is not best:
        yield _rejection(first, rows)


def _why_rejected(ranked: Sequence[ScoredVariant], rows: Sequence[ScoredVariant]) -> Iterator[str]:
    """Why the variants within the limits are rejected, those first that more test images might help."""
    hopeful = undecided(rows)
    ordered = sorted(ranked, key=lambda row: row not in hopeful)
    for row in ordered[:NAMED]:
        yield _rejection(row, rows)
    if others := [row.variant for row in ordered[NAMED:]]:
        yield f"{listed(others)} {'is' if len(others) == 1 else 'are'} rejected, too."


def _rejection(row: ScoredVariant, rows: Sequence[ScoredVariant]) -> str:
    return f"{row.variant} ({scored.cost(row)}) is rejected: {why_rejected(rows, row.variant)}."


def _why_nothing_passed(
    rows: Sequence[ScoredVariant],
    root: ScoredVariant,
    closest: ScoredVariant,
    first_step: Literal["distill", "load"],
) -> str:
    """Every variant descends from a rejected one, so no variant that is made from the teacher is accepted."""
    others = ""
    if sum(row.parent == TEACHER for row in rows) > 1:
        others = "; no other variant made from the teacher passed either"
    elif len(rows) > 1:
        others = "; all others are made from it"
    enough = ""
    if closest is not root:
        enough = (
            f" If its {100 * root.score:.1f} % are enough for you, take {closest.variant}, which compression "
            f"did not harm: {scored.of_reference(closest, root.variant)}, {scored.cost(closest)}."
        )
    other, remedies = {
        "distill": (
            "its teacher",
            "Train longer (`distill.epochs`), start from pretrained weights (`student.init`)",
        ),
        "load": ("the network that it was loaded from", "Look for what differs"),
    }[first_step]
    if root.images_needed is not None:
        remedies = "Add test images (`data.test` where they are drawn)"
    return (
        f"Nothing passed. {root.variant} is {scored.of_gate(root, other)}{others}. "
        f"{remedies}, or raise `gate.{first_step}`.{enough}"
    )


def _why_nothing_fits(rows: Sequence[ScoredVariant], limits: Sequence[_Limit], closest: ScoredVariant) -> str:
    """Name the limits that no variant meets, or all if none meets them together, and what comes closest."""
    unmet = [limit for limit in limits if all(limit.excess(row) > 0 for row in rows)]
    missed = [limit.value(closest) for limit in limits if limit.excess(closest) > 0]
    names, together = listed(limit.name for limit in unmet or limits), "" if unmet else " together"
    return (
        f"No accepted variant is within {names}{together}. "
        f"The closest is {closest.variant} with {listed(missed)}."
    )
