"""The devices, the processes, the threads and the memory of training."""

import ctypes
import logging
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed

from pipeline.data.rendering import renderers
from pipeline.errors import DistilleryError
from pipeline.running import affinity, process, siblings
from pipeline.training.precision import TriedPrecision
from pipeline.training.settings import ComputeSettings

ACCELERATORS: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
}
"""Kind of device to a function that says whether this machine has it."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Options of glibc's mallopt(3)."""
FEWEST_PROCESSES = 4
"""Number of processes that are allowed on any CPU, so that a small machine can try what a larger one does."""


class ComputeError(DistilleryError):
    """The requested device is not available."""


def start(settings: ComputeSettings, *, trials: Path | None = None, ranks: bool = False) -> Fabric:
    """Lightning Fabric on one device, or on several, each with a process of its own.

    Args:
        settings: devices, threads and precision.
        trials: file in which the trials of the precision ``auto`` are stored; see
            `pipeline.training.precision`.
        ranks: whether the other processes of the settings, or of torchrun or SLURM, share the work. Lightning
            Fabric starts them, if no launcher has, by running the command of this process again. From here
            on, all of them end when one fails.

    Raises:
        ComputeError: the machine has no such accelerator, or not as many devices.
    """
    accelerator, precision = settings.accelerator, settings.precision
    if accelerator != "auto" and not ACCELERATORS[accelerator]():
        available = ", ".join(name for name, is_available in ACCELERATORS.items() if is_available())
        raise ComputeError(
            f"compute.accelerator = {accelerator!r}: not available here; allowed: auto, {available}"
        )
    kind = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    environment, devices, nodes = _layout(settings, kind) if ranks else (LightningEnvironment(), 1, 1)
    if not torch.cuda.is_available():
        _keep_freed_memory()
    torch.set_flush_denormal(True)
    renderers.prefer(settings.views)
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        # A graph that stays the same lets parameters without a gradient be; batch norms agree by themselves.
        strategy=DDPStrategy(forward_sync_buffers=False, static_graph=True)
        if devices * nodes > 1
        else "auto",
        precision=None if precision == "auto" else precision,
        plugins=[environment, *([TriedPrecision(kind, trials)] if precision == "auto" else [])],
    )
    if devices * nodes > 1:
        _launch(fabric, environment, nodes)
    # SLURM gives each process cores of its own; otherwise they are shared.
    sharing = 1 if "SLURM_CPUS_PER_TASK" in os.environ and siblings.in_slurm_step() else devices
    torch.set_num_threads(max(1, affinity.threads(settings.threads) // sharing))
    return fabric


def _layout(settings: ComputeSettings, kind: str) -> tuple[ClusterEnvironment, int, int]:
    """The launcher of the processes, and the numbers of devices per machine and of machines.

    Raises:
        ComputeError: they do not fit this machine, or one another.
    """
    if distributed.is_torchelastic_launched():
        environment, key = TorchElasticEnvironment(), "torchrun's --nproc-per-node"
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif siblings.in_slurm_step():
        tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES") or 1)
        devices, key = tasks // nodes, "SLURM's --ntasks-per-node"
        if devices * nodes != tasks:
            raise ComputeError(f"SLURM runs {tasks} tasks on {nodes} machines: each must run as many")
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Fabric wants it
        environment = SLURMEnvironment()
    else:
        environment, key, nodes = LightningEnvironment(), "compute.devices", settings.nodes
        automatic = torch.cuda.device_count() if kind == "cuda" else 1
        devices = automatic if settings.devices == "auto" else settings.devices
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if nodes > 1 and missing:
            raise ComputeError(
                f"compute.nodes = {nodes}: each machine needs the variables MASTER_ADDR, MASTER_PORT and "
                f"NODE_RANK; missing: {', '.join(missing)}"
            )
        if nodes > 1:
            _check_number("NODE_RANK", 0, nodes - 1)
            _check_number("MASTER_PORT", 1, 65535)
        if kind == "cpu" and devices > (most := max(FEWEST_PROCESSES, os.cpu_count() or 1)):
            raise ComputeError(
                f"{key} = {devices}: more processes than this machine has cores only take memory; allowed: "
                f"auto, or 1 to {most} on a CPU"
            )
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise ComputeError(f"{key} = {devices}: this machine has {torch.cuda.device_count()} GPUs")
    return environment, devices, nodes


def _check_number(variable: str, least: int, most: int) -> None:
    """Check a number in the environment.

    Raises:
        ComputeError: it is not a whole number within the limits.
    """
    text = os.environ[variable]
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise ComputeError(f"{variable} = {text!r}: allowed: a whole number from {least} to {most}")


def _launch(fabric: Fabric, environment: ClusterEnvironment, nodes: int) -> None:
    """Start the other processes unless a launcher has, and let all of them end together."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Weights of one input channel have several strides that mean the same; DDP notices the difference.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    launcher: Any = fabric.strategy.launcher
    if not environment.creates_processes_externally:
        siblings.watch_started(launcher.procs, process.print_errors)
    fabric.launch()
    siblings.join(
        fabric.global_rank,
        fabric.world_size,
        environment.main_address if nodes > 1 else None,
        fabric.broadcast,
        process.print_errors,
    )


def _keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning them to the system: a step at 192 px is 20 % faster.

    Otherwise every activation map is mapped again, page by page, in every step.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 256 * 2**20)
