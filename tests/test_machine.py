import multiprocessing
import time

import pytest

from pipeline import machine
from pipeline.machine import Noise


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_a_busy_process_beside_is_seen_and_own_work_is_not() -> None:
    own = machine.watch()
    spin(0.6)
    alone, _ = own()
    other = machine.watch()
    process = multiprocessing.get_context("spawn").Process(target=spin, args=(2.5,))
    process.start()
    process.join()
    beside, steal = other()
    assert beside > alone + 0.3
    assert 0 <= steal <= 1


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
