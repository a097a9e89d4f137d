"""The file that ships, as ONNX Runtime runs it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import students
from benchmarks import side_by_side
from pipeline.models.storage import Model, load, save
from pipeline.onnx import export as export_module
from pipeline.onnx.graph import ExportError
from pipeline.onnx.weight import weigh
from pipeline.parity import saturation
from pipeline.parity.verification import VerificationError, verify
from pipeline.pruning import surgery
from pipeline.quantization.grid import PIXEL_SCALE
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract
from tests.tiny_students import (
    FLOAT_LAYERS,
    NARROW,
    SIZE,
    UNEVEN,
    card,
    int8_student,
    photographs,
    quantized,
    ship,
    simulated,
    student,
    uneven_student,
)

IMAGENET = InputContract(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("contract", [InputContract(SIZE), IMAGENET])
def test_a_float_file_gives_the_modules_logits_at_any_batch_size(
    tmp_path: Path, contract: InputContract, activation: str
) -> None:
    model = student(contract, activation)
    figures = verify(ship(model, tmp_path), model, photographs(5))
    assert figures["logits"] < 1e-4
    assert figures["batches"] < 1e-4
    assert figures["argmax"] == 1


@pytest.mark.parametrize("size", [64, 50])
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_tensorflows_padding_is_part_of_the_convolutions(tmp_path: Path, size: int, mean: float) -> None:
    std = 0.5 if mean else 1.0
    contract = InputContract(size, mean=(mean, mean, mean), std=(std, std, std))
    model = student(contract, "relu6", padding="same")
    assert any(isinstance(part, nn.ZeroPad2d) for part in model.module.modules())
    images = photographs(6, size)
    figures = verify(ship(model, tmp_path), model, images)
    assert figures["logits"] < 1e-4
    small = quantized(model)
    path = ship(small, tmp_path)
    assert verify(path, small, images)["exact"] < 1e-3
    assert {node.op_type for node in onnx.load(path).graph.node}.isdisjoint({"Pad"})
    shrunk, arguments = surgery.remove_channels(
        model.module, model.card.arguments, NARROW, size=size, criterion="l1"
    )
    pruned = Model(shrunk, replace(model.card, arguments=arguments))
    assert verify(ship(pruned, tmp_path), pruned, images)["logits"] < 1e-4


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_int8_logits_are_those_of_the_simulator_bit_for_bit(tmp_path: Path, activation: str) -> None:
    model = int8_student(activation=activation)
    path, images = ship(model, tmp_path), photographs(6)
    expected = simulated(model)(model.card.input.normalise(images))
    [logits] = ort.InferenceSession(path).run(None, {"images": images.numpy()})
    np.testing.assert_allclose(np.asarray(logits), expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [63, 127])
@pytest.mark.parametrize("float_layers", [(), FLOAT_LAYERS, (*FLOAT_LAYERS, "classifier")])
def test_every_int8_layer_of_the_file_agrees_with_the_simulator(
    tmp_path: Path, limit: int, float_layers: tuple[str, ...]
) -> None:
    model = int8_student(limit, float_layers)
    figures = verify(ship(model, tmp_path), model, photographs(4))
    assert figures["exact"] < 1e-3
    assert figures["exact_steps"] <= 1
    if limit == 63:
        assert figures["fused"] < 1e-3
        assert figures["fused_steps"] <= 1


def test_a_mean_in_the_middle_between_two_integers_may_be_rounded_either_way(tmp_path: Path) -> None:
    # The mean of 4 x 4 integers is such a value once in 16 cases where the pool reads and writes one scale.
    network, quantization = uneven_student(size=128, classes=4, activation="relu6")
    scales = dict.fromkeys(quantization.activation_scales, 6 / 255) | {"images": PIXEL_SCALE}
    arguments = {"classes": 4, "channels": UNEVEN, "size": 128, "norm": False, "activation": "relu6"}
    model = Model(
        network.module, card(arguments, InputContract(128)), replace(quantization, activation_scales=scales)
    )
    figures = verify(ship(model, tmp_path), model, photographs(64, 128))
    assert figures["exact"] < 1e-3
    assert figures["exact_steps"] == 1


def test_an_int8_file_of_a_normalised_student_runs_with_a_float_stem(tmp_path: Path) -> None:
    model = quantized(student(IMAGENET), 63, FLOAT_LAYERS)
    assert verify(ship(model, tmp_path), model, photographs(4))["fused_steps"] <= 1


def test_an_int8_stem_that_was_not_written_for_bytes_is_refused(tmp_path: Path) -> None:
    model = int8_student()
    unfit = replace(model, card=replace(model.card, input=IMAGENET))
    with pytest.raises(ExportError, match="name the stem in float_layers"):
        ship(unfit, tmp_path)


def test_a_float_layer_among_int8_ones_is_refused(tmp_path: Path) -> None:
    model = int8_student(63, ("blocks.3.depthwise",))
    with pytest.raises(ExportError, match=r"blocks\.3\.depthwise"):
        ship(model, tmp_path)


def test_a_saved_and_loaded_model_gives_the_same_file(tmp_path: Path) -> None:
    model = int8_student()
    save(tmp_path / "model", model)
    again = load(tmp_path / "model")
    assert ship(model, tmp_path).read_bytes() == ship(again, tmp_path / "again").read_bytes()


def test_weights_of_an_int8_file_are_stored_as_integers_only(tmp_path: Path) -> None:
    model = student()
    small, large = ship(int8_student(), tmp_path), ship(model, tmp_path)
    kept = {t.name: t for t in onnx.load(small).graph.initializer}
    weights = [t for name, t in kept.items() if name.endswith(".weight.integers")]
    assert len(weights) == 28
    assert {t.data_type for t in weights} == {onnx.TensorProto.INT8}
    biases = [t for name, t in kept.items() if name.endswith(".bias.integers")]
    assert {t.data_type for t in biases} == {onnx.TensorProto.INT32}
    floats = [t for t in kept.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert max(len(t.dims) for t in floats) == 1
    assert small.stat().st_size < 0.5 * large.stat().st_size


def test_the_full_size_int8_file_is_at_most_29_percent_of_the_float_one(tmp_path: Path) -> None:
    arguments = {"classes": 10, "channels": list(scaled_channels(0.75))}
    description = card(arguments, InputContract(SIZE), labels=tuple("abcdefghij"))
    model = Model(students.build("mobilenet_v1", arguments).eval(), description)
    small, large = ship(quantized(model), tmp_path), ship(model, tmp_path)
    assert 0.25 < small.stat().st_size / large.stat().st_size <= 0.29


def test_weights_of_four_bits_take_half_of_the_file_and_the_same_kernels(tmp_path: Path) -> None:
    model = int8_student(limit=7)
    path = ship(model, tmp_path)
    figures = verify(path, model, photographs(8))
    assert figures["exact"] < 1e-3
    assert figures["fused"] < 1e-3
    file = onnx.load(path)
    weights = [t for t in file.graph.initializer if t.name.endswith(".weight.packed")]
    assert len(weights) == 28
    assert {t.data_type for t in weights} == {onnx.TensorProto.INT4}
    assert [len(t.raw_data) for t in weights] == [(math.prod(t.dims) + 1) // 2 for t in weights]
    (tmp_path / "whole").mkdir()
    whole = ship(int8_student(), tmp_path / "whole")
    assert path.stat().st_size < 0.8 * whole.stat().st_size
    assert weigh(path)["weights_bytes"] == weigh(whole)["weights_bytes"]  # in memory
    assert side_by_side.convolutions(path) == side_by_side.convolutions(whole)


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    model = quantized(student(InputContract(SIZE, interpolation="bicubic", crop=0.875)), 63, FLOAT_LAYERS)
    session = ort.InferenceSession(ship(model, tmp_path))
    [images], [logits] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", SIZE, SIZE, 3])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 4])
    about = session.get_modelmeta()
    assert about.producer_name == "distillery"
    said = about.custom_metadata_map
    assert json.loads(said["labels"]) == ["a", "b", "c", "d"]
    assert json.loads(said["float_layers"]) == list(FLOAT_LAYERS)
    how = json.loads(said["input"])
    assert how["size"] == SIZE
    assert how["interpolation"] == "bicubic"
    assert how["crop"] == 0.875
    assert said["variant"] == "tiny-int8"
    assert said["parent"] == "teacher"
    assert said["calibration_sha256"] == ""
    assert said["data_sha256"] == "00ff"
    assert said["task"] == "image-classification"
    assert said["license"] == "CC0-1.0"
    assert said["git_commit"] == "abc"


def test_no_path_of_the_machine_is_in_the_file(tmp_path: Path) -> None:
    content = ship(student(), tmp_path).read_bytes()
    assert b"site-packages" not in content
    assert str(Path(export_module.__file__).parent).encode() not in content


def test_another_models_file_fails_verification(tmp_path: Path) -> None:
    path = ship(student(), tmp_path)
    with pytest.raises(VerificationError, match="diverges is stem"):
        verify(path, student(seed=1), photographs(3))


def test_a_wrong_scale_in_an_int8_file_fails_verification(tmp_path: Path) -> None:
    model = int8_student()
    assert model.quantization is not None
    scales = model.quantization.activation_scales
    wrong = {**scales, "blocks.7.pointwise": scales["blocks.7.pointwise"] * 1.05}
    other = replace(model.quantization, activation_scales=wrong)
    path = ship(Model(model.module, model.card, other), tmp_path)
    with pytest.raises(VerificationError, match="exact"):
        verify(path, model, photographs(3))


def test_a_convolution_left_in_float_fails_verification(tmp_path: Path) -> None:
    path = ship(student(), tmp_path)
    with pytest.raises(VerificationError, match="0 of 27 convolutions in int8; 27 of 27"):
        verify(path, int8_student(), photographs(3))


@pytest.mark.parametrize(
    ("machine", "flags", "may"),
    [("x86_64", "avx avx2", True), ("x86_64", "avx2 avx_vnni", False), ("aarch64", "", False)],
)
def test_saturation_is_possible_on_x86_without_vnni(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, may: bool
) -> None:
    monkeypatch.setattr(saturation.platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda _self: flags)
    assert saturation.sums_may_saturate() is may


def test_a_file_of_another_commit_is_the_same_file_and_one_of_other_weights_is_not(tmp_path: Path) -> None:
    def exported(seed: int, commit: str) -> bytes:
        model = student(InputContract(SIZE), seed=seed)
        path = tmp_path / "model.onnx"
        export_module.export(model, path, export_module.metadata_for(model.card, None, commit))
        return path.read_bytes()

    first = exported(0, "a")
    assert export_module.differ_in_commit_alone(first, exported(0, "b"))
    assert not export_module.differ_in_commit_alone(first, exported(1, "a"))
    assert not export_module.differ_in_commit_alone(b"", first)
