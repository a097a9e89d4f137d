"""The machine that a measurement ran on, and whether other work disturbed the measurement."""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil

from pipeline.running import affinity

FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
"""CPU features that the speed of int8 and float depends on, as Linux names them (x86, then Arm)."""

FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")


@dataclass(frozen=True)
class Noise:
    """What disturbed a measurement."""

    others_cores: float
    """Average number of cores that other processes kept busy."""
    steal: float
    """Share of the time that the host of a virtual machine gave to other machines."""
    spread: float
    """How far the 90th percentile of the reference's times lies above their median, as a share of it."""
    drift: float
    """Relative change of the reference's median from the first half of the sessions to the second."""


LIMITS = Noise(others_cores=0.15, steal=0.02, spread=0.25, drift=0.05)
"""A measurement that exceeds any of these is called noisy."""

REASONS = {
    "others_cores": "other processes kept {:.2f} cores busy",
    "steal": "the host took {:.1%} of the time",
    "spread": "the reference's 90th percentile lay {:.0%} above its median in the noisiest condition",
    "drift": "the median drifted by {:.1%}",
}


def describe() -> dict[str, Any]:
    """CPU model and features, numbers of cores, clock, memory and versions; None where unknown."""
    cpu = _cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "cores_usable": len(affinity.usable_cores()),
        "governor": _read(FREQUENCY / "scaling_governor"),
        "frequency_mhz": float(cpu["cpu MHz"]) if "cpu MHz" in cpu else None,
        "memory_bytes": psutil.virtual_memory().total,
        "virtual": _read(Path("/sys/class/dmi/id/product_name")) if "hypervisor" in flags else None,
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def load_average() -> list[float] | None:
    """Load average over 1, 5 and 15 minutes; None where the system has none."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def watch() -> Callable[[], tuple[float, float]]:
    """Start watching; the returned function returns ``others_cores`` and ``steal`` since then."""
    process = psutil.Process()
    all_before, own_before = psutil.cpu_times(), process.cpu_times()

    def noise() -> tuple[float, float]:
        now, own = psutil.cpu_times(), process.cpu_times()
        passed = {name: getattr(now, name) - getattr(all_before, name) for name in now._fields}
        # Linux includes the time of guests in user time.
        total = sum(passed.values()) - passed.get("guest", 0) - passed.get("guest_nice", 0)
        idle = passed["idle"] + passed.get("iowait", 0) + passed.get("steal", 0)
        used = own.user + own.system - own_before.user - own_before.system
        wall = total / (psutil.cpu_count() or 1)
        if not wall:
            return 0.0, 0.0
        return max(0.0, (total - idle - used) / wall), passed.get("steal", 0) / total

    return noise


def verdict(noise: Noise) -> dict[str, Any]:
    """The figures, whether any of them exceeds its limit (``noisy``), and the ``reasons`` in words."""
    figures, limits = asdict(noise), asdict(LIMITS)
    reasons = [REASONS[name].format(figures[name]) for name in figures if figures[name] > limits[name]]
    return {"noisy": bool(reasons), "reasons": reasons, **figures}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    text = _read(Path("/proc/cpuinfo")) or ""
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
