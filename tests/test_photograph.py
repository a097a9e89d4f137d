"""The form of a file that takes a whole photograph: Pillow's pixels, and the same network."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from jaxtyping import UInt8
from onnx import TensorProto, helper
from PIL import Image

from pipeline import paths
from pipeline.data.arrow import Rows
from pipeline.data.store import ImageSet
from pipeline.models.storage import Model
from pipeline.onnx import inference, photograph
from pipeline.onnx.sessions import open_session
from pipeline.shipping import photographs
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL, Task
from teachers.contract import InputContract
from tests import tiny_onnx
from tests.command import run
from tests.tiny_students import int8_student, ship, student

SIZES = [
    (1, 1),
    (1, 700),
    (700, 1),
    (3, 2),
    (64, 64),
    (65, 64),
    (50, 300),
    (400, 533),
    (534, 400),
    (711, 400),
]
"""Heights and widths: extreme ones, and those of photographs, the last of which Pillow resizes in the other
order."""
CONTRACTS = [
    InputContract(64),
    InputContract(192),
    InputContract(31, crop=0.4),  # its side has no divisor
    InputContract(48, crop=0.875, interpolation="bicubic"),
]
MULTI = "multi-label-image-classification"


def noise(height: int, width: int, *, steep: bool = False) -> UInt8[np.ndarray, "height width 3"]:
    random = np.random.default_rng(height + 1000 * width)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(pixels > 127, np.uint8(255), np.uint8(0)) if steep else pixels


def resizer(contract: InputContract) -> Callable[[np.ndarray], np.ndarray]:
    """The pixels that a photograph form gives to its network, which has one node here."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("Cast", ["flat"], ["logits"], to=1),
        ],
        "pixels",
        [
            helper.make_tensor_value_info(
                "images", TensorProto.UINT8, ["batch", contract.size, contract.size, 3]
            )
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", contract.size**2 * 3])],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = photograph.extend(network, contract, independent=False, metadata={})
    onnx.checker.check_model(file, full_check=True)
    session = open_session(file.SerializeToString())

    def resize(pixels: np.ndarray) -> np.ndarray:
        [logits] = session.run(["logits"], {"image": pixels[None]})
        return np.asarray(logits).astype(np.uint8).reshape(contract.size, contract.size, 3)

    return resize


@pytest.mark.parametrize("contract", CONTRACTS, ids=str)
def test_a_photograph_form_resizes_as_pillow_does_byte_for_byte(contract: InputContract) -> None:
    resize = resizer(contract)
    for steep in (False, True):
        for height, width in SIZES:
            pixels = noise(height, width, steep=steep)
            wanted = contract.render(Image.fromarray(pixels), contract.centre_box(width, height))
            assert (resize(pixels) == np.asarray(wanted)).all(), (height, width, steep)


def test_a_photograph_of_a_camera_is_resized_as_pillow_does_byte_for_byte() -> None:
    contract, pixels = InputContract(192), noise(2448, 3264)
    wanted = contract.render(Image.fromarray(pixels), contract.centre_box(3264, 2448))
    assert (resizer(contract)(pixels) == np.asarray(wanted)).all()


@pytest.mark.parametrize("kind", ["float", "int8", "int4"])
def test_a_photograph_form_has_the_same_network_and_gives_the_same_logits_to_the_bit(
    kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    models: dict[str, Callable[[], Model]] = {
        "float": lambda: student(InputContract(64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))),
        "int8": int8_student,
        "int4": lambda: int8_student(limit=7),
    }
    path = ship(models[kind](), tmp_path)
    classifier = inference.open_classifier(path, threads=1)
    form = photographs.build(classifier)
    ordinary, extended = onnx.load(path), onnx.load_model_from_string(form.content)
    onnx.checker.check_model(extended, full_check=True)
    nodes = [node.SerializeToString() for node in extended.graph.node]
    first = nodes.index(ordinary.graph.node[0].SerializeToString())
    own = [node.SerializeToString() for node in ordinary.graph.node]
    assert nodes[first : first + len(own)] == own
    weights = {weight.name: weight.SerializeToString() for weight in extended.graph.initializer}
    assert {w.name: w.SerializeToString() for w in ordinary.graph.initializer}.items() <= weights.items()
    assert len(weights) == len(extended.graph.initializer)
    assert (extended.opset_import, extended.ir_version) == (ordinary.opset_import, ordinary.ir_version)

    session = open_session(form.content)
    assert [(port.name, port.type, port.shape) for port in session.get_inputs()] == [
        ("image", "tensor(uint8)", [1, "height", "width", 3])
    ]
    for height, width in ((64, 64), (90, 200), (301, 100)):
        pixels = noise(height, width)
        [wanted] = inference.run(classifier, [inference.render(classifier, Image.fromarray(pixels))[None]])
        probabilities, logits = map(
            np.asarray, session.run(["probabilities", "logits"], {"image": pixels[None]})
        )
        assert (logits == wanted).all()
        np.testing.assert_allclose(probabilities, inference.probabilities(classifier, wanted), atol=1e-6)


def split(count: int, task: Task = SINGLE_LABEL) -> ImageSet:
    """Noisy photographs of many sizes."""
    rows = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(noise(20 + 7 * number, 90 - 5 * number)).save(buffer, "PNG")
        label = 0 if task is SINGLE_LABEL else [1.0, 0.0, 0.0]
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": label})
    return ImageSet(Rows(pa.Table.from_pylist(rows)), tiny_onnx.LABELS, task)


def classifier(folder: Path, task: str = "image-classification", **contract: Any) -> inference.Classifier:
    preparation = {"size": 16, "crop": 0.9, "interpolation": "bicubic", **contract}
    metadata = {
        "labels": json.dumps(tiny_onnx.LABELS),
        "input": json.dumps(preparation),
        "task": task,
        "license": "MIT",
    }
    weights = np.eye(3, dtype=np.float32)
    weights = weights - weights.mean() if task == MULTI else weights
    file = tiny_onnx.write(
        folder / "tiny.onnx", size=preparation["size"], weights=weights / 16, metadata=metadata
    )
    return inference.open_classifier(file, threads=1)


@pytest.mark.parametrize("task", ["image-classification", MULTI])
def test_the_metadata_of_a_photograph_form_say_how_far_it_agrees_with_pillow(
    task: str, tmp_path: Path
) -> None:
    variant = classifier(tmp_path, task)
    test = split(9, MULTI_LABEL if task == MULTI else SINGLE_LABEL)
    form = photographs.build(variant, test)
    assert form.agreement is not None
    assert (form.agreement.images, form.agreement.same) == (9, 9)
    assert 0 <= form.agreement.difference < 1e-6
    metadata = open_session(form.content).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["agreement"]) == {
        "images": 9,
        "same": 9,
        "difference": form.agreement.difference,
    }
    assert {**variant.metadata, "input": ""}.items() <= {**metadata, "input": ""}.items()
    rule, given = json.loads(metadata["input"]), json.loads(variant.metadata["input"])
    assert given.items() <= rule.items()
    assert "image" in rule["rule"]
    [probabilities] = open_session(form.content).run(["probabilities"], {"image": noise(30, 50)[None]})
    assert (float(np.asarray(probabilities).sum()) == pytest.approx(1)) == (task != MULTI)


