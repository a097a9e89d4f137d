"""Where training runs: device, processes, threads, memory."""

import ctypes
import os
import platform
from pathlib import Path

import psutil
import torch
from lightning_fabric import Fabric

from pipeline.training.precision import TriedPrecision

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Options of glibc's mallopt(3)."""


def start(
    *, accelerator: str, devices: int, threads: int, precision: str, trials: Path | None = None
) -> Fabric:
    """Launch Lightning Fabric; with several devices every process goes on from here.

    With the precision ``auto``, the file ``trials`` keeps what was found on this machine; see `precision`.
    """
    if not torch.cuda.is_available():
        _keep_freed_memory()
    torch.set_num_threads(threads or usable_cores())
    torch.set_flush_denormal(True)
    if precision == "auto":
        kind = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
        plugin = TriedPrecision(kind, trials)
        fabric = Fabric(accelerator=accelerator, devices=devices, plugins=[plugin])
    else:
        fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)  # pyright: ignore[reportArgumentType]
    fabric.launch()
    return fabric


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
