"""Distillery: distil, prune, quantise and ship small image classifiers."""

import os

# Before PyTorch is imported: OpenMP's idle threads spin for a moment and then sleep. On two cores with one
# other busy process, threads that spin for long make training ten times slower (docs/decisions.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if "DVC_STAGE" in os.environ:
    # Before anything else is imported: PyTorch alone takes seconds, in which DVC may be killed.
    from pipeline.running import dvc_parent

    dvc_parent.end_with()
