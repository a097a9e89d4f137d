"""Which variant fits a budget best, from the table of variants alone."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from pipeline.errors import DistilleryError

TEACHER = "teacher"
"""Parent of the variants that are distilled from the teacher itself."""

NEARLY_AS_FAST = 1.05
"""Latencies up to this multiple of the least count as equal: they change places from run to run."""

NEARLY_AS_GOOD = 0.001
"""Scores at most this far below the best count as equal: less than the noise of 10,000 test images."""

ROUNDING = 1e-9
"""A drop of exactly the limit meets it, whatever binary fractions make of the difference."""


@runtime_checkable
class Measured(Protocol):
    """What is asked of a row: ``report.tables.Row`` has it, and so has ``Line``."""

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


@dataclass(frozen=True)
class Line:
    """What this file, `ship` and the browser page read of a line of ``variants.csv``."""

    variant: str
    parent: str
    metric: str
    """`top1` or `map`: what the score is called in the file."""
    score: float
    score_lo: float
    score_hi: float
    score_delta: float
    verdict: str
    size_bytes: int
    latency_ms_p50: float
    sha256: str


class TableError(DistilleryError):
    """The table of variants is not there or not whole. The message says what makes it."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, or why nothing was."""

    variant: str | None
    """None where no accepted variant meets every limit."""
    reason: str
    """One sentence."""
    closest: str
    """The variant chosen, or the one that misses the limits by the least, relative to them."""


def read(path: Path) -> list[Line]:
    """The lines of ``variants.csv``.

    Raises:
        TableError: the file is missing, or a column of it.
    """
    if not path.is_file():
        raise TableError(f"{path} does not exist; `dvc repro report` makes it")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        metric = "map" if "map" in (reader.fieldnames or ()) else "top1"
        try:
            lines = [
                Line(
                    variant=cells["variant"],
                    parent=cells["parent"],
                    metric=metric,
                    score=float(cells[metric]),
                    score_lo=float(cells[f"{metric}_lo"]),
                    score_hi=float(cells[f"{metric}_hi"]),
                    score_delta=float(cells[f"{metric}_delta"]),
                    verdict=cells["verdict"],
                    size_bytes=int(cells["size_bytes"]),
                    latency_ms_p50=float(cells["latency_ms_p50"]),
                    sha256=cells["sha256"],
                )
                for cells in reader
            ]
        except KeyError as error:
            raise TableError(f"{path} has no column {error}; `dvc repro report` makes it anew") from error
        except (TypeError, ValueError) as error:
            raise TableError(f"{path} is damaged ({error}); `dvc repro report` makes it anew") from error
    if not any(line.parent == TEACHER for line in lines):
        raise TableError(f"{path} has no variant of the teacher; `dvc repro report` makes it anew")
    return lines


def choose(
    table: Sequence[Measured],
    *,
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_size_bytes: int | None = None,
) -> Choice:
    """The variant that fits the budget best; a limit of None limits nothing.

    Only variants that the gate accepts together with all their ancestors can be chosen: a verdict compares
    with the parent, and says nothing where that was rejected. Whoever limits latency or size gets the most
    accurate variant within the limits; whoever does not, the fastest of those that are accurate enough.
    Scores within ``NEARLY_AS_GOOD`` and latencies within ``NEARLY_AS_FAST`` count as equal; of equally
    accurate variants the faster goes first, of equally fast ones the more accurate, at last the smaller.

    Args:
        table: the rows of all variants.
        max_drop: greatest loss of score, as a fraction of 1, against the root: the variant distilled from the
            teacher itself, the most accurate of them where there are several. Point against point; the
            interval is the gate's matter.
        max_latency_ms: greatest median latency, as the benchmark measured it.
        max_size_bytes: greatest size of the ONNX file.
    """
    root = max((row for row in table if row.parent == TEACHER), key=lambda row: row.score)
    costs = [*_latency(max_latency_ms), *_size(max_size_bytes)]
    limits = [*_drop(max_drop, root), *costs]
    candidates = accepted(table)
    if not candidates:
        return Choice(
            None,
            "the gate accepts no variant together with all its ancestors; closest is "
            f"{root.variant}, {_against(root.score_delta, TEACHER)}",
            root.variant,
        )
    fitting = [row for row in candidates if all(limit.miss(row) <= 0 for limit in limits)]
    if not fitting:
        closest = min(candidates, key=lambda row: max(limit.miss(row) for limit in limits))
        return Choice(None, _why_none(candidates, limits, closest), closest.variant)
    best = _best(fitting, accuracy_first=bool(costs))
    praise = "fastest accepted variant"
    if costs:
        alone = best.score == max(row.score for row in fitting)
        praise = (
            "most accurate accepted variant" if alone else "fastest of the most accurate accepted variants"
        )
    return Choice(
        best.variant,
        f"{best.variant} is the {praise}"
        + (f" within {listed(limit.asked for limit in limits)}" if limits else " (no limit is set)")
        + f": {best.score:.2%} ({_against(best.score - root.score, root.variant)}), "
        f"{_milliseconds(best)}, {_bytes(best)}",
        best.variant,
    )


