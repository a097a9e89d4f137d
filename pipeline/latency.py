"""Latency of shipped files, measured so that variants can be compared.

All files are timed in one process, one call of each in every round and the order drawn anew, so that
a machine that slows down (heat, neighbours) slows all of them alike. A side effect is that each call
finds the caches filled by others, as it does in an application: files take longer than alone in a loop.
"""

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from jaxtyping import Float64

from pipeline.inference import INPUT, OUTPUT, open_classifier
from pipeline.statistics import median_interval

FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
"""CPU features that decide how fast int8 and float run, as Linux names them (x86, then Arm)."""

REFERENCE = "fp32"


def measure(
    paths: Mapping[str, Path],
    *,
    threads: int,
    batch_size: int,
    rounds: int,
    warmup: int,
    seed: int,
    spinning: bool = True,
    reference: str = REFERENCE,
    progress: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Time every file, interleaved.

    Args:
        paths: variant names and their ONNX files.
        threads: intra-op threads of ONNX Runtime.
        batch_size: images of one call.
        rounds: timed calls of each file.
        warmup: untimed calls of each file.
        seed: of the images and of the order in each round.
        spinning: whether idle threads wait busily.
        reference: the variant that ``ratio`` compares with; where it is missing, ratios are None.
        progress: called after each of the ``warmup + rounds`` rounds.

    Returns:
        ``settings``, ``machine``, ``load_average`` before and after, and ``variants``: name to
        ``latency_ms_p50``, ``p90``, ``p99`` and ``min`` in milliseconds a call, and ``ratio``: the median
        over rounds of the reference's time over this one's (larger is faster), with a
        distribution-free 95 % interval ``ratio_lo`` and ``ratio_hi``.

    Raises:
        ModelFileError: a file is not one of this pipeline.
    """
    if not paths or rounds < 1:
        raise ValueError(f"{len(paths)} files and {rounds} rounds: at least one of each is needed")
    random = np.random.default_rng(seed)
    before = _load_average()
    calls = [_call(path, threads, spinning, batch_size, random) for path in paths.values()]
    # Python's collector would stop some calls and not others.
    collecting = gc.isenabled()
    gc.disable()
    try:
        seconds = np.array([_round(calls, random, progress) for _ in range(warmup + rounds)])[warmup:]
    finally:
        if collecting:
            gc.enable()
    names = list(paths)
    base = seconds[:, names.index(reference)] if reference in names else None
    return {
        "settings": {
            "threads": threads,
            "batch_size": batch_size,
            "rounds": rounds,
            "warmup": warmup,
            "seed": seed,
            "spinning": spinning,
            "reference": reference,
        },
        "machine": describe_machine(),
        "load_average": {"before": before, "after": _load_average()},
        "variants": {name: _summary(seconds[:, column], base) for column, name in enumerate(names)},
    }


def describe_machine() -> dict[str, Any]:
    """CPU model, the features that matter, core counts and versions."""
    cpu = _cpuinfo()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _call(
    path: Path, threads: int, spinning: bool, batch_size: int, random: np.random.Generator
) -> Callable[[], object]:
    classifier = open_classifier(path, threads=threads, spinning=spinning)
    size = classifier.contract.size
    images = random.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    return lambda: classifier.session.run([OUTPUT], {INPUT: images})


def _round(
    calls: list[Callable[[], object]],
    random: np.random.Generator,
    progress: Callable[[], object] | None,
) -> list[float]:
    """Seconds of one call of each, in a random order."""
    seconds = [0.0] * len(calls)
    for index in random.permutation(len(calls)).tolist():
        start = time.perf_counter_ns()
        calls[index]()
        seconds[index] = (time.perf_counter_ns() - start) / 1e9
    if progress is not None:
        progress()
    return seconds


def _summary(
    seconds: Float64[np.ndarray, " rounds"], base: Float64[np.ndarray, " rounds"] | None
) -> dict[str, float | None]:
    p50, p90, p99 = np.percentile(seconds * 1000, [50, 90, 99]).tolist()
    result: dict[str, float | None] = {
        "latency_ms_p50": p50,
        "latency_ms_p90": p90,
        "latency_ms_p99": p99,
        "latency_ms_min": float(seconds.min() * 1000),
        "ratio": None,
        "ratio_lo": None,
        "ratio_hi": None,
    }
    if base is not None:
        ratios = np.sort(base / seconds)
        low, high = median_interval(len(ratios))
        result |= {
            "ratio": float(np.median(ratios)),
            "ratio_lo": float(ratios[low]),
            "ratio_hi": float(ratios[high]),
        }
    return result


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _load_average() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
