"""Distillery: distil, prune, quantise and ship small image classifiers."""

import os

# Before PyTorch is imported: OpenMP's idle threads sleep instead of spinning. On two cores with one other
# busy process, spinning threads make training ten times slower; on an idle machine sleeping costs little.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