def test_a_form_is_compared_once_and_anew_when_it_or_its_record_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, test, records = classifier(tmp_path), split(9), tmp_path / "records"
    first = photographs.build(variant, test, records)
    compared: list[int] = []
    measure = photographs.compare

    def count(*arguments: Any) -> photographs.Agreement:
        compared.append(1)
        return measure(*arguments)

    monkeypatch.setattr(photographs, "compare", count)
    assert photographs.build(variant, test, records) == first
    assert compared == []
    [record] = records.iterdir()
    record.write_bytes(b'{"images": 9')
    assert photographs.build(variant, test, records) == first
    assert len(compared) == 1
    photographs.build(classifier(tmp_path, crop=0.3), test, records)
    assert (len(compared), len([*records.iterdir()])) == (2, 2)
    monkeypatch.setattr(photographs.onnxruntime, "__version__", "0")
    photographs.build(variant, test, records)
    assert len(compared) == 3


def test_a_form_that_resizes_otherwise_is_seen_to_disagree(tmp_path: Path) -> None:
    """Pixels that are one short run of rows differ: the comparison is not blind."""
    variant, test = classifier(tmp_path), split(9)
    other = classifier(tmp_path, crop=0.3)
    agreement = photographs.compare(variant, photographs.build(other).content, test)
    assert agreement.difference > 0.001
    assert photographs.build(variant).agreement is None


@pytest.mark.parametrize("shape", [(1, 40, 40, 4), (2, 40, 40, 3), (40, 40, 3)])
def test_a_photograph_form_refuses_other_shapes(shape: tuple[int, ...], tmp_path: Path) -> None:
    session = open_session(photographs.build(classifier(tmp_path)).content)
    with pytest.raises(Exception, match="image"):
        session.run(None, {"image": np.zeros(shape, np.uint8)})


def test_ship_compares_both_forms_on_the_data_that_the_file_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.ONNX.mkdir(parents=True)
    rule = {"size": 16, "crop": 1.0, "interpolation": "bilinear"}
    metadata = {"labels": json.dumps(tiny_onnx.LABELS), "input": json.dumps(rule), "data_sha256": "abc"}
    tiny_onnx.write(paths.onnx("tiny"), size=16, metadata=metadata)
    datasets.Dataset(split(7).rows.table).save_to_disk(paths.DATA / "test")
    for digest, count in (("abc", 7), ("other", None)):
        report = {"classes": list(tiny_onnx.LABELS), "task": SINGLE_LABEL.name, "data_sha256": digest}
        (paths.DATA / "report.json").write_text(json.dumps(report))
        assert run(monkeypatch, f"ship tiny out/{digest}") == 0
        notes = capsys.readouterr().err
        file = tmp_path / f"out/{digest}/tiny-photo.onnx"
        metadata = open_session(file).get_modelmeta().custom_metadata_map
        lines = [line for line in notes.splitlines() if line.startswith("note: tiny-photo.onnx")]
        if count is None:
            assert "agreement" not in metadata
            assert lines == []
        else:
            assert json.loads(metadata["agreement"]).items() >= {"images": count, "same": count}.items()
            assert len(lines) == 1
            assert f"{count} images" in lines[0]


def test_the_pipeline_names_the_file_that_it_takes_instead_of_a_photograph_form(tmp_path: Path) -> None:
    file = tmp_path / "tiny-photo.onnx"
    file.write_bytes(photographs.build(classifier(tmp_path)).content)
    with pytest.raises(inference.ModelFileError, match=r"tiny-photo\.onnx takes whole photographs"):
        inference.open_classifier(file, threads=1)


def test_predict_does_not_wait_for_what_ship_needs() -> None:
    code = "import sys, pipeline.shipping.integrity; print(*{'torch', 'datasets', 'onnx'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
