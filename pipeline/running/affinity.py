"""The cores that this process may use: all of the machine, or those that an affinity leaves it."""

import os

import psutil


def usable_cores() -> list[int]:
    """Indices of the logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Number of physical cores that this process may use, each of which runs one thread of a computation."""
    return min(psutil.cpu_count(logical=False) or 1, len(usable_cores()))


def threads(wanted: int) -> int:
    """Number of threads of a computation: the number that is wanted; for 0, one per physical core."""
    return wanted or physical_cores()


def limit_workers(count: int) -> int:
    """Number of worker processes out of ``count`` that have a logical core each."""
    return min(count, len(usable_cores()))
