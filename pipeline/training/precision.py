"""Arithmetic in bf16 at image sizes where a short trial on this machine is faster, and in fp32 otherwise."""

import copy
import json
import platform
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import nn

from pipeline.training.depthwise import FastDepthwise

GAIN = 1.1
"""Minimum speed of bf16 relative to fp32: smaller gains are noise, and fewer bits cost accuracy."""
UNTIMED, TIMED = 2, 5
"""Numbers of steps of a trial: warm-up, and timed."""
TRIAL = 2
"""Version of the trial, raised when a change of the training made one of the two faster; trials of another
    version are repeated."""


class TriedPrecision(MixedPrecision):
    """bf16 while ``fast`` is set, which the training loop does by image size; fp32 otherwise."""

    def __init__(self, device: str, trials: Path | None) -> None:
        super().__init__("bf16-mixed", device)
        self.trials = trials
        """JSON file with the results of earlier trials, so that a machine always decides the same way."""
        self.fast = False

    def forward_context(self) -> AbstractContextManager[Any]:
        return super().forward_context() if self.fast else nullcontext()

    def convert_input(self, data: Any) -> Any:
        return super().convert_input(data) if self.fast else data


def name(fabric: Fabric) -> str:
    """Name of the arithmetic in Lightning Fabric; ``bf16-mixed`` also if only some image sizes use it."""
    return str(fabric.strategy.precision.precision)


def choose(fabric: Fabric, module: nn.Module, batch_size: int, sizes: Sequence[int]) -> frozenset[int]:
    """The image sizes that are trained in bf16; none unless the precision is ``auto``.

    Each size is tried once per machine, with random images and a copy of the network.
    """
    precision = fabric.strategy.precision
    if not isinstance(precision, TriedPrecision):
        return frozenset()
    file = precision.trials
    gains: dict[str, float] = json.loads(file.read_text()) if file and file.exists() else {}
    names = {size: _name(fabric, module, batch_size, size) for size in sizes}
    for size, name in names.items():
        if name not in gains:
            plain, fast = (_seconds(fabric, module, batch_size, size, dtype) for dtype in (False, True))
            gains[name] = plain / fast
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                fresh = file.with_suffix(".new")
                fresh.write_text(json.dumps(gains, indent=2) + "\n")
                fresh.replace(file)  # atomic
    return frozenset(size for size, name in names.items() if gains[name] >= GAIN)


def use(fabric: Fabric, fast: bool) -> None:
    """Switch the network to bf16 or to fp32; without effect unless the precision is ``auto``."""
    if isinstance(fabric.strategy.precision, TriedPrecision):
        fabric.strategy.precision.fast = fast


def _name(fabric: Fabric, module: nn.Module, batch_size: int, size: int) -> str:
    if fabric.device.type == "cuda":
        machine = torch.cuda.get_device_name(fabric.device)
    else:
        machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    weights = sum(parameter.numel() for parameter in module.parameters())
    return (
        f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{type(module).__name__} of {weights} weights, {batch_size} images of {size} px, trial {TRIAL}"
    )


def _seconds(fabric: Fabric, module: nn.Module, batch_size: int, size: int, fast: bool) -> float:
    """Seconds per training step: the fastest of ``TIMED``."""
    network = copy.deepcopy(module).train()
    images = torch.rand(batch_size, 3, size, size, device=fabric.device)
    images = images.to(memory_format=torch.channels_last)
    times: list[float] = []
    for _ in range(UNTIMED + TIMED):
        began = time.perf_counter()
        with torch.autocast(fabric.device.type, torch.bfloat16, enabled=fast), FastDepthwise():
            logits = network(images)
        logits.float().square().mean().backward()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        times.append(time.perf_counter() - began)
    return min(times[UNTIMED:])
