"""Every artifact path of the pipeline, relative to the repository root."""

from pathlib import Path

PARAMETERS = Path("params.yaml")
CONFIGS = Path("configs")

ARTIFACTS = Path("artifacts")
RAW_FASHION_MNIST = ARTIFACTS / "raw" / "fashion-mnist"
CHECKED = ARTIFACTS / "checked.txt"
DATA = ARTIFACTS / "data"
TEACHER = ARTIFACTS / "teacher"
TEACHER_PREDICTIONS = TEACHER / "test_predictions.npy"
LABELS = ARTIFACTS / "labels"
MODELS = ARTIFACTS / "models"
ONNX = ARTIFACTS / "onnx"
METRICS = ARTIFACTS / "metrics"
BENCHMARK = ARTIFACTS / "benchmark.json"
COMPARISON = ARTIFACTS / "comparison.json"
COSTS = ARTIFACTS / "costs.json"
ROBUSTNESS = ARTIFACTS / "robustness.json"
EXPLANATIONS = ARTIFACTS / "explanations"
REPORT = ARTIFACTS / "report"
TRACKED = ARTIFACTS / "tracked.json"
MLARTIFACTS = Path("mlartifacts")
CHECKPOINTS = ARTIFACTS / "checkpoints"
"""Epoch checkpoints of unfinished training. Not a DVC output: DVC removes outputs before a stage runs."""


PRECISION_TRIALS = CHECKPOINTS / "precision.json"
"""What trials of bf16 found on this machine."""


def model(variant: str) -> Path:
    """Folder of a variant's ``weights.safetensors``, ``card.json`` and ``history.jsonl``."""
    return MODELS / variant


def onnx(variant: str) -> Path:
    """The file that the user ships."""
    return ONNX / f"{variant}.onnx"


def metrics(variant: str) -> Path:
    """Scores of the shipped file on the test split."""
    return METRICS / f"{variant}.json"


def checkpoints(run: str) -> Path:
    """Epoch checkpoints of one training run, removed when it is finished."""
    return CHECKPOINTS / run
