"""Every artifact path of the pipeline, relative to the repository root."""

import os
from pathlib import Path

PARAMETERS = Path("params.yaml")
CONFIGS = Path("configs")
NONE = CONFIGS / "none"
"""Stands for no file or folder in a parameter that is a DVC dependency: DVC takes no null."""
LOCK = Path("dvc.lock")

ARTIFACTS = Path("artifacts")
RAW_FASHION_MNIST = ARTIFACTS / "raw" / "fashion-mnist"
CHECKED = ARTIFACTS / "checked.txt"
CODE = ARTIFACTS / "code"
"""Fingerprints of the code, one file per stage."""
DATA = ARTIFACTS / "data"
TEACHER = ARTIFACTS / "teacher"
TEACHER_LOGITS = TEACHER / "test_logits.npy"
"""Logits of the teacher for the test images, float32."""
LABELS = ARTIFACTS / "labels"
MODELS = ARTIFACTS / "models"
TIMINGS = ARTIFACTS / "timings"
ONNX = ARTIFACTS / "onnx"
METRICS = ARTIFACTS / "metrics"
COMPARISON = ARTIFACTS / "comparison.json"
BENCHMARK = ARTIFACTS / "benchmark.json"
COSTS = ARTIFACTS / "costs.json"
ROBUSTNESS = ARTIFACTS / "robustness.json"
EXPLANATIONS = ARTIFACTS / "explanations"
SENSITIVITY = ARTIFACTS / "sensitivity.json"
REPORT = ARTIFACTS / "report"
VARIANTS = REPORT / "variants.csv"
CHOICE = REPORT / "choice.json"
"""What the budget chooses, and why."""
DEMO = ARTIFACTS / "demo"
FIGURES = ARTIFACTS / "variants"
"""A small file for each variant, for `dvc metrics`."""
PLOTS = ARTIFACTS / "plots"
"""Points, for `dvc plots`."""
TRACKED = ARTIFACTS / "tracked.json"
UNDELIVERED = Path("undelivered")
"""What MLflow could not be told yet. Beside the database, not below `artifacts`: it cannot be made anew."""
CHECKPOINTS = ARTIFACTS / "checkpoints"
"""Epoch checkpoints of unfinished training. Not a DVC output: DVC removes outputs before a stage runs."""


PRECISION_TRIALS = CHECKPOINTS / "precision.json"
"""What trials of bf16 found on this machine."""
KERNELS = CHECKPOINTS / "kernels.json"
"""What layers take in ONNX Runtime on this machine."""


def home() -> Path:
    """The checkout that MLflow's database lies in; a queued experiment runs in a copy that is thrown away."""
    return Path(os.environ.get("DVC_ROOT", ""))


def model(variant: str) -> Path:
    """Folder of a variant's ``weights.safetensors``, ``card.json`` and ``history.jsonl``."""
    return MODELS / variant


def timings(name: str) -> Path:
    """Seconds of each epoch of the training of a variant or of ``teacher``."""
    return TIMINGS / f"{name}.jsonl"


def onnx(variant: str) -> Path:
    """The file that the user ships."""
    return ONNX / f"{variant}.onnx"


def metrics(variant: str) -> Path:
    """Scores of the shipped file on the test split."""
    return METRICS / f"{variant}.json"


def confidence(variant: str) -> Path:
    """Summary of a variant's probabilities for the test images."""
    return METRICS / f"{variant}.npz"


def checkpoints(run: str) -> Path:
    """Epoch checkpoints of one training run, removed when it is finished."""
    return CHECKPOINTS / run
