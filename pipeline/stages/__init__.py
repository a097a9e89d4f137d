"""The scripts that DVC runs, named by their verbs: load, call, save.

The stage `build` runs load, distill, prune or quantize. `follow` runs beside a training and shows it
in MLflow.
"""

from pipeline.running import process

# Before PyTorch is imported, which takes much memory.
process.explain_uncaught_errors()
