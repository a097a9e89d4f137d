"""Files of weights on this machine, recognised by their names. No import here needs PyTorch."""

from pathlib import Path

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
KINDS = " or ".join(SUFFIXES)


def is_weights(weights: str | None) -> bool:
    """Whether the name of weights is that of a local file, by its suffix."""
    return weights is not None and Path(weights).suffix.lower() in SUFFIXES
