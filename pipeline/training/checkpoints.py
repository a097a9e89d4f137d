"""Epoch checkpoints: one safetensors file with a JSON header, replaced atomically."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

FILE = "last.safetensors"
History = list[dict[str, float]]


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
    header = {"identity": identity, "step": str(progress.step), "history": json.dumps(progress.history)}
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{FILE}.new"
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, fresh, header)
    fresh.replace(folder / FILE)


def restore(
    folder: Path, identity: str, *, module: nn.Module, averaged: nn.Module | None, optimizer: Optimizer
) -> Progress | None:
    """Restore the state of a training from its checkpoint; None if there is no checkpoint with this
    identity."""
    try:
        with safe_open(folder / FILE, framework="pt") as stored:
            header = stored.metadata()
            if header["identity"] != identity:
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except (FileNotFoundError, SafetensorError):
        return None
    module.load_state_dict(_below(tensors, "module."))
    if averaged is not None:
        averaged.load_state_dict(_below(tensors, "averaged."))
    states: dict[int, dict[str, Any]] = {}
    for name, value in _below(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    _restore_layout(optimizer)
    return Progress(int(header["step"]), json.loads(header["history"]))


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


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
