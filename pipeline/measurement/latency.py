"""Latency of ONNX files, measured so that variants can be compared and measurements can be repeated.

All files are timed in one process. Each round calls every file once, in a random order, so that a machine
that slows down (because of heat or other work) slows all of them alike. As a side effect, each call finds the
caches filled by the other files, as it does in an application: calls take longer than alone in a loop.

Calls within one session are not independent repeats, because the weights stay where they happen to lie in
memory. Therefore every file is opened several times, and intervals are those of the mean over sessions. With
intervals over calls, a second measurement would often lie outside the interval of the first one.
"""

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from jaxtyping import Float64, UInt8

from pipeline.lineage import REFERENCE
from pipeline.measurement import footprint, machine
from pipeline.measurement.machine import Noise
from pipeline.onnx.inference import INPUT, OUTPUT, open_classifier
from pipeline.running import affinity
from pipeline.statistics.intervals import mean_interval

WINDOW = 4
"""Number of rounds that are compared with the same number before, to see whether a session is warm."""

MOST_WARMUP_ROUNDS = 48
"""Number of rounds after which a session counts as warm in any case."""

STABLE = 0.02
"""Greatest share by which a window of a warm session may be faster than the window before."""

LEAST_ROUNDS, MOST_ROUNDS = 5, 50
"""Least and greatest number of timed rounds per session."""

SESSION_SECONDS = 0.5
"""Seconds of timed rounds per session, within those numbers."""

LEAST_SESSIONS = 3
"""Number of sessions that are timed however long they take; fewer give no useful interval."""

MOST_SESSIONS = 3
"""Greatest number of sessions as a multiple of the requested one, if the precision is not reached."""

Progress = Callable[[], object]

Call = Callable[[], object]
"""A call of an open file, which is timed."""

Opener = Callable[[Path, Sequence[int], np.random.Generator], Call]
"""Opens a file on some cores and returns a call of it with random images."""


