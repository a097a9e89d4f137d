"""Arithmetic in bf16 at image sizes where a short trial on this machine is faster, and in fp32 otherwise."""

import copy
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import nn

from pipeline import cache
from pipeline.training import graphs
from pipeline.training.cpu_operators import FastOperators

GAIN = 1.15
"""Minimum speed of bf16 relative to fp32 at the largest size, where the time goes. Processors with
instructions for bf16 are above it (1.4 and more), others far below (0.1 to 1): noise decides nothing."""
UNTIMED, TIMED = 2, 7
"""Numbers of steps of a trial of each arithmetic: warm-up, and timed."""
CLEAR = 1.2
"""How far, as a factor, a gain lies from ``GAIN`` and from 1 if it is clear."""
FEW = 3
"""Number of timed steps of each arithmetic after which a trial ends if its gain is clear."""
TRIAL = 5
"""Version of the trial, raised when a change of the training made one of the two faster; trials of another
    version are repeated."""


class TriedPrecision(MixedPrecision):
    """bf16 while ``fast`` is set, which the training loop does by image size; fp32 otherwise."""

    def __init__(self, device: str, trials: Path | None) -> None:
        super().__init__("bf16-mixed", device)
        self.trials = trials
        """JSON file with the results of earlier trials, so that a machine always decides the same way."""
        self.fast = False
        self.in_bf16: frozenset[int] = frozenset()
        """Image sizes that ``choose`` has chosen for the latest training."""
        if device == "cuda":
            # TF32 for products of matrices, as PyTorch has it for convolutions: never slower than fp32.
            torch.set_float32_matmul_precision("high")

    def forward_context(self) -> AbstractContextManager[Any]:
        return super().forward_context() if self.fast else nullcontext()

    def convert_input(self, data: Any) -> Any:
        return super().convert_input(data) if self.fast else data


def name(fabric: Fabric) -> str:
    """Name of the arithmetic in Lightning Fabric; ``bf16-mixed`` also if only some image sizes use it."""
    return str(fabric.strategy.precision.precision)


def choose(fabric: Fabric, module: nn.Module, batch_size: int, sizes: Sequence[int]) -> frozenset[int]:
    """The image sizes that are trained in bf16; none unless the precision is ``auto``.

    Each size is tried once per machine, with random images and a copy of the network. If bf16 is clearly
    faster at the largest size, it is taken at all sizes where it is not slower.
    """
    precision = fabric.strategy.precision
    if not isinstance(precision, TriedPrecision):
        return frozenset()
    gains = {size: _gain(fabric, module, batch_size, size, precision.trials) for size in sizes}
    is_faster = gains[max(sizes)] >= GAIN
    precision.in_bf16 = frozenset(size for size, gain in gains.items() if is_faster and gain >= 1)
    return precision.in_bf16


def use(fabric: Fabric, fast: bool) -> None:
    """Switch the network to bf16 or to fp32; without effect unless the precision is ``auto``."""
    if isinstance(fabric.strategy.precision, TriedPrecision):
        fabric.strategy.precision.fast = fast


def as_trained(fabric: Fabric, size: int) -> AbstractContextManager[None]:
    """Let networks compute as the latest training computes images of a size: in bf16 if ``choose`` has chosen
    it."""
    precision = fabric.strategy.precision
    return computing(fabric, isinstance(precision, TriedPrecision) and size in precision.in_bf16)


@contextmanager
def computing(fabric: Fabric, fast: bool) -> Iterator[None]:
    """Let networks compute as steps do: in bf16 or in fp32, and with the operators that are fast on a CPU."""
    use(fabric, fast)
    try:
        with fabric.autocast(), FastOperators():
            yield
    finally:
        use(fabric, False)


def _gain(fabric: Fabric, module: nn.Module, batch_size: int, size: int, trials: Path | None) -> float:
    """How many times as fast bf16 is: the recorded result, or that of a trial, which is recorded."""
    if trials is None:
        return _try(fabric, module, batch_size, size)
    name = _name(fabric, module, batch_size, size)
    with cache.alone(trials):
        gains = cache.read(trials, cache.MEASUREMENTS) or {}
        if name not in gains:
            gains[name] = _try(fabric, module, batch_size, size)
            cache.write(trials, cache.MEASUREMENTS, gains)
    return gains[name]


def _name(fabric: Fabric, module: nn.Module, batch_size: int, size: int) -> str:
    if fabric.device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(fabric.device)} with CUDA graphs"
    else:
        machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    weights = sum(parameter.numel() for parameter in module.parameters())
    return (
        f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{type(module).__name__} of {weights} weights, {batch_size} images of {size} px, trial {TRIAL}"
    )


def _try(fabric: Fabric, module: nn.Module, batch_size: int, size: int) -> float:
    """Seconds per training step in fp32 over those in bf16, each the fastest of ``TIMED``, or of
    ``FEW`` where these are clear.

    The two take turns, so that a machine that slows down slows down both. On a GPU both are replayed as CUDA
    graphs, as steps are: launched one by one, the additional kernels of bf16 would cost more than they save.
    """
    network = copy.deepcopy(module).train()
    images = torch.zeros(batch_size, 3, size, size, device=fabric.device).uniform_(
        generator=torch.Generator(fabric.device).manual_seed(0)
    )
    images = images.to(memory_format=torch.channels_last)

    def learn(fast: bool) -> None:
        with torch.autocast(fabric.device.type, torch.bfloat16, enabled=fast), FastOperators():
            logits = network(images)
        logits.float().square().mean().backward()

    steps = {fast: graphs.replayable(partial(learn, fast), fabric.device) for fast in (False, True)}
    times: dict[bool, list[float]] = {False: [], True: []}

    def gain() -> float:
        return min(times[False][UNTIMED:]) / min(times[True][UNTIMED:])

    for number in range(1, UNTIMED + TIMED + 1):
        for fast, measured in times.items():
            began = time.perf_counter()
            steps[fast]()
            if fabric.device.type == "cuda":
                torch.cuda.synchronize(fabric.device)
            measured.append(time.perf_counter() - began)
        if number >= UNTIMED + FEW and not 1 / CLEAR < gain() < GAIN * CLEAR:
            break
    return gain()
