"""The machine that a measurement ran on, and whether it had the machine to itself."""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil

FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
"""CPU features that decide how fast int8 and float run, as Linux names them (x86, then Arm)."""

FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")


@dataclass(frozen=True)
class Noise:
    """What else than the measured code took time."""

    others_cores: float
    """Cores that other processes kept busy, on average."""
    steal: float
    """Share of the time that the host gave to others (of virtual machines)."""
    spread: float
    """How much the 90th percentile of the reference's times lies above their median, as a share."""
    drift: float
    """How much the reference's median changed from the first half of the sessions to the second, a share."""


LIMITS = Noise(others_cores=0.15, steal=0.02, spread=0.25, drift=0.05)
"""A measurement with more of any of these is called noisy."""

WORDS = {
    "others_cores": "other processes kept {seen:.2f} cores busy",
    "steal": "the host took {seen:.1%} of the time",
    "spread": "the 90th percentile lies {seen:.0%} above the median",
    "drift": "the median drifted by {seen:.1%}",
}


def describe() -> dict[str, Any]:
    """CPU model, the features that matter, core counts, clock, memory and versions; None where not told."""
    cpu = _cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "cores_usable": len(usable_cores()),
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


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def load_average() -> list[float] | None:
    """Over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def watch() -> Callable[[], tuple[float, float]]:
    """Start watching; the function returned tells ``others_cores`` and ``steal`` since then."""
    everyone, own, process = psutil.cpu_times(), psutil.Process().cpu_times(), psutil.Process()

    def seen() -> tuple[float, float]:
        now, mine = psutil.cpu_times(), process.cpu_times()
        passed = {name: getattr(now, name) - getattr(everyone, name) for name in now._fields}
        # Linux counts guests in user time, too.
        total = sum(passed.values()) - passed.get("guest", 0) - passed.get("guest_nice", 0)
        idle = passed["idle"] + passed.get("iowait", 0) + passed.get("steal", 0)
        used = mine.user + mine.system - own.user - own.system
        wall = total / (psutil.cpu_count() or 1)
        if not wall:
            return 0.0, 0.0
        return max(0.0, (total - idle - used) / wall), passed.get("steal", 0) / total

    return seen


def verdict(noise: Noise) -> dict[str, Any]:
    """The figures, whether any is above its limit, and in words which."""
    seen, limits = asdict(noise), asdict(LIMITS)
    reasons = [WORDS[name].format(seen=seen[name]) for name in seen if seen[name] > limits[name]]
    return {"noisy": bool(reasons), "reasons": reasons, **seen}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    text = _read(Path("/proc/cpuinfo")) or ""
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
