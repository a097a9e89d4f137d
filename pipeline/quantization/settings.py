"""Settings of quantisation to eight-bit integers."""

from typing import Literal

Step = Literal[
    "entropy_ranges",
    "percentile_ranges",
    "greatest_weights",
    "equalisation",
    "adaptive_rounding",
    "bias_correction",
]
"""A step of post-training quantisation beyond least-squares ranges, least-squares steps of weights and
nearest rounding."""
