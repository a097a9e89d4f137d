"""Networks in half precision: their files, what is verified of them, and what float16 cannot hold."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from pipeline.models.storage import Model, load, save
from pipeline.onnx import inference, weight
from pipeline.onnx.sessions import open_session
from pipeline.parity import ladder
from pipeline.parity.ladder import ParityError
from pipeline.parity.verification import VerificationError, verify
from pipeline.quantization import half_precision
from pipeline.quantization.half_precision import HalfPrecisionError
from pipeline.shipping import folder
from teachers.contract import InputContract
from tests.tiny_students import SIZE, folded, in_half, photographs, ship, student

IMAGENET = InputContract(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model() -> Model:
    return in_half(student(IMAGENET, "relu6"))


def test_every_layer_of_the_file_computes_in_float16_between_bytes_and_float32(
    tmp_path: Path, model: Model
) -> None:
    path = ship(model, tmp_path)
    classifier = inference.open_classifier(path, threads=1)
    ports = classifier.session.get_inputs()[0], classifier.session.get_outputs()[0]
    assert [(port.name, port.type) for port in ports] == [
        ("images", "tensor(uint8)"),
        ("logits", "tensor(float)"),
    ]
    file = onnx.shape_inference.infer_shapes(onnx.load(path))
    kinds = {value.name: value.type.tensor_type.elem_type for value in file.graph.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in file.graph.initializer}
    layers = [node for node in file.graph.node if node.op_type in ("Conv", "Clip", "Gemm")]
    assert len(layers) == 27 + 27 + 1
    assert {kinds[name] for node in layers for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}


def test_the_file_has_half_the_size(tmp_path: Path, model: Model) -> None:
    sizes = [ship(each, tmp_path).stat().st_size for each in (model, student(IMAGENET, "relu6"))]
    assert sizes[0] < 0.52 * sizes[1]


def test_a_saved_and_loaded_model_gives_the_same_file(tmp_path: Path, model: Model) -> None:
    before = ship(model, tmp_path).read_bytes()
    save(tmp_path, model)
    assert (tmp_path / "weights.safetensors").stat().st_size < len(before)
    loaded = load(tmp_path)
    assert loaded.half
    assert ship(loaded, tmp_path).read_bytes() == before


@pytest.mark.parametrize(("contract", "activation"), [(InputContract(SIZE), "relu"), (IMAGENET, "relu6")])
def test_the_file_is_what_the_rounded_network_computes(
    tmp_path: Path, contract: InputContract, activation: str
) -> None:
    model = in_half(student(contract, activation))
    path, images = ship(model, tmp_path), photographs(8)
    assert verify(path, model, images)["argmax"] == 1
    rungs = ladder.climb(model, path, iter(images.split(4)), np.arange(8) % 4)["rungs"]
    assert [rung["rung"] for rung in rungs] == ["torch_float", "torch_half", "onnx_plain", "onnx"]
    rounding = rungs[1]["logits"]
    assert 0 < rounding < 0.1
    assert all(rung["logits"] < 8 * rounding for rung in rungs[2:])


def changed(path: Path, name: str, factor: float) -> Path:
    file = onnx.load(path)
    [tensor] = [tensor for tensor in file.graph.initializer if tensor.name == name]
    values = (numpy_helper.to_array(tensor).astype(np.float32) * factor).astype(np.float16)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(file, path)
    return path


@pytest.mark.parametrize("factor", [-1, 1.02])
def test_a_layer_that_differs_by_more_than_float16_rounds_is_named(
    tmp_path: Path, model: Model, factor: float
) -> None:
    path = changed(ship(model, tmp_path), "blocks.5.depthwise.weight", factor)
    with pytest.raises(VerificationError, match=r"blocks\.5\.depthwise"):
        verify(path, model, photographs(8))


def test_different_answers_of_a_faulty_file_are_no_ties(tmp_path: Path, model: Model) -> None:
    path = changed(ship(model, tmp_path), "blocks.5.depthwise.weight", -1)
    with pytest.raises(ParityError, match=r"blocks\.5\.depthwise"):
        ladder.climb(model, path, [photographs(16)], np.arange(16) % 4)


@pytest.mark.parametrize("value", [65536.0, -1e9, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["blocks.3.pointwise.conv.weight", "classifier.bias"])
def test_a_weight_beyond_float16_is_one_line_that_names_it(name: str, value: float) -> None:
    network = folded(student())
    network.module.get_parameter(name).view(-1)[3] = value
    with pytest.raises(
        HalfPrecisionError, match=re.escape(name.rpartition(".")[0].removesuffix(".conv"))
    ) as caught:
        half_precision.round_weights(network)
    assert "65504" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_output_beyond_float16_is_one_line_that_names_the_layer() -> None:
    network = folded(student())
    images = [IMAGENET.normalise(photographs(2))]
    layer, greatest = half_precision.greatest_output(network, images)
    assert layer in network.layers
    assert 0 < greatest < half_precision.GREATEST
    network.module.get_parameter("blocks.2.pointwise.conv.weight").mul_(3e4)
    with pytest.raises(HalfPrecisionError, match=r"blocks\.2\.pointwise") as caught:
        half_precision.greatest_output(network, images)
    assert "\n" not in str(caught.value)


def test_rounding_leaves_the_network_as_it_was() -> None:
    network = folded(student(IMAGENET))
    images = IMAGENET.normalise(photographs(2))
    before = network.module(images)
    rounded = half_precision.round_outputs(half_precision.round_weights(network))
    assert torch.equal(network.module(images), before)
    after = rounded(images)
    assert not torch.equal(after, before)
    assert torch.equal(after, after.half().float())
    assert after == pytest.approx(before, abs=0.02 * float(before.max() - before.min()))


def test_every_form_in_the_folder_keeps_float16(tmp_path: Path, model: Model) -> None:
    classifier = inference.open_classifier(ship(model, tmp_path), threads=1)
    folder.ship(classifier, tmp_path / "out", None, for_phones=True)
    files = sorted((tmp_path / "out").glob("*fp16*"))
    assert [file.name for file in files] == [
        "tiny-fp16-batch1.onnx",
        "tiny-fp16-photo.onnx",
        "tiny-fp16.onnx",
    ]
    assert {weight.number_format(file) for file in files} == {"float16"}
    [square], answers = photographs(1), []
    for file in files:
        session = open_session(file)
        given = {session.get_inputs()[0].name: square[None].numpy()}
        answers.append(np.asarray(session.run(["logits"], given)[0]))
    assert answers[0] == pytest.approx(answers[2], abs=1e-5)
    assert answers[1] == pytest.approx(answers[2], abs=1e-5)
