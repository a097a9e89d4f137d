"""Files of weights on this machine, recognised by their names. No import here needs PyTorch."""

import re
from pathlib import Path

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
KINDS = " or ".join(SUFFIXES)


def is_weights(weights: str | None) -> bool:
    """Whether the name of weights is that of a local file, by its suffix."""
    return weights is not None and Path(weights).suffix.lower() in SUFFIXES


def may_be_checkpoint(path: str) -> bool:
    """Whether something lies at a path, or it is the prefix of files of TensorFlow, or a name on a hub."""
    if Path(path).exists() or Path(f"{path}.index").is_file():
        return True
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not is_weights(path)
