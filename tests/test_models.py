from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import students
from pipeline import paths
from pipeline.models import storage
from pipeline.models.storage import Model, Quantization
from teachers.contract import InputContract
from tests import tiny_students

ARGUMENTS = {"classes": 3, "channels": tuple(range(8, 22)), "activation": "relu6"}


def small_model() -> Model:
    torch.manual_seed(0)
    contract = InputContract(32, mean=(0.1, 0.2, 0.3), crop=0.875)
    card = tiny_students.card(ARGUMENTS, contract, labels=("a", "b", "c"), settings={"epochs": 1})
    scales = {"classifier": torch.tensor([0.1, 0.2, 0.3])}
    quantization = Quantization(scales, 63, {"pool": 0.02}, ("stem",))
    return Model(students.build("mobilenet_v1", ARGUMENTS).eval(), card, quantization)


def test_a_model_comes_back_whole_without_pickle(tmp_path: Path) -> None:
    model = small_model()
    storage.save(tmp_path, model)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["card.json", "weights.safetensors"]
    again = storage.load(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.module(images), model.module(images))
    assert again.card.input == model.card.input
    assert again.card.labels == model.card.labels
    assert tuple(again.card.arguments["channels"]) == ARGUMENTS["channels"]
    assert again.quantization is not None
    assert model.quantization is not None
    assert again.quantization.activation_scales == model.quantization.activation_scales
    assert torch.equal(
        again.quantization.weight_scales["classifier"], model.quantization.weight_scales["classifier"]
    )
    assert storage.fingerprint(again.module) == storage.fingerprint(model.module)


def test_weights_that_do_not_fit_their_card_are_rejected(tmp_path: Path) -> None:
    storage.save(tmp_path, small_model())
    tensors = load_file(tmp_path / paths.WEIGHTS)
    tensors.pop("classifier.bias")
    save_file(tensors, tmp_path / paths.WEIGHTS)
    with pytest.raises(ValueError, match=r"(?s)weights\.safetensors does not fit .*classifier\.bias"):
        storage.load(tmp_path)
