"""Epoch checkpoints: one safetensors file with a JSON header and a checksum, replaced atomically."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline import files

FILE = "last.safetensors"
UNSEALED = "0" * hashlib.sha256().digest_size * 2
"""Stands in the header for the checksum while it is computed."""
History = list[dict[str, Any]]


class CheckpointError(ValueError):
    """A checkpoint is damaged; the message says how."""


@dataclass(frozen=True)
class Progress:
    """The progress of an interrupted training."""

    step: int
    """Number of finished optimiser steps."""
    history: History
    """One line per finished epoch."""


def save(
    folder: Path,
    identity: str,
    progress: Progress,
    *,
    module: nn.Module,
    averaged: nn.Module | None,
    optimizer: Optimizer,
) -> None:
    """Replace the checkpoint atomically: an interruption leaves either the old one or the new one."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    if averaged is not None:
        tensors |= {f"averaged.{name}": value for name, value in averaged.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": v for key, v in state.items() if isinstance(v, Tensor)}
    header = {
        "identity": identity,
        "step": str(progress.step),
        "history": json.dumps(progress.history),
        "sha256": UNSEALED,
    }
    with files.replacing(folder / FILE) as fresh:
        save_file(_separate(tensors), fresh, header)
        with fresh.open("r+b") as file:
            place, digest = _digest(file)
            file.seek(place)
            file.write(digest.encode())


def restore(
    folder: Path, identity: str, *, module: nn.Module, averaged: nn.Module | None, optimizer: Optimizer
) -> Progress | None:
    """Restore the state of a training from its checkpoint.

    Returns None, with nothing restored, if there is no checkpoint with this identity. A damaged one is set
    aside.
    """
    file = folder / FILE
    try:
        header, tensors = _read(file, identity)
        if header.get("identity") != identity:
            return None
        progress = _progress(header)
        _check(_below(tensors, "module."), module.state_dict(), "module")
        if averaged is not None:
            _check(_below(tensors, "averaged."), averaged.state_dict(), "averaged")
        states = _states(_below(tensors, "optimizer."), optimizer)
    except FileNotFoundError:
        return None
    except (OSError, CheckpointError) as error:
        files.set_aside(file, str(error), "the training starts from the beginning")
        return None
    _fill(module, _below(tensors, "module."))
    if averaged is not None:
        _fill(averaged, _below(tensors, "averaged."))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    _restore_layout(optimizer)
    return progress


def _read(file: Path, identity: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header of a checkpoint, and its tensors if it has the identity.

    Nothing but the checksum is looked at before the checksum is right.

    Raises:
        CheckpointError: the file is not as it was written.
    """
    if not file.is_file():
        file.lstat()  # raises FileNotFoundError
        raise CheckpointError("it is not a regular file")
    with file.open("rb") as content:
        place, digest = _digest(content)
        content.seek(place)
        if content.read(len(digest)) != digest.encode():
            raise CheckpointError("its content does not match its checksum")
    try:
        with safe_open(file, framework="pt") as stored:
            header = stored.metadata() or {}
            names = stored.keys() if header.get("identity") == identity else []
            return header, {name: stored.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(str(error)) from error


def _digest(file: BinaryIO) -> tuple[int, str]:
    """The place of the checksum in a checkpoint, and what it should be: the SHA-256 of the file with zeros
    there.

    Raises:
        CheckpointError: the header has no checksum.
    """
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    key = b'"sha256":"'
    # Longer headers are damaged: 10,000 epochs take some 3 MB.
    start = file.read(min(size, 1 << 27))
    found = start.find(key)
    if found < 0 or len(start) != size:
        raise CheckpointError("it has no checksum")
    place = 8 + found + len(key)
    digest = hashlib.sha256()
    file.seek(0)
    digest.update(file.read(place) + UNSEALED.encode())
    file.seek(place + len(UNSEALED))
    while block := file.read(1 << 20):
        digest.update(block)
    return place, digest.hexdigest()


def _progress(header: Mapping[str, str]) -> Progress:
    """What the header says of the training.

    Raises:
        CheckpointError: it says something else.
    """
    try:
        step, history = int(header["step"]), json.loads(header["history"])
    except (LookupError, ValueError) as error:
        raise CheckpointError(f"its header does not say how far the training was: {error}") from error
    if not isinstance(history, list) or not all(isinstance(line, dict) for line in history):
        raise CheckpointError("its history is not a list of epochs")
    return Progress(step, history)


def _check(stored: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> None:
    """Raise ``CheckpointError`` unless the tensors are those of a network, by name, shape and type."""
    for key in {**stored, **own}:
        if key not in stored or key not in own:
            raise CheckpointError(f"its {name} {'lacks' if key in own else 'has another tensor,'} {key}")
        if stored[key].shape != own[key].shape or stored[key].dtype != own[key].dtype:
            raise CheckpointError(f"{key} of its {name} has another shape or type")


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    state = module.state_dict()  # it also holds the versions of the modules, which some of them read
    state.update(tensors)
    module.load_state_dict(state)


def _states(tensors: Mapping[str, Tensor], optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """The state of each parameter by its number.

    Raises:
        CheckpointError: it is not a state of the optimiser's parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise CheckpointError(f"its optimizer has a state {name} of no parameter")
        if value.dim() and value.shape != parameters[int(index)].shape:
            raise CheckpointError(f"{name} of its optimizer has another shape")
        states.setdefault(int(index), {})[key] = value
    return states


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own, as the format demands; some networks share
    them."""
    separate: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if place in places else value
        places.add(place)
    return separate


def clear(folder: Path) -> None:
    """Remove the checkpoints of a training whose result is saved."""
    if folder.exists():
        shutil.rmtree(folder)


def _restore_layout(optimizer: Optimizer) -> None:
    """Give the state the memory layout of the weights.

    The fused optimisers of PyTorch traverse both in memory order and ignore strides.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
