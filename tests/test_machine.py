import multiprocessing
import resource
import time

import psutil
import pytest

from pipeline.measurement import machine
from pipeline.measurement.machine import Noise


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_the_work_of_others_is_counted_and_own_work_is_not() -> None:
    cores = psutil.cpu_count() or 1
    seen, own, children, start = machine.watch(), time.process_time(), _children(), time.monotonic()
    process = multiprocessing.get_context("spawn").Process(target=spin, args=(2.0,))
    process.start()
    spin(1.0)
    process.join()
    others, steal = seen()
    wall = time.monotonic() - start
    # On however busy a machine: all that the child had is counted, and nothing twice.
    assert others * wall >= 0.8 * (_children() - children)
    assert others * wall + time.process_time() - own <= 1.1 * cores * wall
    assert 0 <= steal <= 1


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_quiet_machine_is_not_called_noisy() -> None:
    found = machine.verdict(Noise(others_cores=0.01, steal=0.0, spread=0.05, drift=0.01))
    assert (found["noisy"], found["reasons"]) == (False, [])


@pytest.mark.parametrize(
    ("noise", "reason"),
    [
        (Noise(1.0, 0.0, 0.0, 0.0), "other processes kept 1.00 cores busy"),
        (Noise(0.0, 0.1, 0.0, 0.0), "the host took 10.0% of the time"),
        (Noise(0.0, 0.0, 0.5, 0.0), "the 90th percentile lies 50% above the median"),
        (Noise(0.0, 0.0, 0.0, 0.2), "the median drifted by 20.0%"),
    ],
)
def test_a_noisy_machine_is_called_noisy_with_the_reason(noise: Noise, reason: str) -> None:
    found = machine.verdict(noise)
    assert (found["noisy"], found["reasons"]) == (True, [reason])
