import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.measurement import latency
from pipeline.onnx.inference import INPUT, OUTPUT, open_classifier
from tests import tiny_onnx


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The second and third read 256 times the pixels of the first."""
    sizes = {"fp32": 16, "large": 256, "again": 256}
    return {name: tiny_onnx.write(tmp_path / f"{name}.onnx", size=size) for name, size in sizes.items()}


def measure(files: dict[str, Path], **changes: Any) -> dict[str, Any]:
    settings = {
        **{"threads": [1], "batch_sizes": [1], "sessions": 4, "precision": 0.9, "seconds": 1000.0},
        **{"processes": 2, "seed": 0},
    }
    return latency.measure(files, **{**settings, **changes})


class Clock:
    """Time that passes only while a file is called, by the seconds of that file and some seeded noise."""

    def __init__(self, seconds: dict[str, float], noise: float = 0.01) -> None:
        self.seconds, self.noise, self.now = seconds, noise, 0.0
        self.random = np.random.default_rng(0)

    def monotonic(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return round(1e9 * self.now)

    def call(self, name: str, batch_size: int) -> None:
        self.now += batch_size * self.seconds[name] * float(np.exp(self.random.normal(0, self.noise)))

    def open(self, provider: str, batch_size: int, file: Path, *_: Any) -> Callable[[], object]:
        assert provider == "cpu"
        return partial(self.call, file.stem, batch_size)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of its own for ``latency``, on which the large files take twice as long as fp32."""
    clock = Clock({"fp32": 0.01, "large": 0.02, "again": 0.02})
    monkeypatch.setattr(latency, "time", clock)
    monkeypatch.setattr(latency, "open_onnx", clock.open)
    monkeypatch.setattr(latency, "_footprint", lambda *_: {})
    return clock


@pytest.mark.usefixtures("clock")
def test_a_file_that_takes_twice_as_long_has_half_the_speed_of_the_reference(files: dict[str, Path]) -> None:
    variants = measure(files)["variants"]
    assert list(variants) == list(files)
    assert variants["fp32"]["ratio"] == variants["fp32"]["ratio_lo"] == variants["fp32"]["ratio_hi"] == 1
    assert not variants["fp32"]["distinguishable"]
    assert variants["fp32"]["latency_ms_p50"] == pytest.approx(10, rel=0.02)
    assert variants["fp32"]["images_per_second"] == pytest.approx(100, rel=0.02)
    assert variants["large"]["ratio"] == pytest.approx(0.5, rel=0.02)
    assert variants["large"]["ratio_hi"] < 1
    assert variants["large"]["distinguishable"]


@pytest.mark.usefixtures("clock")
def test_figures_are_in_order(files: dict[str, Path]) -> None:
    for row in measure(files)["variants"].values():
        quantiles = [row[f"latency_ms_{name}"] for name in ("min", "p50", "p90", "p99")]
        assert quantiles == sorted(quantiles)
        assert quantiles[0] > 0
        for name in ("ratio", "latency_ms_p50", "images_per_second"):
            assert row[f"{name}_lo"] <= row[name] <= row[f"{name}_hi"]


def sessions(seed: int, sessions: int = 8, own: float = 0.03) -> list[np.ndarray]:
    """Seconds of calls: every session has its own pace, every call a little noise."""
    random = np.random.default_rng(seed)
    paces = np.exp(random.normal(0, own, sessions))
    return [pace * np.exp(random.normal(0, 0.01, 50)) for pace in paces]


def test_the_same_file_twice_is_distinguishable_in_5_of_100_simulated_measurements() -> None:
    """1,000 repeats in which two equal files differ only by chance from session to session."""
    alarms = sum(
        latency._summary(sessions(2 * seed), sessions(2 * seed + 1), 1)["distinguishable"]
        for seed in range(1000)
    )
    assert 30 <= alarms <= 70


def test_calls_of_one_session_are_not_independent_repeats() -> None:
    # Ten times the calls in the same sessions tell no more about the next session.
    few = latency._summary(sessions(0), sessions(1), 1)
    many = latency._summary(
        [np.tile(session, 10) for session in sessions(0)], [np.tile(s, 10) for s in sessions(1)], 1
    )
    assert few["ratio_hi"] - few["ratio_lo"] == pytest.approx(many["ratio_hi"] - many["ratio_lo"])


def test_unsteady_sessions_widen_the_interval() -> None:
    quiet, noisy = (latency._summary(sessions(0, own=o), sessions(1, own=o), 1) for o in (0.01, 0.1))
    assert latency._half_width(noisy) > 3 * latency._half_width(quiet)


