"""State dicts from files that somebody else made: read as tensors, never run."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from teachers.teacher import TeacherError


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of a ``.pth`` file that holds nothing but weights.

    Raises:
        TeacherError: the file is missing, damaged, or a pickle that would have to run code.
    """
    if not path.is_file():
        raise TeacherError(f"{path}: no such file; a .safetensors or .pth file with a state dict is expected")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise TeacherError(f"{path} is no intact safetensors file: {error}") from error
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"{path} holds more than weights and is refused, since loading it would run its code; "
            "save the state dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise TeacherError(f"{path} is no intact PyTorch file: {' '.join(str(error).split())}") from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise TeacherError(f"{path} holds {type(content).__name__}; a state dict of tensors is expected")
    return content


def fill(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Load a state dict by name.

    Raises:
        TeacherError: names or shapes differ; the first of each kind are named.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    found = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if found:
        raise TeacherError(f"{origin}: {len(expected)} tensors are expected; {', '.join(found)}")
    module.load_state_dict(tensors)
