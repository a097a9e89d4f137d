"""Which variant fits a budget best, from the table of variants alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

from pipeline import lineage
from pipeline.selection.table import TEACHER

NEARLY_AS_FAST = 1.05
"""Latencies within this factor count as equal where they have no intervals, since there is no reference."""

ROUNDING = 1e-9
"""Tolerance that lets a drop of exactly the limit meet it, whatever the rounding of the difference."""

QUIET = "run `dvc repro --single-item --force benchmark` on a quiet machine"

Preference = Literal["speed", "accuracy"]
"""What ranks the variants; ``rank`` describes both."""


@runtime_checkable
class ScoredVariant(Protocol):
    """A variant that can be selected, such as ``table.Row`` or ``experiments.ExperimentResult``."""

    @property
    def variant(self) -> str: ...
    @property
    def parent(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def score_delta(self) -> float: ...
    @property
    def reference_delta(self) -> float: ...
    @property
    def reference_lo(self) -> float: ...
    @property
    def reference_hi(self) -> float: ...
    @property
    def verdict(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def latency_ms_p50(self) -> float: ...
    @property
    def latency_ratio_to_fp32(self) -> float | None: ...
    @property
    def latency_ratio_lo(self) -> float | None: ...
    @property
    def latency_ratio_hi(self) -> float | None: ...


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
    gate_max_drop: float | None = None,
    first_step: Literal["distill", "load"] = "distill",
    noise: Sequence[str] = (),
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
        gate_max_drop: limit of the gate, as a fraction of 1, to be named where nothing is accepted.
        first_step: operation of the variants whose parent is the teacher.
        noise: what disturbed the measurement of the latencies, in words; nothing on a quiet machine.
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
        return Choice(
            None, _why_nothing_passed(rows, root, gate_max_drop, closest, first_step), closest.variant
        )
    ranked = rank(candidates, prefer)
    fitting = [row for row in ranked if all(limit.excess(row) <= 0 for limit in limits)]
    disturbed = f"The latencies were measured on a noisy machine ({'; '.join(noise)}): {QUIET}."
    if not fitting:
        closest = min(ranked, key=lambda row: max(limit.excess(row) for limit in limits))
        reason = _why_nothing_fits(candidates, limits, closest)
        return Choice(None, " ".join([reason, *([disturbed] if noise else [])]), closest.variant)
    best = fitting[0]
    sentences = [
        _why_best(best, root, prefer, limits),
        *_alternative(best, root, fitting),
        *_doubt(best, root, ranked, limits),
        *([disturbed] if noise else []),
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


def _drop_limit(limit: float | None, root: ScoredVariant) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(
            f"{_points(limit)} of {root.variant}",
            lambda row: f"a score {_difference(row, root)}",
            lambda row: (-row.reference_lo - limit - ROUNDING) / max(root.score, ROUNDING),
            lambda row: -row.reference_delta - limit - ROUNDING,
        )


def _latency_limit(limit: float | None) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(f"{limit:g} ms", _milliseconds, lambda row: row.latency_ms_p50 / limit - 1)


def _size_limit(limit: int | None) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(f"{limit:,} bytes", _bytes, lambda row: row.size_bytes / limit - 1)


def _why_best(best: ScoredVariant, root: ScoredVariant, prefer: Preference, limits: Sequence[_Limit]) -> str:
    title = "fastest accepted variant"
    if prefer == "accuracy":
        title = (
            "most accurate accepted variant"
            if _is_worse(best)
            else f"fastest accepted variant that is not shown to be worse than {root.variant}"
        )
    within = f"within {listed(limit.name for limit in limits)}" if limits else "(no limit is set)"
    comparison = "" if best is root else f" ({_difference(best, root)})"
    return (
        f"{best.variant} is the {title} {within}: {100 * best.score:.2f} %{comparison}, "
        f"{_milliseconds(best)}, {_bytes(best)}."
    )


def _alternative(best: ScoredVariant, root: ScoredVariant, fitting: Sequence[ScoredVariant]) -> Iterator[str]:
    """What to choose instead of a variant that is shown to lose something, if there is anything."""
    other = rank(fitting, "accuracy")[0]
    if _is_worse(best) and not _is_worse(other):
        yield (
            f"{other.variant} ({_milliseconds(other)}) is not shown to be worse than {root.variant}; "
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
                f"{row.variant} ({_milliseconds(row)}) ranks before it and is {_difference(row, root)}, so a "
                "loss within the limit is likely and not shown; more test images would settle it."
            )
            return


def _why_nothing_passed(
    rows: Sequence[ScoredVariant],
    root: ScoredVariant,
    gate_max_drop: float | None,
    closest: ScoredVariant,
    first_step: Literal["distill", "load"],
) -> str:
    """Every variant descends from a rejected one, so no variant that is made from the teacher is accepted."""
    allowed = ""
    if gate_max_drop is not None:
        within = -root.score_delta <= gate_max_drop
        allowed = (
            f" ({100 * gate_max_drop:g} allowed{', but its verdict has another reason' if within else ''})"
        )
    others = ""
    if sum(row.parent == TEACHER for row in rows) > 1:
        others = ", and no other variant made from the teacher passed either"
    elif len(rows) > 1:
        others = ", and all others are made from it"
    enough = ""
    if closest is not root:
        enough = (
            f" If its {100 * root.score:.1f} % are enough for you, take {closest.variant}, which compression "
            f"did not harm: {_difference(closest, root)}, {_milliseconds(closest)}, {_bytes(closest)}."
        )
    other, advice = {
        "distill": (
            "its teacher",
            "Train longer (`distill.epochs`), start from pretrained weights (`student.init`), or raise",
        ),
        "load": ("the network that it was loaded from", "Score it on more test images, or raise"),
    }[first_step]
    return (
        f"Nothing passed. {root.variant} is {_compared(root.score_delta, other)}{allowed}{others}. "
        f"{advice} `gate.{first_step}`.{enough}"
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


def _difference(row: ScoredVariant, root: ScoredVariant) -> str:
    """A variant's difference from the reference with its interval, in words."""
    above = row.reference_delta > 0
    ends = (row.reference_lo, row.reference_hi) if above else (-row.reference_hi, -row.reference_lo)
    least, greatest = (f"{100 * end:z.1f}" for end in ends)
    return f"{_compared(row.reference_delta, root.variant)}, 95 % CI {least} to {greatest}"


def _points(fraction: float) -> str:
    """A share of 1 in percentage points."""
    return f"{100 * fraction:g} point{'' if fraction == 0.01 else 's'}"


def _compared(difference: float, other: str) -> str:
    """A difference of scores in points, in words."""
    return f"{abs(100 * difference):.3g} points {'above' if difference > 0 else 'below'} {other}"


def _milliseconds(row: ScoredVariant) -> str:
    return f"{row.latency_ms_p50:.2f} ms"


def _bytes(row: ScoredVariant) -> str:
    return f"{row.size_bytes:,} bytes"
