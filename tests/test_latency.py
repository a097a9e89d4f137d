import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import latency
from tests import tiny_onnx


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The second and third read 256 times the pixels of the first."""
    sizes = {"fp32": 16, "large": 256, "again": 256}
    return {name: tiny_onnx.write(tmp_path / f"{name}.onnx", size=size) for name, size in sizes.items()}


def measure(files: dict[str, Path], **changes: Any) -> dict[str, Any]:
    settings = {"threads": 1, "batch_size": 1, "rounds": 30, "warmup": 3, "seed": 0}
    return latency.measure(files, **{**settings, **changes})


def test_a_file_with_more_work_is_slower_and_its_ratio_says_so(files: dict[str, Path]) -> None:
    variants = measure(files)["variants"]
    assert list(variants) == list(files)
    assert variants["fp32"]["ratio"] == variants["fp32"]["ratio_lo"] == variants["fp32"]["ratio_hi"] == 1
    assert variants["large"]["latency_ms_p50"] > variants["fp32"]["latency_ms_p50"]
    assert variants["large"]["ratio_hi"] < 1


def test_the_same_work_twice_has_a_ratio_near_one(files: dict[str, Path]) -> None:
    variants = measure({"fp32": files["large"], "twin": files["again"]}, rounds=60)["variants"]
    assert variants["twin"]["ratio"] == pytest.approx(1, abs=0.25)


def test_percentiles_are_in_order(files: dict[str, Path]) -> None:
    for row in measure(files)["variants"].values():
        percentiles = [row[f"latency_ms_{name}"] for name in ("min", "p50", "p90", "p99")]
        assert percentiles == sorted(percentiles)
        assert percentiles[0] > 0
        assert row["ratio_lo"] <= row["ratio"] <= row["ratio_hi"]


def test_ratios_are_paired_within_rounds() -> None:
    # The machine slows down fourfold; within each round the second file takes twice the first's time.
    base = np.linspace(1, 4, 50)
    row = latency._summary(2 * base, base)
    assert (row["ratio"], row["ratio_lo"], row["ratio_hi"]) == (0.5, 0.5, 0.5)


def test_without_the_reference_there_is_no_ratio(files: dict[str, Path]) -> None:
    assert measure(files, reference="absent")["variants"]["fp32"]["ratio"] is None


def test_every_round_calls_each_file_once_in_changing_order() -> None:
    called: list[int] = []
    calls: list[Callable[[], object]] = [partial(called.append, number) for number in range(4)]
    random = np.random.default_rng(0)
    for _ in range(20):
        latency._round(calls, random, None)
    rounds = [tuple(called[start : start + 4]) for start in range(0, 80, 4)]
    assert {tuple(sorted(order)) for order in rounds} == {(0, 1, 2, 3)}
    assert len(set(rounds)) > 5


def test_progress_is_told_of_warm_up_and_rounds(files: dict[str, Path]) -> None:
    ticks: list[int] = []
    measure(files, progress=lambda: ticks.append(1))
    assert len(ticks) == 33


def test_the_result_is_json_and_says_how_and_where_it_was_measured(files: dict[str, Path]) -> None:
    result = json.loads(json.dumps(measure(files, batch_size=2)))
    assert result["settings"]["batch_size"] == 2
    assert result["machine"]["cpu"]
    assert result["machine"]["cores"] >= result["machine"]["cores_usable"] >= 1
    assert set(result["machine"]["versions"]) == {"onnxruntime", "numpy", "python"}
    assert set(result["load_average"]) == {"before", "after"}


def test_nothing_to_measure_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="0 files and 30 rounds"):
        measure({})
    with pytest.raises(ValueError, match="3 files and 0 rounds"):
        measure(files, rounds=0)