def measure(
    paths: Mapping[str, Path],
    *,
    threads: Sequence[int] = (1, 0),
    batch_sizes: Sequence[int] = (1, 16),
    sessions: int,
    precision: float,
    seconds: float,
    processes: int,
    seed: int,
    reference: str = REFERENCE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time every file, interleaved, with every number of threads and every batch size.

    Args:
        paths: ONNX file of each variant.
        threads: numbers of intra-op threads of ONNX Runtime, each pinned to a core; 0 takes all usable cores.
        batch_sizes: numbers of images per call.
        sessions: number of times that each file is opened and timed.
        precision: relative half width of the intervals of all ratios that is sufficient; up to three times as
            many sessions are added to reach it.
        seconds: time after which no further session begins under one condition, once there are three.
        processes: number of fresh processes in which the load time and memory of each file are measured.
        seed: seed of the images and of the order in each round.
        reference: the variant that ``ratio`` compares with; without it, ratios are None.
        progress: called after each session.

    Returns:
        ``machine``, ``load_average`` before and after, ``noise``, ``footprint`` of each variant, and
        ``conditions``: for each number of threads and batch size what ``time_condition`` returns.
        ``settings`` and ``variants`` are those of the first condition.

    Raises:
        ModelFileError: a file is not an ONNX file of this pipeline.
        ValueError: there are no files, or less than 2 sessions.
    """
    if not paths or sessions < 2:
        raise ValueError(
            f"`paths` has {len(paths)} files and `sessions` is {sessions}; at least 1 and 2 are needed"
        )
    before = machine.load_average()
    random = np.random.default_rng(seed)
    cores = affinity.usable_cores()
    combinations = dict.fromkeys(
        (min(count or len(cores), len(cores)), batch) for batch in batch_sizes for count in threads
    )
    providers = ["cpu", *(["cuda"] if "CUDAExecutionProvider" in ort.get_available_providers() else [])]
    conditions = [
        time_condition(
            paths,
            partial(open_onnx, provider, batch),
            provider=provider,
            cores=cores[-count:],
            batch_size=batch,
            sessions=sessions,
            precision=precision,
            seconds=seconds,
            random=random,
            reference=reference,
            progress=progress,
        )
        for provider in providers
        for count, batch in combinations
        if provider == "cpu" or count == 1
    ]
    first = conditions[0]
    worst = Noise(**{name: max(c["noise"][name] for c in conditions) for name in vars(machine.LIMITS)})
    return {
        "settings": {
            **{key: first[key] for key in ("threads", "batch_size", "sessions", "rounds", "warmup")},
            "precision": precision,
            "seed": seed,
            "spinning": True,
            "pinned": True,
            "reference": reference,
        },
        "machine": machine.describe(),
        "load_average": {"before": before, "after": machine.load_average()},
        "noise": {**machine.verdict(worst), "limits": vars(machine.LIMITS)},
        "variants": first["variants"],
        "conditions": conditions,
        "footprint": {name: _footprint(path, processes) for name, path in paths.items()},
    }


def time_condition(
    paths: Mapping[str, Path],
    opener: Opener,
    *,
    provider: str,
    cores: Sequence[int],
    batch_size: int,
    sessions: int,
    precision: float,
    seconds: float,
    random: np.random.Generator,
    reference: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Time sessions under one condition, until the ratios are precise or time is up; see ``measure``.

    Returns:
        The settings, the numbers of ``sessions`` and ``rounds``, whether the ``precision`` was ``reached``,
        the relative ``ratio_half_width`` of the widest interval, the ``noise``, and for each variant
        ``latency_ms_p50``, ``p90``, ``p99`` and ``min`` in milliseconds per call, ``images_per_second``, and
        ``ratio``: the reference's time divided by the variant's (larger is faster), with intervals.
    """
    deadline, noise = time.monotonic() + seconds, machine.watch()
    timed: list[Float64[np.ndarray, "_ files"]] = []
    warmup = []
    variants, widest = {}, math.inf
    with pinned(cores[:1]), _without_garbage_collection():
        while widest > precision and len(timed) < MOST_SESSIONS * sessions:
            order = random.permutation(len(paths))
            files = list(paths.values())
            opened = {int(index): opener(files[index], cores, random) for index in order}
            calls = [opened[index] for index in range(len(files))]
            untimed, length = _warm(calls, random)
            rounds = int(np.clip(SESSION_SECONDS / length, LEAST_ROUNDS, MOST_ROUNDS))
            timed.append(np.array([_round(calls, random) for _ in range(rounds)]))
            warmup.append(untimed)
            if progress is not None:
                progress()
            late = time.monotonic() > deadline and len(timed) >= LEAST_SESSIONS
            if late or len(timed) >= sessions:
                variants = _summaries(timed, list(paths), reference, batch_size)
                widest = max(_half_width(row) for row in variants.values())
            if late:
                break
    others, steal = noise()
    names = list(paths)
    column = names.index(reference) if reference in names else 0
    spread, drift = _spread([session[:, column] for session in timed])
    return {
        "provider": provider,
        "threads": len(cores),
        "batch_size": batch_size,
        "sessions": len(timed),
        "rounds": sum(len(session) for session in timed),
        "warmup": min(warmup),
        "precision": precision,
        "reached": widest <= precision,
        "ratio_half_width": widest,
        "noise": machine.verdict(Noise(others, steal, spread, drift)),
        "variants": variants,
    }


def open_onnx(
    provider: str, batch_size: int, file: Path, cores: Sequence[int], random: np.random.Generator
) -> Call:
    """An ``Opener`` for ONNX Runtime."""
    classifier = open_classifier(file, threads=len(cores), cores=cores, provider=provider)
    size = classifier.contract.size
    images = random.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    if provider == "cpu":
        return partial(classifier.session.run, [OUTPUT], {INPUT: images})
    return _bound(classifier.session, images, provider)


def _bound(
    session: ort.InferenceSession, images: UInt8[np.ndarray, "batch height width 3"], device: str
) -> Callable[[], ort.IOBinding]:
    """A call with images and logits in the device's memory, which returns when the device has finished.

    Otherwise ONNX Runtime would copy both over the bus within each call.
    """
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT, ort.OrtValue.ortvalue_from_numpy(images, device))
    binding.bind_output(OUTPUT, device)

    def call() -> ort.IOBinding:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return call


def _warm(calls: list[Call], random: np.random.Generator) -> tuple[int, float]:
    """Call until a window of rounds is no faster than the one before; return rounds and seconds per round."""
    before, rounds = math.inf, 0
    while True:
        now = float(np.median([sum(_round(calls, random)) for _ in range(WINDOW)]))
        rounds += WINDOW
        if now > (1 - STABLE) * before or rounds >= MOST_WARMUP_ROUNDS:
            return rounds, now
        before = now


