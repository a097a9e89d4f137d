"""Which variant fits a budget best, from the table of variants alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from pipeline import lineage
from pipeline.selection.table import TEACHER

NEARLY_AS_FAST = 1.05
"""Latencies up to this multiple of the least one count as equal: their order changes from run to run."""

NEARLY_AS_GOOD = 0.001
"""Scores at most this far below the best one count as equal: it is less than the noise of 10,000 images."""

ROUNDING = 1e-9
"""Tolerance that lets a drop of exactly the limit meet it, whatever the rounding of the difference."""


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
    def verdict(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def latency_ms_p50(self) -> float: ...


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
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_size_bytes: int | None = None,
    gate_max_drop: float | None = None,
) -> Choice:
    """Select the variant that fits the budget best; a limit of None does not limit.

    Only a variant that the gate accepts together with all its ancestors can be selected: a verdict compares
    a variant with its parent, and means nothing if the parent was rejected. With a limit of latency or size,
    the most accurate variant within the limits is selected; otherwise the fastest that is accurate enough.
    Scores within ``NEARLY_AS_GOOD`` and latencies within ``NEARLY_AS_FAST`` count as equal. Of equally
    accurate variants the faster is preferred, of equally fast ones the more accurate, then the smaller.

    Args:
        rows: all variants.
        max_drop: greatest loss of score, as a fraction of 1, against the root: the variant that is distilled
            from the teacher, or the most accurate one of several. It limits the point estimate; intervals are
            the subject of the gate.
        max_latency_ms: greatest median latency in milliseconds, as the benchmark measured it.
        max_size_bytes: greatest size of the ONNX file in bytes.
        gate_max_drop: limit of the gate, as a fraction of 1, to be named where nothing is accepted.
    """
    root = max((row for row in rows if row.parent == TEACHER), key=lambda row: row.score)
    costs = [*_latency_limit(max_latency_ms), *_size_limit(max_size_bytes)]
    limits = [*_drop_limit(max_drop, root), *costs]
    candidates = accepted(rows)
    if not candidates:
        return Choice(None, _why_nothing_passed(rows, root, gate_max_drop), root.variant)
    fitting = [row for row in candidates if all(limit.excess(row) <= 0 for limit in limits)]
    if not fitting:
        closest = min(candidates, key=lambda row: max(limit.excess(row) for limit in limits))
        return Choice(None, _why_nothing_fits(candidates, limits, closest), closest.variant)
    best = _best(fitting, accuracy_first=bool(costs))
    title = "fastest accepted variant"
    if costs and best.score == max(row.score for row in fitting):
        title = "most accurate accepted variant"
    elif costs:
        title = "fastest of the most accurate accepted variants"
    within = f"within {listed(limit.name for limit in limits)}" if limits else "(no limit is set)"
    comparison = "" if best is root else f" ({_compared(best.score - root.score, root.variant)})"
    return Choice(
        best.variant,
        f"{best.variant} is the {title} {within}: {100 * best.score:.2f} %{comparison}, "
        f"{_milliseconds(best)}, {_bytes(best)}.",
        best.variant,
    )


def accepted(rows: Sequence[AnyVariant]) -> list[AnyVariant]:
    """The variants that the gate accepts together with all their ancestors, in the order given."""
    parents = {row.variant: row.parent for row in rows}
    rejected = {row.variant for row in rows if row.verdict != "accept"}
    return [
        row for row in rows if rejected.isdisjoint([row.variant, *lineage.ancestors(parents, row.variant)])
    ]


def listed(parts: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _best(rows: Sequence[ScoredVariant], *, accuracy_first: bool) -> ScoredVariant:
    if accuracy_first:
        highest = max(row.score for row in rows)
        rows = [row for row in rows if row.score >= highest - NEARLY_AS_GOOD - ROUNDING]
    least = min(row.latency_ms_p50 for row in rows)
    fastest = [row for row in rows if row.latency_ms_p50 <= NEARLY_AS_FAST * least]
    return max(fastest, key=lambda row: (row.score, -row.size_bytes))


@dataclass(frozen=True)
class _Limit:
    """One limit of the budget."""

    name: str
    """The limit in words."""
    value: Callable[[ScoredVariant], str]
    """What a variant has of the limited quantity, in words."""
    excess: Callable[[ScoredVariant], float]
    """By which share a variant exceeds the limit; it meets the limit if this is at most 0."""


def _drop_limit(limit: float | None, root: ScoredVariant) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(
            f"{100 * limit:g} points of {root.variant}",
            lambda row: f"a score {_compared(row.score - root.score, root.variant)}",
            lambda row: (root.score - row.score - limit - ROUNDING) / max(root.score, ROUNDING),
        )


def _latency_limit(limit: float | None) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(f"{limit:g} ms", _milliseconds, lambda row: row.latency_ms_p50 / limit - 1)


def _size_limit(limit: int | None) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(f"{limit:,} bytes", _bytes, lambda row: row.size_bytes / limit - 1)


def _why_nothing_passed(
    rows: Sequence[ScoredVariant], root: ScoredVariant, gate_max_drop: float | None
) -> str:
    """Every variant descends from a rejected one, so no variant that is made from the teacher is accepted."""
    allowed = "" if gate_max_drop is None else f" ({100 * gate_max_drop:g} allowed)"
    others = ""
    if sum(row.parent == TEACHER for row in rows) > 1:
        others = ", and no other variant made from the teacher passed either"
    elif len(rows) > 1:
        others = ", and all others are made from it"
    return (
        f"Nothing passed. {root.variant} is {_compared(root.score_delta, 'its teacher')}{allowed}{others}. "
        "Train longer (`distill.epochs`), start from pretrained weights (`student.init`), "
        "or raise `gate.distill`."
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


def _compared(difference: float, other: str) -> str:
    """A difference of scores in points, in words."""
    return f"{abs(100 * difference):.3g} points {'above' if difference > 0 else 'below'} {other}"


def _milliseconds(row: ScoredVariant) -> str:
    return f"{row.latency_ms_p50:.2f} ms"


def _bytes(row: ScoredVariant) -> str:
    return f"{row.size_bytes:,} bytes"
