"""Rows of the table of variants for tests."""

from typing import Any, Literal

from pipeline.selection.table import Row

REFERENCE_MS = 2.8
"""Latency of fp32 in milliseconds."""


def row(
    variant: str,
    parent: str = "teacher",
    score: float = 0.9,
    milliseconds: float = 2.0,
    size_bytes: int = 1_000_000,
    verdict: Literal["accept", "reject"] = "accept",
    reference_delta: float = 0.0,
    **changes: Any,
) -> Row:
    """A row with plausible values; intervals are 0.2 points and 1 % wide to either side."""
    values = {
        "op": "distill" if parent == "teacher" else "quantize",
        "score_lo": score - 0.006,
        "score_hi": score + 0.006,
        "score_delta": -0.01,
        "delta_lo": -0.015,
        "delta_hi": -0.005,
        "mcnemar_p": 0.01,
        "max_drop": 0.04,
        "test_images": 10_000,
        "images_needed": None,
        "parameters": 1000,
        "macs": 1_000_000,
        "latency_ratio_to_fp32": REFERENCE_MS / milliseconds,
        "latency_ratio_lo": 0.99 * REFERENCE_MS / milliseconds,
        "latency_ratio_hi": 1.01 * REFERENCE_MS / milliseconds,
        "reference_delta": reference_delta,
        "reference_lo": reference_delta and reference_delta - 0.002,
        "reference_hi": reference_delta and reference_delta + 0.002,
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
