"""Rows of the table of variants for tests."""

from typing import Any, Literal

from pipeline.selection.table import Row


def row(
    variant: str,
    parent: str = "teacher",
    score: float = 0.9,
    milliseconds: float = 2.0,
    size_bytes: int = 1_000_000,
    verdict: Literal["accept", "reject"] = "accept",
    **changes: Any,
) -> Row:
    """A row whose other fields have plausible values."""
    values = {
        "op": "distill" if parent == "teacher" else "quantize",
        "score_lo": score - 0.006,
        "score_hi": score + 0.006,
        "score_delta": -0.01,
        "delta_lo": -0.015,
        "delta_hi": -0.005,
        "mcnemar_p": 0.01,
        "parameters": 1000,
        "macs": 1_000_000,
        "latency_ratio_to_fp32": 1.0,
        "sha256": "0" * 64,
        "val_score": score,
        "metric": "top1",
    }
    return Row(
        variant=variant,
        parent=parent,
        score=score,
        latency_ms_p50=milliseconds,
        size_bytes=size_bytes,
        verdict=verdict,
        **{**values, **changes},
    )
