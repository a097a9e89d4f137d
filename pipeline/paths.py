"""Every artifact path of the pipeline, relative to the repository root."""

import os
from pathlib import Path

PARAMETERS = Path("params.yaml")
CONFIGS = Path("configs")
NONE = CONFIGS / "none"
"""Stands for no file or folder in a parameter that is a DVC dependency: DVC takes no null."""
PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")

ARTIFACTS = Path("artifacts")
RAW = ARTIFACTS / "raw"
"""Downloads, which `make clean` keeps."""
RAW_FASHION_MNIST = RAW / "fashion-mnist"
CHECKED = ARTIFACTS / "checked.txt"
CODE = ARTIFACTS / "code"
"""Fingerprints of the code, one file per stage."""
DATA = ARTIFACTS / "data"
WEIGHTS = "weights.safetensors"
CARD = "card.json"
"""The two files of a network's folder."""
TEACHER = ARTIFACTS / "teacher"
TEACHER_LOGITS = TEACHER / "test_logits.npy"
"""Logits of the teacher for the test images, float32."""
LABELS = ARTIFACTS / "labels"
MODELS = ARTIFACTS / "models"
ONNX = ARTIFACTS / "onnx"
METRICS = ARTIFACTS / "metrics"
COMPARISON = ARTIFACTS / "comparison.json"
BENCHMARK = ARTIFACTS / "benchmark.json"
COSTS = ARTIFACTS / "costs.json"
ROBUSTNESS = ARTIFACTS / "robustness.json"
EXPLANATIONS = ARTIFACTS / "explanations"
SUSPECTS = EXPLANATIONS / "suspicious_labels.csv"
"""Training images whose label the teacher contradicts; the stage `report` copies the list."""
SENSITIVITY = ARTIFACTS / "sensitivity.json"
LITERT = ARTIFACTS / "litert"
"""LiteRT files, and what was measured on them, where the parameters ask for them."""
LITERT_RESULTS = LITERT / "litert.json"
"""Scores, agreement and latency of the LiteRT files."""
REPORT = ARTIFACTS / "report"
VARIANTS = REPORT / "variants.csv"
CHOICE = REPORT / "choice.json"
"""What the budget chooses, and why."""
DEMO = ARTIFACTS / "demo"
AGREEMENTS = ARTIFACTS / "agreements"
"""How far photograph forms agree with their variants, as `ship` and `push` have measured it."""
SAMPLES = ARTIFACTS / "samples"
"""A few photographs of the test split, for the demo page and for `predict`."""
FIGURES = ARTIFACTS / "variants"
"""A small file for each variant, for `dvc metrics`."""
PLOTS = ARTIFACTS / "plots"
"""Points, for `dvc plots`."""
TRACKED = ARTIFACTS / "tracked.json"
UNDELIVERED = Path("undelivered")
"""What MLflow could not be told yet. Beside the database, not below `artifacts`: it cannot be made anew."""
CHECKPOINTS = ARTIFACTS / "checkpoints"
"""Epoch checkpoints of unfinished training. Not a DVC output: DVC removes outputs before a stage runs."""
LOCKS = CHECKPOINTS / "locks"
"""One lock for each stage or variant that is being made."""


def cache() -> Path:
    """Folder of what was measured on this machine and chosen by it, shared by all checkouts of a user.

    The variable ``DISTILLERY_CACHE`` takes precedence over ``XDG_CACHE_HOME``. What is here is no DVC output:
    times differ from run to run. A user without a home folder has a folder per checkout.
    """
    if own := os.environ.get("DISTILLERY_CACHE"):
        return Path(own).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "distillery"
    try:
        return Path.home() / ".cache" / "distillery"
    except RuntimeError:
        return CHECKPOINTS.absolute()


def kernels() -> Path:
    """Times of layers in ONNX Runtime on this machine."""
    return cache() / "kernels.json"


def precision_trials() -> Path:
    """Results of this machine's trials of bf16."""
    return cache() / "precision.json"


def choices() -> Path:
    """Folder of the recorded choices."""
    return cache() / "choices"


def choice(kind: str, question: str) -> Path:
    """A recorded choice.

    Args:
        kind: what is chosen, for the reader.
        question: SHA-256 over everything that the choice depends on except for times and code.
    """
    return choices() / f"{kind}-{question[:16]}.json"


def timings(history: str) -> Path:
    """Seconds of each epoch of the training on this machine whose ``history.jsonl`` has this SHA-256."""
    return cache() / "timings" / f"{history}.json"


def home() -> Path:
    """The checkout that MLflow's database lies in; a queued experiment runs in a copy that is thrown away."""
    return Path(os.environ.get("DVC_ROOT", ""))


def model(variant: str) -> Path:
    """Folder of a variant's ``weights.safetensors``, ``card.json`` and ``history.jsonl``."""
    return MODELS / variant


def network(variant: str) -> tuple[Path, Path]:
    """The two files of that folder that determine what the network computes."""
    return model(variant) / WEIGHTS, model(variant) / CARD


def circumstances(stage: str) -> tuple[Path, ...]:
    """Small files that identify what all entries of a stage depend on: its code, and the images.

    The images are those of the data report, stored by the code of `prepare`.
    """
    return CODE / stage, CODE / "prepare", DATA / "report.json"


def onnx(variant: str) -> Path:
    """The file that the user ships."""
    return ONNX / f"{variant}.onnx"


def litert(variant: str) -> Path:
    """The same network as a LiteRT file."""
    return LITERT / f"{variant}.tflite"


def card(variant: str) -> Path:
    """The model card of a variant."""
    return REPORT / "cards" / f"{variant}.md"


def metrics(variant: str) -> Path:
    """Scores of the shipped file on the test split."""
    return METRICS / f"{variant}.json"


def confidence(variant: str) -> Path:
    """Summary of a variant's probabilities for the test images."""
    return METRICS / f"{variant}.npz"


def quantized(parent: str) -> Path:
    """The network that post-training quantisation has made of a variant, for others that would make it."""
    return CHECKPOINTS / f"quantized-{parent}"


def checkpoints(run: str) -> Path:
    """Epoch checkpoints of one training run, removed when it is finished."""
    return CHECKPOINTS / run