AnyRow = TypeVar("AnyRow", bound=Measured)


def accepted(table: Sequence[AnyRow]) -> list[AnyRow]:
    """The rows that the gate accepts together with all their ancestors, in the order given."""
    by_name = {row.variant: row for row in table}

    def passes(row: AnyRow) -> bool:
        return row.verdict == "accept" and (row.parent == TEACHER or passes(by_name[row.parent]))

    return [row for row in table if passes(row)]


def _best(rows: Sequence[Measured], *, accuracy_first: bool) -> Measured:
    if accuracy_first:
        highest = max(row.score for row in rows)
        rows = [row for row in rows if row.score >= highest - NEARLY_AS_GOOD - ROUNDING]
    least = min(row.latency_ms_p50 for row in rows)
    fastest = [row for row in rows if row.latency_ms_p50 <= NEARLY_AS_FAST * least]
    return max(fastest, key=lambda row: (row.score, -row.size_bytes))


@dataclass(frozen=True)
class _Limit:
    """One limit of the budget, in words and as a measure."""

    asked: str
    told: Callable[[Measured], str]
    """What a row has of the limited thing."""
    miss: Callable[[Measured], float]
    """By which share a row misses the limit; 0 or less meets it."""


def _drop(limit: float | None, root: Measured) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(
            f"{100 * limit:.2f} points of {root.variant}",
            lambda row: _against(row.score - root.score, root.variant),
            lambda row: (root.score - row.score - limit - ROUNDING) / max(root.score, ROUNDING),
        )


def _latency(limit: float | None) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(f"{limit:g} ms", _milliseconds, lambda row: row.latency_ms_p50 / limit - 1)


def _size(limit: int | None) -> Iterator[_Limit]:
    if limit is not None:
        yield _Limit(f"{limit:,} bytes", _bytes, lambda row: row.size_bytes / limit - 1)


def _why_none(rows: Sequence[Measured], limits: Sequence[_Limit], closest: Measured) -> str:
    """Which limit nothing meets, or that they are not met together, and what comes closest."""
    hopeless = [limit for limit in limits if all(limit.miss(row) > 0 for row in rows)]
    missed = [limit for limit in limits if limit.miss(closest) > 0]
    asked = listed(limit.asked for limit in hopeless or limits)
    together = "" if hopeless else " together"
    told = listed(limit.told(closest) for limit in missed)
    return f"no accepted variant is within {asked}{together}; closest is {closest.variant} with {told}"


def _against(difference: float, other: str) -> str:
    return f"{100 * difference:+.2f} points against {other}"


def _milliseconds(row: Measured) -> str:
    return f"{row.latency_ms_p50:.2f} ms"


def _bytes(row: Measured) -> str:
    return f"{row.size_bytes:,} bytes"


def listed(parts: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
