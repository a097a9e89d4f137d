"""Distillery: distil, prune, quantise and ship small image classifiers."""

import os

# Before PyTorch is imported: OpenMP's idle threads spin for a moment and then sleep. On two cores with one
# other busy process, threads that spin for long make training ten times slower (docs/decisions.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
