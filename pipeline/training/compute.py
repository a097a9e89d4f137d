"""Where training runs: device, threads, memory."""

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from lightning_fabric import Fabric

from pipeline.errors import DistilleryError
from pipeline.training.precision import TriedPrecision

ACCELERATORS: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
}
"""Device kind to whether this machine has it."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Options of glibc's mallopt(3)."""


class ComputeError(DistilleryError):
    """This machine has no such device."""


def start(*, accelerator: str, threads: int, precision: str, trials: Path | None = None) -> Fabric:
    """Lightning Fabric on one device.

    With the precision ``auto``, the file ``trials`` keeps what was found on this machine; see `precision`.

    Raises:
        ComputeError: the machine has no such accelerator.
    """
    if accelerator != "auto" and not ACCELERATORS[accelerator]():
        there = ", ".join(name for name, is_there in ACCELERATORS.items() if is_there())
        raise ComputeError(
            f"compute.accelerator = {accelerator!r}: not on this machine; allowed: auto, {there}"
        )
    if not torch.cuda.is_available():
        _keep_freed_memory()
    torch.set_num_threads(threads or usable_cores())
    torch.set_flush_denormal(True)
    if precision == "auto":
        kind = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
        return Fabric(accelerator=accelerator, devices=1, plugins=[TriedPrecision(kind, trials)])
    return Fabric(accelerator=accelerator, devices=1, precision=precision)  # pyright: ignore[reportArgumentType]


def usable_cores() -> int:
    """Physical cores that this process may use."""
    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of giving them back: a step at 192 px is a fifth faster.

    Each activation map would otherwise be mapped, page by page, anew in every step.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 256 * 2**20)
