from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest

from pipeline.measurement import machine
from pipeline.measurement.machine import Noise


class Times(NamedTuple):
    """CPU times of a machine in seconds, as psutil returns them on Linux."""

    user: float = 0.0
    system: float = 0.0
    idle: float = 0.0
    iowait: float = 0.0
    steal: float = 0.0
    guest: float = 0.0


def measure_noise(monkeypatch: pytest.MonkeyPatch, own_seconds: float, passed: Times) -> tuple[float, float]:
    """The noise on a machine with two cores on which these times pass while it is watched."""
    own = iter([Times(), Times(user=own_seconds)])
    everyone = iter([Times(), passed])
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: next(own)))
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(everyone))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    return machine.watch()()


def test_the_work_of_others_is_counted_and_own_work_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten seconds on two cores: 8 of own work, 4 of others, 8 idle.
    passed = Times(user=11, system=1, idle=7, iowait=1)
    assert measure_noise(monkeypatch, 8, passed) == (pytest.approx(0.4), 0)
    assert measure_noise(monkeypatch, 12, passed) == (0, 0)


def test_steal_is_a_share_of_the_time_and_no_work_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_noise(monkeypatch, 10, Times(user=10, idle=8, steal=2)) == (0, pytest.approx(0.1))


def test_the_time_of_guests_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linux includes the time of guests in user time.
    assert measure_noise(monkeypatch, 0, Times(user=5, idle=15, guest=5)) == (pytest.approx(0.5), 0)


def test_no_time_is_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_noise(monkeypatch, 0, Times()) == (0, 0)


def test_a_quiet_machine_is_not_called_noisy() -> None:
    result = machine.verdict(Noise(others_cores=0.01, steal=0.0, spread=0.05, drift=0.01))
    assert (result["noisy"], result["reasons"]) == (False, [])


@pytest.mark.parametrize(
    ("noise", "figure"),
    [
        (Noise(1.0, 0.0, 0.0, 0.0), "1.00 cores"),
        (Noise(0.0, 0.1, 0.0, 0.0), "10.0%"),
        (Noise(0.0, 0.0, 0.5, 0.0), "50%"),
        (Noise(0.0, 0.0, 0.0, 0.2), "20.0%"),
    ],
)
def test_a_noisy_machine_is_called_noisy_and_the_reason_has_the_figure(noise: Noise, figure: str) -> None:
    result = machine.verdict(noise)
    assert result["noisy"]
    [reason] = result["reasons"]
    assert figure in reason
