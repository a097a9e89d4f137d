"""What was measured on this machine: shared by all clones, written by one process at a time."""

import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from pipeline import cache
from pipeline.cache import CacheError
from pipeline.measurement import kernels, layer_costs
from pipeline.models.layers import trace
from pipeline.pruning import plans
from teachers.contract import InputContract
from tests.tiny_students import random_network

ANSWER: TypeAdapter[dict[str, int]] = TypeAdapter(dict[str, int])
LEARNERS = multiprocessing.get_context("fork")
FIRST = kernels.Convolution(1, 1, 1, 8, 8, 16, "float", "float")
SECOND = kernels.Convolution(1, 1, 1, 8, 16, 16, "float", "float")
THIRD = kernels.Convolution(1, 1, 1, 8, 32, 16, "float", "float")


def choose_slowly(file: Path, answer: int) -> None:
    def choose() -> dict[str, int]:
        time.sleep(0.2)
        return {"answer": answer}

    print(cache.recall(file, ANSWER, choose))


def add_slowly(file: Path, name: str) -> None:
    for number in range(10):
        with cache.alone(file):
            content = cache.read(file, cache.MEASUREMENTS) or {}
            time.sleep(0.005)
            cache.write(file, cache.MEASUREMENTS, content | {f"{name} {number}": 1.0})


def test_a_choice_is_made_once_and_then_recalled(tmp_path: Path) -> None:
    file = tmp_path / "choices" / "pruning-1.json"
    assert cache.recall(file, ANSWER, lambda: {"answer": 1}) == {"answer": 1}
    assert cache.recall(file, ANSWER, lambda: {"answer": 2}) == {"answer": 1}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"answer": "four"}', b"\xff\xfe", b"null"])
def test_a_damaged_choice_is_left_aside_with_a_line_and_made_anew(
    tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pruning-1.json"
    file.write_bytes(damage)
    assert cache.recall(file, ANSWER, lambda: {"answer": 2}) == {"answer": 2}
    [line] = capsys.readouterr().err.splitlines()
    assert str(file) in line
    assert (tmp_path / "pruning-1.json.damaged").read_bytes() == damage


def test_two_processes_at_once_make_one_choice_and_lose_no_measurement(tmp_path: Path) -> None:
    choice, table = tmp_path / "choice.json", tmp_path / "table.json"
    processes = [
        *(LEARNERS.Process(target=choose_slowly, args=(choice, number)) for number in (1, 2)),
        *(LEARNERS.Process(target=add_slowly, args=(table, name)) for name in ("a", "b")),
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert json.loads(choice.read_text())["answer"] in (1, 2)
    assert len(json.loads(table.read_text())) == 20


@pytest.mark.parametrize("occupied", ["", "folder"])
def test_a_folder_that_cannot_be_used_is_one_line_with_the_variable(tmp_path: Path, occupied: str) -> None:
    (tmp_path / "folder").write_text("a file")
    file = tmp_path / "folder" / "a.json"
    if not occupied:
        (tmp_path / "a.json").mkdir()
        file = tmp_path / "a.json"
    with pytest.raises(CacheError, match="DISTILLERY_CACHE") as caught:
        cache.recall(file, ANSWER, lambda: {"answer": 1})
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        '{"machine": []}',
        '{"machine": {"layer": "fast"}}',
        '{"machine": {"layer": 0}}',
        '{"machine": {"a": NaN}}',
    ],
)
def test_a_damaged_table_of_kernels_is_left_aside(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(damage)
    layer_costs.open_costs(file)
    assert "kernels.json" in capsys.readouterr().err
    assert (tmp_path / "kernels.json.damaged").read_text() == damage


def test_two_clones_decide_by_the_numbers_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kernels.json"
    one, other = layer_costs.open_costs(file), layer_costs.open_costs(file)
    monkeypatch.setattr(kernels, "measure", lambda parts: [10.0] * len(parts))
    one.learn([FIRST])
    monkeypatch.setattr(kernels, "measure", lambda parts: [20.0] * len(parts))
    assert other.total([FIRST]) == pytest.approx(0.01)
    other.learn([SECOND])
    assert one.total([FIRST, SECOND]) == other.total([FIRST, SECOND])


def test_times_of_a_slower_moment_are_scaled_to_those_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = {FIRST: 10.0, SECOND: 20.0, THIRD: 40.0}
    slow = 1.0
    monkeypatch.setattr(kernels, "measure", lambda parts: [slow * true[part] for part in parts])
    costs = layer_costs.open_costs(tmp_path / "kernels.json")
    costs.learn([FIRST, SECOND])
    slow = 3.0
    assert costs.total([FIRST, SECOND, THIRD]) == pytest.approx(0.07)


def test_noise_does_not_change_which_layers_stay_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float layer is faster by 5 %, which is within the margin: none stays float, whatever the noise."""
    network, contract = trace(random_network()), InputContract(32)
    random = np.random.default_rng(0)

    def measure(parts: Sequence[kernels.Convolution | kernels.Head]) -> list[float]:
        times = [30.0 if "int8 3x3/2 convolution, 3 to" in str(part) else 10.0 for part in parts]
        return list(np.array(times) * random.normal(1, 0.02, len(times)))

    monkeypatch.setattr(kernels, "measure", measure)
    monkeypatch.setattr(layer_costs.Costs, "slowdown", lambda *_: random.normal(1.05, 0.01))
    choices = [
        layer_costs.fastest_float_layers(
            layer_costs.open_costs(tmp_path / f"{number}.json"), network, contract
        )
        for number in range(8)
    ]
    assert {choice.layers for choice in choices} == {()}
    assert len({choice.milliseconds for choice in choices}) == 8
    assert min(max(c.milliseconds) / min(c.milliseconds) for c in choices) > 1.02


def test_a_choice_of_float_layers_and_of_a_plan_survive_their_record(tmp_path: Path) -> None:
    layers = layer_costs.FloatLayers(("stem",), (1.5, 1.25), {0: 1.2}, 0, "because")
    plan = plans.PruningPlan("l1", "uniform", (8, 16), 0.5, 1.0, 384, 1, 1.25)
    choice = plans.PlanChoice((plan,), {"uniform": 2.01}, "because")
    cache.write(tmp_path / "a", layer_costs.FLOAT_LAYERS, layers)
    assert cache.read(tmp_path / "a", layer_costs.FLOAT_LAYERS) == layers
    cache.write(tmp_path / "b", plans.PLAN_CHOICE, choice)
    assert cache.read(tmp_path / "b", plans.PLAN_CHOICE) == choice
    assert "1 layer stays in float: because" in layer_costs.table(layers)
