"""State dicts from files of any origin; only tensors are read, and no code in a file is run."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from teachers.errors import WeightsError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
KINDS = " or ".join(SUFFIXES)
PARALLEL = "module."
"""Prefix that `DataParallel` gives every name."""


def is_file(weights: str | None) -> bool:
    """Whether the name of weights is that of a local file, by its suffix."""
    return weights is not None and Path(weights).suffix in SUFFIXES


def build(make: Callable[[int], nn.Module], head: str | None, path: Path) -> nn.Module:
    """Build a network with the tensors of a file, for as many classes as the file's head has.

    Args:
        make: function from the number of classes to a network with fresh weights.
        head: module path of the network's last linear layer.
        path: file that ``read`` takes.

    Raises:
        WeightsError: the file is damaged or rejected, or its tensors do not fit the network.
    """
    tensors = read(path)
    weight = f"{head}.weight"
    if weight not in tensors:
        raise WeightsError(
            f"{path}: a head `{weight}` is expected; found {', '.join(list(tensors)[-2:]) or 'nothing'}"
        )
    module = make(len(tensors[weight]))
    fill(module, tensors, str(path))
    return module


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file, or of a ``.pth`` file that holds weights alone.

    Raises:
        WeightsError: the file is missing, damaged, or a pickle that would run code.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; a {KINDS} file with a state dict is expected")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about old pickle formats, which are loaded or rejected like others
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not an intact safetensors file: {error}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} must hold a state dict alone; it is rejected, since loading it would run its code"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"{path} is not an intact PyTorch file: {' '.join(str(error).split())}") from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds {type(content).__name__}; a state dict of tensors is expected")
    if content and all(name.startswith(PARALLEL) for name in content):
        content = {name.removeprefix(PARALLEL): value for name, value in content.items()}
    return content


def fill(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Load a state dict by name.

    Raises:
        WeightsError: names or shapes differ; the message gives the first of each kind.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {problem} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for problem, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise WeightsError(f"{origin}: {len(expected)} tensors are expected; {', '.join(problems)}")
    module.load_state_dict(tensors)
