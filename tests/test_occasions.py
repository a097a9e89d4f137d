"""Latencies of several occasions: paired ratios stay, milliseconds are put on one scale."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.measurement import latency, occasions
from tests import tiny_onnx


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Measures files that take 10, 5 and 2.5 ms on a machine with a pace of its own on each occasion."""
    seconds = {"fp32": 0.01, "half": 0.005, "quarter": 0.0025}
    files = {name: tiny_onnx.write(tmp_path / f"{name}.onnx") for name in seconds}
    state = {"now": 0.0, "pace": 1.0}
    random = np.random.default_rng(0)

    def call(name: str, batch_size: int) -> None:
        state["now"] += state["pace"] * batch_size * seconds[name] * float(np.exp(random.normal(0, 0.01)))

    class Clock:
        monotonic = staticmethod(lambda: state["now"])
        perf_counter_ns = staticmethod(lambda: round(1e9 * state["now"]))

    monkeypatch.setattr(latency, "time", Clock)
    monkeypatch.setattr(
        latency, "open_onnx", lambda _provider, batch_size, file, *_: partial(call, file.stem, batch_size)
    )
    monkeypatch.setattr(latency, "_footprint", lambda path, _: {"load_ms": len(path.stem)})

    def measured(*names: str, pace: float = 1.0) -> dict[str, Any]:
        state["pace"] = pace
        return latency.measure(
            {name: files[name] for name in names},
            threads=[1],
            batch_sizes=[1, 4],
            sessions=4,
            precision=0.9,
            seconds=1000.0,
            processes=2,
            seed=0,
        )

    return measured


def test_a_variant_measured_on_a_slower_day_stands_where_it_would_have_stood_before(
    measure: Callable[..., dict[str, Any]],
) -> None:
    before = occasions.first(measure("fp32", "half"))
    later = measure("fp32", "quarter", pace=1.6)
    together = occasions.select(occasions.add(before, later, ["quarter"]), ["fp32", "quarter", "half"])
    assert list(together["variants"]) == ["fp32", "quarter", "half"]
    assert together["footprint"] == {
        "fp32": {"load_ms": 4},
        "quarter": {"load_ms": 7},
        "half": {"load_ms": 4},
    }
    for condition, raw, batch in zip(together["conditions"], later["conditions"], (1, 4), strict=True):
        for name in ("fp32", "half"):  # to the last bit
            first = before["conditions"][0 if batch == 1 else 1]["variants"][name]
            assert condition["variants"][name] == first
        new, own = condition["variants"]["quarter"], raw["variants"]["quarter"]
        for name in ("ratio", "ratio_lo", "ratio_hi", "distinguishable"):
            assert new[name] == own[name]
        assert own["latency_ms_p50"] == pytest.approx(1.6 * 2.5 * batch, rel=0.02)
        assert new["latency_ms_p50"] == pytest.approx(2.5 * batch, rel=0.02)
        assert new["latency_ms_p50"] * new["ratio"] == pytest.approx(
            condition["variants"]["fp32"]["latency_ms_p50"], rel=0.02
        )
        assert new["images_per_second"] == pytest.approx(400, rel=0.02)
        assert new["latency_ms_p50"] == pytest.approx(new["scale"] * own["latency_ms_p50"])
        quantiles = [new[f"latency_ms_{name}"] for name in ("min", "p50", "p90", "p99")]
        assert quantiles == sorted(quantiles)
    assert [row["occasion"] for row in together["variants"].values()] == [1, 2, 1]
    assert [occasion["variants"] for occasion in together["occasions"]] == [["fp32", "half"], ["quarter"]]
    assert json.loads(json.dumps(together)) == together


def test_the_interval_includes_what_is_not_known_of_the_other_occasions_pace(
    measure: Callable[..., dict[str, Any]],
) -> None:
    before = occasions.first(measure("fp32", "half"))
    together = occasions.add(before, measure("fp32", "quarter", pace=0.5), ["quarter"])
    new, base = together["conditions"][0]["variants"]["quarter"], before["variants"]["fp32"]

    def width(row: dict[str, Any], name: str) -> float:
        return float(np.log(row[f"{name}_hi"] / row[f"{name}_lo"]))

    expected = np.hypot(width(base, "latency_ms_p50"), width(new, "ratio"))
    assert width(new, "latency_ms_p50") == pytest.approx(expected)
    assert width(new, "images_per_second") == pytest.approx(expected)


def test_noise_is_that_of_the_occasions_of_which_something_is_left(
    measure: Callable[..., dict[str, Any]],
) -> None:
    before = occasions.first(measure("fp32", "half"))
    later = measure("fp32", "quarter")
    later["noise"] = {**later["noise"], "steal": 0.3}
    both = occasions.add(before, later, ["quarter"])
    assert occasions.select(both, ["fp32", "quarter"])["noise"]["steal"] == 0.3
    assert occasions.select(both, ["fp32", "quarter"])["noise"]["noisy"]
    assert occasions.select(both, ["fp32", "half"])["noise"]["steal"] == before["noise"]["steal"]


def test_a_clock_that_another_reading_gives_otherwise_is_no_other_machine() -> None:
    description = {"cpu": "a", "cores_usable": 2, "frequency_mhz": 2596.096}
    same = occasions.conditions(description)
    assert occasions.conditions(description | {"frequency_mhz": 2601.5}) == same
    assert occasions.conditions(description | {"cores_usable": 1}) != same
