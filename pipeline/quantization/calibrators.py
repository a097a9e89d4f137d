"""ONNX Runtime's own ways to choose the range of an activation."""

import contextlib
import io

import numpy as np
import torch
from onnxruntime.quantization.calibrate import HistogramCollector

from pipeline.quantization.ranges import BINS, Histogram

ENTROPY_BINS = 512
"""Number of bins for positive values in the search, which is written in Python: a quarter of a second with
these, two seconds with 1,024."""
ENTROPY_LEVELS = 128
"""Number of positive levels to which a clipped histogram is reduced, as in ONNX Runtime's own default."""
PERCENTILE = 99.99
"""Percentage of the positive values that stay below the clip."""


def entropy_clip(histogram: Histogram) -> float:
    """The clip whose few levels diverge least from the full histogram (Migacz 2017, TensorRT)."""
    coarse = histogram.counts.view(ENTROPY_BINS, -1).sum(dim=1)
    both = torch.cat([coarse.flip(0), coarse])  # ONNX Runtime searches around the middle.
    greatest = np.float32(histogram.greatest)
    edges = np.linspace(-greatest, greatest, 2 * ENTROPY_BINS + 1, dtype=np.float32)
    levels = 2 * ENTROPY_LEVELS
    collector = HistogramCollector("entropy", True, 2 * ENTROPY_BINS, levels, PERCENTILE, "same")
    _, clip = collector.get_entropy_threshold((both.long().numpy(), edges, -greatest, greatest), levels)
    return float(clip)


def percentile_clip(histogram: Histogram) -> float:
    """The value that ``PERCENTILE`` per cent of the positive values do not exceed, up to one bin."""
    greatest = np.float32(histogram.greatest)
    edges = np.linspace(0, greatest, BINS + 1, dtype=np.float32)
    collector = HistogramCollector("percentile", True, BINS, BINS, PERCENTILE, "same")
    collector.histogram_dict = {"activation": (histogram.counts.numpy(), edges[1:], -greatest, greatest)}
    with contextlib.redirect_stdout(io.StringIO()):  # It prints its result.
        _, clip, *_ = collector.compute_percentile()["activation"]
    return float(clip)
