"""An int8 stem reads the bytes of an image less a zero point, whatever affine contract its student has."""

import functools
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import Network, trace, unit
from pipeline.models.storage import Model, load, save
from pipeline.onnx.graph import LOGITS
from pipeline.onnx.sessions import FUSED
from pipeline.parity import ladder, layerwise
from pipeline.parity.verification import verify
from pipeline.quantization import aware_training, stem
from pipeline.quantization.post_training import Workbench
from teachers.contract import InputContract
from tests.tiny_students import calibration, photographs, quantized, ship, student

SIZE = 64
HALF = InputContract(SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IMAGENET = InputContract(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CONTRACTS = pytest.mark.parametrize("contract", [HALF, IMAGENET], ids=["half", "imagenet"])
PADDINGS = pytest.mark.parametrize("padding", ["same", "symmetric"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@functools.cache
def normalised(contract: InputContract, padding: str) -> Model:
    """A float student with a contract."""
    return student(contract, "relu6", padding=padding)


@functools.cache
def int8(contract: InputContract, padding: str, limit: int = 63) -> Model:
    """The same student with all layers in int8."""
    return quantized(normalised(contract, padding), limit)


def unpadded() -> Network:
    units = {
        "stem": unit(nn.Conv2d(3, 8, 3), nn.ReLU()),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(8, 2),
    }
    return trace(nn.Sequential(OrderedDict(units)).eval())


@pytest.mark.parametrize(
    ("mean", "std", "zero_point"),
    [
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0),
        ((0.2, 0.2, 0.2), (1.0, 1.0, 1.0), 51),
        ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), None),  # 127.5
        ((0.2, 0.2, 0.4), (1.0, 1.0, 1.0), None),
        ((-0.2, -0.2, -0.2), (1.0, 1.0, 1.0), None),
        ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), None),
    ],
)
def test_only_bytes_less_a_whole_number_have_a_zero_point(
    mean: tuple[float, float, float], std: tuple[float, float, float], zero_point: int | None
) -> None:
    contract = InputContract(SIZE, mean=mean, std=std)
    assert contract.zero_point == zero_point
    assert (stem.byte_contract(contract) is contract) is (zero_point is not None)
    assert stem.byte_contract(contract).zero_point is not None


def test_every_zero_point_gives_whole_bytes() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 1, 1, 3)
    for zero_point in range(256):
        mean = zero_point / 255
        contract = InputContract(1, mean=(mean, mean, mean))
        assert contract.zero_point == zero_point
        values = (contract.normalise(levels)[:, 0, 0, 0] * 255).round()
        assert torch.equal(values, torch.arange(256.0) - zero_point)


def test_a_student_of_plain_bytes_is_left_as_it_is() -> None:
    model = student(InputContract(SIZE))
    assert stem.read_bytes(model) is model


@CONTRACTS
@PADDINGS
@pytest.mark.parametrize("folded", [False, True])
def test_a_stem_for_bytes_gives_the_same_values_away_from_the_padding(
    contract: InputContract, padding: str, folded: bool
) -> None:
    model = normalised(contract, padding)
    if folded:
        model = Model(fold_batch_norm(model).module, model.card)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    written = stem.read_bytes(model)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    images = photographs(4)
    maps = [
        layerwise.outputs_of_module(
            each.module, trace(each.module), ["stem"], each.card.input.normalise(images)
        )
        for each in (model, written)
    ]
    inside = [each["stem"][:, :, 1:-1, 1:-1] for each in maps]
    torch.testing.assert_close(inside[0], inside[1], rtol=1e-5, atol=1e-5)
    apart = float((maps[0][LOGITS] - maps[1][LOGITS]).abs().max() / maps[0][LOGITS].std())
    assert 0 < apart < (0.02 if contract == HALF else 0.3)


@CONTRACTS
def test_values_of_a_contract_become_those_of_bytes_exactly(contract: InputContract) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(16, 16, 1, 1).expand(16, 16, 16, 3)
    read = stem.ReadNormalised(contract)(contract.normalise(images))
    expected = stem.byte_contract(contract).normalise(images)
    assert torch.equal((read * 255).round(), (expected * 255).round())
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-7)


