"""Every rung from the module to the shipped file, and what a broken rung says."""

import contextlib
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models.storage import Affine, Model, Quantization
from pipeline.parity import ladder
from pipeline.parity.ladder import ParityError, climb
from pipeline.quantization.simulator import fold_batch_norm, layers
from teachers.contract import InputContract
from tests.test_onnx_export import FLOAT_LAYERS, SIZE, int8_student, photographs, shipped, student

INT8 = ["torch_float", "onnx_float", "fake_quant", "simulator", "sums_16_bit", "onnx_plain", "onnx"]


def climbed(model: Model, path: Path) -> dict:
    torch.manual_seed(1)
    images = photographs(12)
    return climb(model, path, iter(images.split(8)), np.arange(12) % 4)


def test_a_float_file_is_compared_as_written_and_as_optimised(tmp_path: Path) -> None:
    model = student(InputContract(SIZE))
    found = climbed(model, shipped(model, tmp_path))
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
    found = climbed(model, shipped(model, tmp_path))
    rungs = {rung["rung"]: rung for rung in found["rungs"]}
    assert list(rungs) == INT8
    assert rungs["onnx"]["against"] == rungs["onnx_plain"]["against"] == "simulator"
    assert rungs["onnx"]["agreement"] + rungs["onnx"]["ties"] / 12 == 1
    assert rungs["fake_quant"]["logits"] > 0
    assert rungs["sums_16_bit"]["proven"]
    assert -(2**15) <= found["pair_sums"][0] < found["pair_sums"][1] <= 2**15 - 1


def test_eight_bits_are_computed_in_sixteen_since_they_may_saturate(tmp_path: Path) -> None:
    model = int8_student(127)
    found = climbed(model, shipped(model, tmp_path))
    rungs = {rung["rung"]: rung for rung in found["rungs"]}
    assert found["pair_sums"][1] > 2**15 - 1
    assert "proven" not in rungs["sums_16_bit"]


def test_the_first_layer_of_a_file_that_diverges_is_named(tmp_path: Path) -> None:
    model = int8_student(63, FLOAT_LAYERS)
    assert model.quantization is not None
    right = model.quantization.activations
    for name in ("blocks.7.pointwise", "blocks.11.pointwise"):
        wrong = {**right, name: Affine(right[name].scale * 3, 0)}
        other = replace(model.quantization, activations=wrong)
        path = shipped(Model(model.module, model.card, other), tmp_path)
        reason = ladder._int8_divergence(
            model,
            model.module,
            ladder.simulate(model.module, model.quantization),
            path,
            ladder.PLAIN,
            photographs(2),
            spread=1.0,
        )
        assert reason is not None
        assert reason.startswith(f"the first layer that diverges is {name}, in ")


def test_another_models_file_fails_with_one_line(tmp_path: Path) -> None:
    model = int8_student(63)
    path = shipped(Model(_other_classes(model), model.card, model.quantization), tmp_path)
    with pytest.raises(ParityError) as told:
        climbed(model, path)
    assert "\n" not in str(told.value)
    assert (
        "tiny-int8: onnx_plain answers 12 of 12 images unlike simulator; the first layer that diverges is"
        in str(told.value)
    )
    assert "classifier" in str(told.value)


def test_a_float_layer_that_drifts_is_named(tmp_path: Path) -> None:
    model = student(InputContract(SIZE))
    path = shipped(Model(_other_classes(model), model.card), tmp_path)
    with pytest.raises(ParityError, match=r"onnx_plain answers .* unlike torch_float; .* is logits"):
        climbed(model, path)


@pytest.mark.parametrize(("unlike", "fails"), [(0, False), (3, False), (6, True)])
def test_fake_quantisation_may_differ_by_chance_from_99_of_100_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlike: int, fails: bool
) -> None:
    model, seen = int8_student(63), 0

    def turned(folded: torch.nn.Module, quantization: Quantization) -> torch.nn.Module:
        """Simulated, and the first images answered otherwise."""

        def turn(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            first = torch.arange(seen, seen + len(logits)) < unlike
            seen += len(logits)
            return torch.where(first[:, None], -logits, logits)

        module = ladder.simulate(folded, quantization)
        module.register_forward_hook(turn)
        return module

    monkeypatch.setattr(ladder, "fake_quantize", turned)
    torch.manual_seed(1)
    shown = iter(photographs(256).split(64))
    with pytest.raises(ParityError, match="unlike fake_quant") if fails else contextlib.nullcontext():
        climb(model, shipped(model, tmp_path), shown, np.arange(256) % 4)


def _other_classes(model: Model) -> torch.nn.Module:
    """The module with its classes one place further, as integers too: the steps are equal."""
    module = copy.deepcopy(model.module)
    head = layers(module)["classifier"]
    head.weight = torch.nn.Parameter(head.weight.detach().roll(1, 0))
    assert head.bias is not None
    head.bias = torch.nn.Parameter(head.bias.detach().roll(1, 0))
    return module


def test_a_tie_is_one_also_where_a_single_image_shows_it(tmp_path: Path) -> None:
    """Logits that are all but equal: all that the one image, answered unlike, shows of their spread."""
    shared = student(InputContract(SIZE))
    model = replace(shared, module=copy.deepcopy(shared.module))
    head = model.module.get_submodule("classifier")
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    head.bias = nn.Parameter(torch.tensor([0.0, 3e-8, 0.0, 0.0]))
    path = shipped(model, tmp_path)
    head.bias = nn.Parameter(torch.tensor([3e-8, 0.0, 0.0, 0.0]))
    folded, _ = fold_batch_norm(model.module, model.card.architecture, model.card.arguments)
    told = [
        ladder._float_divergence(model, folded, path, ladder.FUSED, photographs(1), spread)
        for spread in (1.0, 1e-5)
    ]
    assert told[0] is None
    assert told[1] is not None
