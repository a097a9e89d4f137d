"""The device, the threads and the memory of training."""

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from lightning_fabric import Fabric

from pipeline.data import renderers
from pipeline.errors import DistilleryError
from pipeline.training.precision import TriedPrecision
from pipeline.training.settings import ComputeSettings

ACCELERATORS: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
}
"""Kind of device to a function that says whether this machine has it."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Options of glibc's mallopt(3)."""


class ComputeError(DistilleryError):
    """The requested device is not available."""


def start(settings: ComputeSettings, *, trials: Path | None = None) -> Fabric:
    """Lightning Fabric on one device.

    Args:
        settings: device, threads and precision.
        trials: file in which the trials of the precision ``auto`` are stored; see
            `pipeline.training.precision`.

    Raises:
        ComputeError: the machine has no such accelerator.
    """
    accelerator, threads, precision = settings.accelerator, settings.threads, settings.precision
    if accelerator != "auto" and not ACCELERATORS[accelerator]():
        available = ", ".join(name for name, is_available in ACCELERATORS.items() if is_available())
        raise ComputeError(
            f"compute.accelerator = {accelerator!r}: not available here; allowed: auto, {available}"
        )
    if not torch.cuda.is_available():
        _keep_freed_memory()
    torch.set_num_threads(threads or usable_cores())
    torch.set_flush_denormal(True)
    renderers.prefer(settings.views)
    if precision == "auto":
        kind = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
        return Fabric(accelerator=accelerator, devices=1, plugins=[TriedPrecision(kind, trials)])
    return Fabric(accelerator=accelerator, devices=1, precision=precision)


def usable_cores() -> int:
    """Number of physical cores that this process may use."""
    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def _keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning them to the system: a step at 192 px is 20 % faster.

    Otherwise every activation map is mapped again, page by page, in every step.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 256 * 2**20)