def test_ratios_are_paired_within_rounds() -> None:
    # The machine slows down fourfold; within each round the second file takes twice the first's time.
    base = [np.linspace(1, 4, 50), np.linspace(2, 3, 50)]
    row = latency._summary([2 * session for session in base], base, 1)
    assert (row["ratio"], row["ratio_lo"], row["ratio_hi"]) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.usefixtures("clock")
def test_without_the_reference_there_is_no_ratio(files: dict[str, Path]) -> None:
    row = measure(files, reference="absent")["variants"]["fp32"]
    assert row["ratio"] is row["distinguishable"] is None


@pytest.mark.usefixtures("clock")
def test_sessions_go_on_until_the_ratios_are_precise_or_time_is_up(files: dict[str, Path]) -> None:
    easy = measure(files)["conditions"][0]
    assert (easy["sessions"], easy["reached"]) == (4, True)
    hard = measure(files, precision=1e-9, seconds=1e6)["conditions"][0]
    assert (hard["sessions"], hard["reached"]) == (12, False)
    late = measure(files, precision=1e-9, seconds=0.0)["conditions"][0]
    assert late["sessions"] == latency.LEAST_SESSIONS


@pytest.mark.usefixtures("clock")
def test_every_thread_count_is_measured_with_every_batch_size(files: dict[str, Path]) -> None:
    cores = len(os.sched_getaffinity(0))
    result = measure(files, threads=[1, 0], batch_sizes=[1, 2])
    conditions = [(c["threads"], c["batch_size"]) for c in result["conditions"]]
    assert conditions == list(dict.fromkeys([(1, 1), (cores, 1), (1, 2), (cores, 2)]))
    assert result["variants"] == result["conditions"][0]["variants"]
    assert result["settings"]["threads"] == result["settings"]["batch_size"] == 1


def test_threads_are_pinned_while_measuring_and_free_afterwards() -> None:
    before = os.sched_getaffinity(0)
    with latency.pinned([max(before)]):
        assert os.sched_getaffinity(0) == {max(before)}
    assert os.sched_getaffinity(0) == before


def test_every_round_calls_each_file_once_in_changing_order() -> None:
    called: list[int] = []
    calls: list[Callable[[], object]] = [partial(called.append, number) for number in range(4)]
    random = np.random.default_rng(0)
    for _ in range(20):
        latency._round(calls, random)
    rounds = [tuple(called[start : start + 4]) for start in range(0, 80, 4)]
    assert {tuple(sorted(order)) for order in rounds} == {(0, 1, 2, 3)}
    assert len(set(rounds)) > 5


def test_a_call_bound_to_a_device_answers_as_a_plain_one(files: dict[str, Path]) -> None:
    session = open_classifier(files["fp32"], threads=1).session
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    plain = np.asarray(session.run([OUTPUT], {INPUT: images})[0])
    call = latency._bound(session, images, "cpu")
    for _ in range(2):
        [bound] = call().copy_outputs_to_cpu()
        assert np.array_equal(bound, plain)


@pytest.mark.usefixtures("clock")
def test_progress_is_reported_after_every_session(files: dict[str, Path]) -> None:
    ticks: list[int] = []
    measure(files, progress=lambda: ticks.append(1))
    assert len(ticks) == 4


def test_load_time_and_memory_are_those_of_fresh_processes(tmp_path: Path) -> None:
    weights = np.zeros((3, 4_000_000), dtype=np.float32)
    labels = ["a", "b"]
    small = tiny_onnx.write(tmp_path / "small.onnx")
    large = tiny_onnx.write(tmp_path / "large.onnx", labels=labels, weights=weights)
    result = {file.stem: latency._footprint(file, 2) for file in (small, large)}
    for row in result.values():
        assert 0 < row["load_ms_lo"] < row["load_ms"] < row["load_ms_hi"]
        assert row["memory_peak_bytes"] > row["memory_rise_bytes"] > 0
    assert result["large"]["memory_rise_bytes"] - result["small"]["memory_rise_bytes"] > weights.nbytes


def test_the_result_is_json_and_says_how_and_where_it_was_measured(files: dict[str, Path]) -> None:
    result = json.loads(json.dumps(measure(files, batch_sizes=[2])))
    assert result["settings"]["batch_size"] == 2
    assert result["machine"]["cpu"]
    assert result["machine"]["cores"] >= result["machine"]["cores_usable"] >= 1
    assert set(result["machine"]["versions"]) == {"onnxruntime", "numpy", "python"}
    assert set(result["load_average"]) == {"before", "after"}
    assert set(result["footprint"]) == set(files)
    assert result["noise"]["noisy"] == bool(result["noise"]["reasons"])


def test_nothing_to_measure_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"0 files.*4"):
        measure({})
    with pytest.raises(ValueError, match=r"3 files.*1"):
        measure(files, sessions=1)
