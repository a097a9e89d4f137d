"""Files of weights on this machine, recognised by their names. No import here needs PyTorch."""

from pathlib import Path

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
KINDS = " or ".join(SUFFIXES)


def is_weights(weights: str | None) -> bool:
    """Whether the name of weights is that of a local file, by its suffix."""
    return weights is not None and Path(weights).suffix.lower() in SUFFIXES


def missing(source: str, name: str, weights: str | None, labels: object) -> dict[str, str]:
    """The files that a teacher's settings name and that do not exist, by key.

    Args:
        source: key of ``sources.SOURCES``.
        name: name of the model; a path for ``onnx``, and for any source if it starts like a path.
        weights: name of the weights.
        labels: names of the logits, their file, or a word for their order.
    """
    paths = {}
    if source == "onnx" or name.startswith(("/", "./", "../", "~")):
        paths["name"] = name
    if weights is not None and (is_weights(weights) or weights.startswith(("/", "./", "../", "~"))):
        paths["weights"] = weights
    if isinstance(labels, str) and labels not in ("data", "natural"):
        paths["labels"] = labels
    return {
        key: path
        for key, path in paths.items()
        if not (Path(path).is_file() or (key == "name" and source != "onnx" and Path(path).is_dir()))
    }