def _round(calls: list[Call], random: np.random.Generator) -> list[float]:
    """Call each once, in a random order; return the seconds of each call."""
    seconds = [0.0] * len(calls)
    for index in random.permutation(len(calls)).tolist():
        start = time.perf_counter_ns()
        calls[index]()
        seconds[index] = (time.perf_counter_ns() - start) / 1e9
    return seconds


def _summaries(
    timed: Sequence[Float64[np.ndarray, "_ files"]],
    names: Sequence[str],
    reference: str,
    batch_size: int,
) -> dict[str, dict[str, Any]]:
    base = names.index(reference) if reference in names else None
    return {
        name: _summary(
            [session[:, column] for session in timed],
            None if base is None else [session[:, base] for session in timed],
            batch_size,
        )
        for column, name in enumerate(names)
    }


def _summary(
    sessions: Sequence[Float64[np.ndarray, " _"]],
    base: Sequence[Float64[np.ndarray, " _"]] | None,
    batch_size: int,
) -> dict[str, Any]:
    """Quantiles over all calls, and geometric means of the medians of the sessions, with intervals."""
    calls = np.concatenate(sessions)
    p90, p99 = np.percentile(calls * 1000, [90, 99]).tolist()
    middle, lo, hi = _geometric([float(np.median(session)) for session in sessions])
    result: dict[str, Any] = {
        "latency_ms_p50": 1000 * middle,
        "latency_ms_p50_lo": 1000 * lo,
        "latency_ms_p50_hi": 1000 * hi,
        "latency_ms_p90": p90,
        "latency_ms_p99": p99,
        "latency_ms_min": float(calls.min() * 1000),
        "images_per_second": batch_size / middle,
        "images_per_second_lo": batch_size / hi,
        "images_per_second_hi": batch_size / lo,
        "ratio": None,
        "ratio_lo": None,
        "ratio_hi": None,
        "distinguishable": None,
    }
    if base is not None:
        # Within a round, both files found the machine in the same state.
        pairs = zip(base, sessions, strict=True)
        ratio, lo, hi = _geometric([float(np.median(old / new)) for old, new in pairs])
        result |= {"ratio": ratio, "ratio_lo": lo, "ratio_hi": hi, "distinguishable": not lo <= 1 <= hi}
    return result


def _geometric(values: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of positive repeats, and the ends of its 95 % interval."""
    logarithms = np.log(values)
    lo, hi = mean_interval(logarithms)
    return float(np.exp(logarithms.mean())), float(np.exp(lo)), float(np.exp(hi))


def _half_width(row: Mapping[str, Any]) -> float:
    """Relative half width of the interval of the ratio, or of the latency where there is no ratio."""
    name = "latency_ms_p50" if row["ratio"] is None else "ratio"
    return (row[f"{name}_hi"] - row[f"{name}_lo"]) / (2 * row[name])


def _spread(sessions: Sequence[Float64[np.ndarray, " _"]]) -> tuple[float, float]:
    """The ``spread`` and ``drift`` of the calls of one file, as ``Noise`` defines them."""
    middle, high = np.percentile(np.concatenate(sessions), [50, 90])
    medians = [float(np.median(session)) for session in sessions]
    half = len(medians) // 2
    return float(high / middle - 1), abs(float(np.median(medians[half:]) / np.median(medians[:half])) - 1)


def _footprint(path: Path, processes: int) -> dict[str, Any]:
    """Load time, first call and memory of one file, measured in fresh processes."""
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, footprint.__file__, str(path)], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(processes)
    ]
    load, lo, hi = _geometric([run["load_ms"] for run in runs])
    return {
        "load_ms": load,
        "load_ms_lo": lo,
        "load_ms_hi": hi,
        "first_call_ms": float(np.median([run["first_call_ms"] for run in runs])),
        **{
            key: int(np.median([run[key] for run in runs]))
            for key in ("memory_peak_bytes", "memory_rise_bytes")
        },
        "processes": processes,
    }


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin the calling thread, and threads that it starts, to the cores. ONNX Runtime pins its own threads."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector from interrupting some of the calls."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
