"""Every rung from the module to the shipped file, and what a broken rung says."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import sound_checks
from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import trace
from pipeline.models.storage import Model
from pipeline.onnx.sessions import FUSED, PLAIN
from pipeline.parity import ladder, layerwise, saturation
from pipeline.parity.ladder import ParityError, climb
from tests.tiny_students import FLOAT_LAYERS, int8_student, photographs, ship, simulated, student

INT8 = ["torch_float", "onnx_float", "fake_quant", "simulator", "sums_16_bit", "onnx_plain", "onnx"]


def climbed(model: Model, path: Path) -> dict:
    torch.manual_seed(1)
    images = photographs(12)
    return climb(model, path, iter(images.split(8)), np.arange(12) % 4)


def test_a_float_file_is_compared_as_written_and_as_optimised(tmp_path: Path) -> None:
    model = student()
    found = climbed(model, ship(model, tmp_path))
    assert found["n"] == 12
    assert [rung["rung"] for rung in found["rungs"]] == ["torch_float", "onnx_plain", "onnx"]
    assert all(rung["agreement"] == rung["shipped"] == 1 for rung in found["rungs"][1:])
    assert 0 < found["rungs"][1]["logits"] < 1e-3
    assert {rung["top1"] for rung in found["rungs"]} == {found["rungs"][-1]["top1"]}


@pytest.mark.parametrize("float_layers", [(), FLOAT_LAYERS, (*FLOAT_LAYERS, "classifier")])
def test_every_rung_of_an_int8_file_gives_the_simulators_answers(
    tmp_path: Path, float_layers: tuple[str, ...]
) -> None:
    model = int8_student(63, float_layers)
    found = climbed(model, ship(model, tmp_path))
    rungs = {rung["rung"]: rung for rung in found["rungs"]}
    assert list(rungs) == INT8
    assert rungs["onnx"]["against"] == rungs["onnx_plain"]["against"] == "simulator"
    assert rungs["onnx"]["agreement"] + rungs["onnx"]["ties"] / 12 == 1
    assert rungs["fake_quant"]["logits"] > 0
    assert rungs["sums_16_bit"]["proven"]
    assert -(2**15) <= found["pair_sums"][0] < found["pair_sums"][1] <= 2**15 - 1


def brightest(model: Model) -> Model:
    """The model with a layer whose products are as large as eight bits allow, so that pairs saturate."""
    module = copy.deepcopy(model.module)
    assert model.quantization is not None
    name = "blocks.3.pointwise"
    part = trace(module).part(name)
    steps = model.quantization.weight_scales[name].view(-1, 1, 1, 1)
    part.weight = nn.Parameter(steps.expand_as(part.weight) * 127)
    return replace(model, module=module)


@pytest.mark.parametrize("in_16_bit", [True, False])
def test_eight_bits_are_compared_with_sums_of_16_bits_where_the_processor_computes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_16_bit: bool
) -> None:
    model = brightest(int8_student(127))
    monkeypatch.setattr(saturation, "sums_may_saturate", lambda: in_16_bit)
    twin = tmp_path / "twin.onnx"
    rungs, more = ladder._int8_rungs(model, ship(model, tmp_path), twin, threads=1)
    named = {rung.name: rung for rung in rungs}
    assert more["pair_sums"][1] > 2**15 - 1
    assert named["onnx"].against == ("sums_16_bit" if in_16_bit else "simulator")
    exact, cut = named["simulator"].answer, named["sums_16_bit"].answer
    assert exact is not None
    assert cut is not None
    images = photographs(4)
    with torch.no_grad():
        assert not torch.equal(exact(images), cut(images))


def test_the_first_layer_of_a_file_that_diverges_is_named(tmp_path: Path) -> None:
    model = int8_student(63, FLOAT_LAYERS)
    assert model.quantization is not None
    scales = model.quantization.activation_scales
    network = trace(model.module)
    for name in ("blocks.7.pointwise", "blocks.11.pointwise"):
        other = replace(model.quantization, activation_scales={**scales, name: scales[name] * 3})
        path = ship(Model(model.module, model.card, other), tmp_path)
        reason = ladder._int8_divergence(model, network, simulated(model), path, PLAIN, photographs(2), 1.0)
        assert reason is not None
        assert f" {name}," in reason


def test_another_models_file_fails_with_one_line(tmp_path: Path) -> None:
    model = int8_student(63)
    path = ship(Model(_other_classes(model), model.card, model.quantization), tmp_path)
    with pytest.raises(ParityError) as caught:
        climbed(model, path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("tiny-int8: onnx_plain ")
    for word in ("12 of 12", "simulator", "classifier"):
        assert word in line


def test_a_float_layer_that_drifts_is_named(tmp_path: Path) -> None:
    model = student()
    path = ship(Model(_other_classes(model), model.card), tmp_path)
    with pytest.raises(ParityError, match=r"onnx_plain .* torch_float; .* is logits"):
        climbed(model, path)


def test_fake_quantisation_that_differs_in_more_than_roundings_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = int8_student(63)
    other = replace(model, module=_other_classes(model))
    fake_quantize = ladder.fake_quantize
    monkeypatch.setattr(
        ladder, "fake_quantize", lambda _network, steps: fake_quantize(fold_batch_norm(other), steps)
    )
    with pytest.raises(ParityError, match=r"simulator .* fake_quant.* classifier"):
        climbed(model, ship(model, tmp_path))


def test_a_weak_student_whose_answers_are_near_ties_may_round_many_of_them_otherwise(tmp_path: Path) -> None:
    """Its classes hardly differ, so roundings decide; a limit on the number of such answers would end it."""
    model = int8_student(63)
    module = copy.deepcopy(model.module)
    head = trace(module).part("classifier")
    assert model.quantization is not None
    torch.manual_seed(0)
    head.weight = nn.Parameter(head.weight.detach()[:1].repeat(4, 1))
    # Half a step of the sums: fake quantisation tells these classes apart, integers cannot.
    step = model.quantization.weight_scales["classifier"][:1].repeat(4)
    read = model.quantization.activation_scales[trace(module).head.reads]
    head.bias = nn.Parameter(torch.tensor([0.0, 0.2, 0.4, 0.1]) * step * read)
    scales = {**model.quantization.weight_scales, "classifier": step}
    weak = Model(module, model.card, replace(model.quantization, weight_scales=scales))
    rungs = {rung["rung"]: rung for rung in climbed(weak, ship(weak, tmp_path))["rungs"]}
    assert rungs["simulator"]["agreement"] == 0
    assert rungs["simulator"]["ties"] == 12
    assert 0 < rungs["simulator"]["margin"] < 1
    assert rungs["onnx"]["agreement"] == 1


def _other_classes(model: Model) -> torch.nn.Module:
    """The module with its classes one place further, as integers too: the steps are equal."""
    module = copy.deepcopy(model.module)
    head = trace(module).part("classifier")
    head.weight = torch.nn.Parameter(head.weight.detach().roll(1, 0))
    assert head.bias is not None
    head.bias = torch.nn.Parameter(head.bias.detach().roll(1, 0))
    return module


def test_a_tie_is_one_also_where_a_single_image_shows_it(tmp_path: Path) -> None:
    """The logits are almost equal, so the one image that is answered differently shows hardly any spread."""
    model = student()
    head = model.module.get_submodule("classifier")
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    head.bias = nn.Parameter(torch.tensor([0.0, 3e-8, 0.0, 0.0]))
    path = ship(model, tmp_path)
    head.bias = nn.Parameter(torch.tensor([3e-8, 0.0, 0.0, 0.0]))
    network = fold_batch_norm(model)
    outputs = partial(layerwise.outputs_of_file, path, level=FUSED)
    assert ladder.untied_divergence(model, network, outputs, photographs(1), 1.0) is None
    head.bias = nn.Parameter(torch.tensor([0.3, 0.0, 0.0, 0.0]))
    other = fold_batch_norm(model)
    reason = ladder.untied_divergence(model, other, outputs, photographs(1), 1.0)
    assert reason is not None
    assert "logits" in reason


@pytest.mark.parametrize("run", [1, 3, 4, 11])
def test_a_sound_student_never_fails(tmp_path: Path, run: int) -> None:
    """A few of the 200 runs of the benchmark; in run 3, great sums of five float layers cancel."""
    outcome = sound_checks.attempt(sound_checks.draw(run, seed=0), tmp_path)
    assert outcome.alarm is None
    assert outcome.figures["argmax"] > 0.9