@CONTRACTS
@pytest.mark.parametrize(  # 64 pixels are read four at once, 50 one by one
    ("padding", "size", "limit"),
    [("same", 64, 63), ("same", 50, 127), ("symmetric", 64, 127), ("symmetric", 50, 63)],
)
def test_the_file_has_the_integers_of_the_simulator(
    contract: InputContract, padding: str, size: int, limit: int, tmp_path: Path
) -> None:
    sized = InputContract(size, mean=contract.mean, std=contract.std)
    model, images = int8(sized, padding, limit), photographs(6, size)
    images[0], images[1] = 0, 255
    path = ship(model, tmp_path)
    figures = verify(path, model, images)
    assert figures["exact"] < 1e-3
    assert figures["exact_steps"] <= 1
    if limit == 63:
        assert (figures["fused"], figures["fused_steps"]) == (0, 0)
    # Bytes go to the first convolution as they are.
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert kinds.isdisjoint({"Cast", "Sub", "Pad"})


@CONTRACTS
@pytest.mark.parametrize(("padding", "limit"), [("same", 63), ("symmetric", 127)])
def test_the_ladder_finds_nothing_but_ties(
    contract: InputContract, padding: str, limit: int, tmp_path: Path
) -> None:
    model, images = int8(contract, padding, limit), photographs(8)
    rungs = ladder.climb(model, ship(model, tmp_path), images.split(4), np.zeros(8, dtype=np.int64))["rungs"]
    assert rungs[-1]["rung"] == "onnx"
    assert rungs[-1]["agreement"] + rungs[-1]["ties"] / 8 == 1


@PADDINGS
def test_an_image_of_the_zero_point_has_no_border(padding: str, tmp_path: Path) -> None:
    """Padding is the zero point, so an image of nothing else looks the same everywhere."""
    model = int8(IMAGENET, padding)
    zero_point = model.card.input.zero_point
    assert zero_point == 114
    images = torch.full((1, SIZE, SIZE, 3), zero_point, dtype=torch.uint8)
    network = fold_batch_norm(model)
    path = ship(model, tmp_path)
    stems = [
        layerwise.integers_of_file(path, network, shown, FUSED)["stem"] for shown in (images, images + 20)
    ]
    assert all(len(channel.unique()) == 1 for channel in stems[0][0])
    assert any(len(channel.unique()) > 1 for channel in stems[1][0])


def test_the_padding_of_half_a_byte_is_stated() -> None:
    network = fold_batch_norm(normalised(HALF, "same"))
    assert stem.border(network, HALF) == pytest.approx(0.5 / 127.5)
    assert stem.reason_for_float(network, HALF) is None
    assert stem.border(network, InputContract(SIZE)) == 0


def test_means_that_are_far_apart_keep_the_stem_in_float_only_if_it_pads() -> None:
    far = InputContract(SIZE, mean=(0.1, 0.5, 0.9), std=(0.2, 0.2, 0.2))
    reason = stem.reason_for_float(fold_batch_norm(normalised(HALF, "same")), far)
    assert reason is not None
    assert "(0.1, 0.5, 0.9)" in reason
    assert "\n" not in reason
    assert stem.reason_for_float(unpadded(), far) is None
    beyond = InputContract(SIZE, mean=(2.0, 2.0, 2.0))  # no byte becomes 0
    assert stem.byte_contract(beyond).zero_point == 255
    assert stem.reason_for_float(fold_batch_norm(normalised(HALF, "same")), beyond) is not None


@pytest.mark.parametrize("learn", [False, True])
def test_training_for_int8_reads_the_same_bytes(learn: bool, tmp_path: Path) -> None:
    parent = stem.read_bytes(normalised(IMAGENET, "same"))
    for part in parent.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1  # that of a student that is trained
    contract = parent.card.input
    bench = Workbench(parent, lambda: calibration(contract), weight_limit=63, float_layers=())
    prepared = aware_training.prepare(*bench.make(("adaptive_rounding",)), learn_steps=learn)
    prepared.module.train()
    images = photographs(4)
    prepared.module(contract.normalise(images)).square().mean().backward()
    prepared.module.eval()
    network, quantization = aware_training.finish(prepared)
    arguments = {**parent.card.arguments, "norm": False}
    assert quantization.activation_scales["images"] == pytest.approx(1 / 255)
    model = Model(network.module, replace(parent.card, arguments=arguments), quantization)
    save(tmp_path / "model", model)
    again = load(tmp_path / "model")
    assert again.card.input.zero_point == 114
    assert verify(ship(again, tmp_path), again, images)["fused_steps"] == 0
