import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from pipeline import tasks
from pipeline.data import images
from pipeline.data.images import ImageFileError
from pipeline.onnx import inference
from pipeline.onnx.inference import ModelFileError
from tests import tiny_onnx

CONTRACT = {"size": 8, "interpolation": "bilinear", "crop": 1.0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_onnx.write(tmp_path / "tiny.onnx")


def picture(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (20, 14), mode: str = "RGB") -> Path:
    Image.new(mode, size, colour).save(path)
    return path


def test_labels_and_contract_are_read_from_the_file(model: Path) -> None:
    classifier = inference.open_classifier(model, threads=1)
    assert classifier.labels == tiny_onnx.LABELS
    assert (classifier.contract.size, classifier.contract.interpolation) == (8, "bilinear")


@pytest.mark.parametrize(
    ("name", "colour", "mode", "label"),
    [
        ("a.png", (10, 200, 30), "RGB", "green"),
        ("b.jpg", (10, 20, 230), "RGB", "blue"),
        ("c.png", (220, 20, 30, 255), "RGBA", "red"),
    ],
)
def test_predict_names_the_colour_of_a_picture(
    model: Path, tmp_path: Path, name: str, colour: tuple[int, ...], mode: str, label: str
) -> None:
    file = picture(tmp_path / name, colour, mode=mode)
    prediction = inference.predict(inference.open_classifier(model, threads=1), file, top=2)
    assert prediction.image == file
    assert prediction.guesses[0].label == label
    assert len(prediction.guesses) == 2


def test_probabilities_of_all_classes_sum_to_one_in_falling_order(model: Path, tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", (90, 80, 70))
    guesses = inference.predict(inference.open_classifier(model, threads=1), file, top=9).guesses
    probabilities = [guess.probability for guess in guesses]
    assert len(probabilities) == 3
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)


def test_a_file_of_several_labels_is_known_by_the_name_that_the_exporter_gives_it() -> None:
    assert tasks.MULTI_LABEL.onnx == inference.MULTI_LABEL_TASK


def test_running_a_file_needs_no_pytorch() -> None:
    command = "import sys, pipeline.__main__, pipeline.onnx.inference, pipeline.shipping.folder; "
    heavy = "print({'torch', 'torchvision', 'timm', 'datasets', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command + heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_rendering_keeps_the_centred_square(model: Path) -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = (255, 0, 0)
    rendered = inference.render(inference.open_classifier(model, threads=1), Image.fromarray(pixels))
    assert rendered.shape == (8, 8, 3)
    assert rendered[:, 2:-2].mean(axis=(0, 1)).tolist() == [255, 0, 0]


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert images.decode(tmp_path / "turned.jpg").size == (10, 20)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        (b"not an image", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image"),
    ],
)
def test_an_unreadable_picture_is_named(
    model: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    bad = tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(ImageFileError, match=f"bad.png .*{reason}"):
        inference.predict(inference.open_classifier(model, threads=1), bad, top=1)


def test_a_truncated_jpeg_is_refused_rather_than_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ImageFileError, match=r"cut\.jpg cannot be read as an image"):
        images.decode(path)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"broken\.onnx"):
        inference.open_classifier(path, threads=1)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "no metadata 'labels'"),
        ({"labels": "red, green"}, "'labels' is not JSON"),
        ({"labels": '{"a": 1}'}, "takes a JSON list of names"),
        (
            {"labels": '["a", "b", "c"]', "input": '{"size": 8}'},
            "'input' lacks crop, interpolation",
        ),
        ({"labels": '["a", "b"]', "input": json.dumps(CONTRACT)}, r"'logits' is .*asks for .*2\]"),
        (
            {"labels": '["a", "b", "c"]', "input": json.dumps({**CONTRACT, "size": 9})},
            "'images' is .*asks for .*9",
        ),
    ],
)
def test_a_file_that_contradicts_its_metadata_is_refused(
    tmp_path: Path, metadata: dict[str, str], reason: str
) -> None:
    path = tiny_onnx.write(tmp_path / "odd.onnx", metadata=metadata)
    with pytest.raises(ModelFileError, match=reason):
        inference.open_classifier(path, threads=1)


def test_a_float_input_is_refused(model: Path, tmp_path: Path) -> None:
    graph = onnx.load(model)
    graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(graph, tmp_path / "float.onnx")
    with pytest.raises(ModelFileError, match=r"'images' is tensor\(float\)"):
        inference.open_classifier(tmp_path / "float.onnx", threads=1)


def test_logits_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "nan.onnx", weights=np.full((3, 3), np.nan, dtype=np.float32))
    batch = np.ones((1, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ModelFileError, match="not finite"):
        list(inference.run(inference.open_classifier(path, threads=1), [batch]))
