"""Settings of the selection of the variant to ship."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.settings import Settings

SMALLEST_FILE = 10_000
"""Bytes below which a limit of size is not meant as bytes: the graph of a student without weights takes
more."""


def _check_drop(drop: float) -> float:
    if drop >= 1:
        likely = f"; did you mean {drop / 100:g}?" if drop < 100 else ""
        raise ValueError(f"this is a loss of {100 * drop:g} percentage points; must be less than 1{likely}")
    return drop


def _check_size(size: int) -> int:
    if size < SMALLEST_FILE:
        raise ValueError(
            f"no ONNX file is that small; did you mean {size * 1_000_000} ({size} MB)? "
            f"Allowed: bytes, {SMALLEST_FILE} and more"
        )
    return size


class BudgetSettings(Settings):
    """Limits of the variant to ship; null sets no limit. `pipeline.selection.budget` describes the
    selection."""

    prefer: Literal["speed", "accuracy"] = "speed"
    """What ranks the accepted variants before the limits strike some out: the fastest first, or first those
    that are not shown to be worse than the reference."""
    max_drop: Annotated[float, Field(ge=0), AfterValidator(_check_drop)] | None = None
    """Maximum loss of score against the reference, the variant made from the teacher (`fp32`), as a
    fraction of 1: 0.01 is one percentage point. The 95 % interval of the loss must exclude a greater one."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Maximum median latency in milliseconds, as `benchmark` measures it."""
    max_size_bytes: Annotated[int, Field(ge=1), AfterValidator(_check_size)] | None = None
    """Maximum size of the ONNX file, in bytes."""
