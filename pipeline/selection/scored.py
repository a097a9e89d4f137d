"""A scored variant, and what is said of it in words."""

from typing import Protocol, runtime_checkable


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
    def delta_lo(self) -> float: ...
    @property
    def verdict(self) -> str: ...
    @property
    def max_drop(self) -> float: ...
    @property
    def test_images(self) -> int: ...
    @property
    def images_needed(self) -> int | None: ...
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


def of_reference(row: ScoredVariant, reference: str) -> str:
    """A variant's difference from the reference with its interval, below 0 where accuracy is lost."""
    return f"{compared(row.reference_delta, reference)}, {interval(row.reference_lo, row.reference_hi)}"


def of_gate(row: ScoredVariant, parent: str) -> str:
    """What the gate measured of a variant that it rejects, beside what it allows.

    Args:
        row: the variant.
        parent: what the variant is compared with, in words.
    """
    difference, allowed = compared(row.score_delta, parent), f"{100 * row.max_drop:g} allowed"
    if row.score_delta <= -row.max_drop:
        return f"{difference} ({allowed})"
    if row.delta_lo >= -row.max_drop:
        return f"{difference} ({allowed}, but a class loses too much, or it is not above chance)"
    needed = f"; about {row.images_needed:,} would at this rate" if row.images_needed else ""
    return (
        f"{difference}, but {row.test_images:,} test images do not exclude a loss of "
        f"{-100 * row.delta_lo:.1f} points ({allowed}){needed}"
    )


def compared(difference: float, other: str) -> str:
    """A difference of scores in points."""
    if not difference:
        return f"as accurate as {other}"
    return f"{abs(100 * difference):.2f} points {'above' if difference > 0 else 'below'} {other}"


def interval(lo: float, hi: float) -> str:
    """The interval of a difference of scores in points, below 0 where accuracy is lost."""
    return f"95 % CI {100 * lo:+z.2f} to {100 * hi:+z.2f}"


def points(fraction: float) -> str:
    """A share of 1 in percentage points."""
    return f"{100 * fraction:g} point{'' if fraction == 0.01 else 's'}"


def latency(row: ScoredVariant) -> str:
    """Median latency."""
    return f"{row.latency_ms_p50:.2f} ms"


def size(row: ScoredVariant) -> str:
    """Exact size of the file."""
    return f"{row.size_bytes:,} bytes"


def cost(row: ScoredVariant) -> str:
    """Latency and size."""
    return f"{latency(row)}, {row.size_bytes / 1e6:.2f} MB"
