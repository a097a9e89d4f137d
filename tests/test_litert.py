"""LiteRT files: what they compute, what they say about themselves, and what finds a fault in them."""

import json
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ai_edge_litert import schema_py_generated
from dvc.utils.hydra import compose_and_dump
from PIL import Image
from pydantic import ValidationError
from torch import nn

from pipeline import fingerprint, paths, provenance
from pipeline.data import sources, splits, writing
from pipeline.litert import export as litert
from pipeline.litert import graph, interpreter, metadata
from pipeline.litert.graph import LiteRtError
from pipeline.litert.settings import LiteRtSettings
from pipeline.models import storage
from pipeline.models.layers import trace, unit
from pipeline.models.storage import Model
from pipeline.onnx import export, inference
from pipeline.onnx.sessions import open_session
from pipeline.parity import layerwise
from pipeline.parity import litert as rung
from pipeline.parity.ladder import ParityError
from pipeline.shipping import folder
from pipeline.shipping.litert import files_beside
from pipeline.stages import evaluate, quantize
from pipeline.stages import export as export_stage
from pipeline.stages import litert as litert_stage
from teachers.contract import InputContract
from tests import tiny_onnx
from tests.tiny_students import (
    FLOAT_LAYERS,
    SIZE,
    in_half,
    int8_student,
    photographs,
    quantized,
    ship,
    student,
    uneven_student,
)

schema: Any = schema_py_generated
CONFIGS = Path(__file__).parents[1] / "configs"
IMAGENET = InputContract(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = InputContract(SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def write(model: Model, folder: Path) -> Path:
    path = folder / f"{model.card.variant}.tflite"
    litert.export(model, path, export.metadata_for(model.card, model.quantization, "abc"))
    return path


def answers(path: Path, images: torch.Tensor) -> np.ndarray:
    return interpreter.open_file(path, threads=1).run(images.numpy())


@pytest.mark.parametrize(
    ("contract", "activation", "padding"),
    [
        (InputContract(SIZE), "relu", "symmetric"),
        (IMAGENET, "relu6", "same"),
        (HALF, "relu6", "same"),
        (InputContract(50), "relu", "same"),
    ],
)
def test_a_float_file_gives_the_logits_of_the_onnx_file(
    tmp_path: Path, contract: InputContract, activation: str, padding: str
) -> None:
    check_against_onnx(student(contract, activation, padding=padding), tmp_path)


@pytest.mark.parametrize(
    ("contract", "padding"), [(InputContract(SIZE), "symmetric"), (replace(HALF, size=50), "same")]
)
def test_an_int8_file_gives_the_logits_of_the_onnx_file(
    tmp_path: Path, contract: InputContract, padding: str
) -> None:
    check_against_onnx(quantized(student(contract, "relu6", padding=padding)), tmp_path)


def test_a_file_in_half_precision_has_half_the_size_and_gives_the_logits_of_the_onnx_file(
    tmp_path: Path,
) -> None:
    whole = student(IMAGENET, "relu6", padding="same")
    half = in_half(whole)
    check_against_onnx(half, tmp_path)
    sizes = [write(model, tmp_path).stat().st_size for model in (half, whole)]
    assert sizes[0] < 0.6 * sizes[1]


def check_against_onnx(model: Model, folder: Path) -> None:
    images = photographs(3, model.card.input.size)
    path = write(model, folder)
    expected = layerwise.answers(open_session(ship(model, folder)), images)
    assert answers(path, images) == pytest.approx(expected, abs=2e-5 * float(np.ptp(expected)))
    assert rung.divergence(model, path, images) is None


@pytest.mark.parametrize(
    ("limit", "float_layers"), [(127, ()), (7, ()), (63, FLOAT_LAYERS), (63, ("classifier",))]
)
def test_every_width_of_weights_and_layers_in_float_are_computed_as_simulated(
    tmp_path: Path, limit: int, float_layers: tuple[str, ...]
) -> None:
    model = quantized(student(), limit, float_layers, steps=())
    assert rung.divergence(model, write(model, tmp_path), photographs(2)) is None


def test_a_layer_that_computes_something_else_is_named(tmp_path: Path) -> None:
    labels = np.arange(6) % 4
    for model, layer in ((student(), "blocks.5.depthwise"), (int8_student(), "blocks.11.pointwise")):
        images, onnx = photographs(6), ship(model, tmp_path)
        good = rung.climb(model, write(model, tmp_path), onnx, iter(images.split(4)), labels, threads=1)
        own = next(result for result in good["rungs"] if result["rung"] == "litert")
        assert own["shipped"] == own["agreement"] == 1
        faulty = replace(model, module=model.module.requires_grad_(False))
        faulty.module.get_parameter(f"{layer}.conv.weight").mul_(-1)
        path = write(faulty, tmp_path)
        faulty.module.get_parameter(f"{layer}.conv.weight").mul_(-1)
        assert layer in str(rung.divergence(model, path, images))
        with pytest.raises(ParityError, match=layer):
            rung.climb(model, path, onnx, iter(images.split(4)), labels, threads=1)


def test_a_head_that_computes_something_else_is_named(tmp_path: Path) -> None:
    model = int8_student()
    model.module.requires_grad_(False)
    bias = model.module.get_parameter("classifier.bias")
    bias[1] += 0.01
    path = write(model, tmp_path)
    bias[1] -= 0.01
    assert "classifier" in str(rung.divergence(model, path, photographs(2)))


def contents(path: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def test_a_file_carries_labels_rule_and_origin(tmp_path: Path) -> None:
    model = int8_student()
    model = replace(model, card=replace(model.card, labels=("a", "b\nc", "\u00e4", "d")))
    path = write(model, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read(metadata.LABELS).decode().splitlines() == ["a", "b c", "\u00e4", "d"]
        details = json.loads(archive.read(metadata.DETAILS))
        first = min(entry.header_offset for entry in archive.infolist())
    assert (
        path.read_bytes()[first : first + 4] == b"PK\3\4"
    )  # unzip warns of places that do not count the model
    end = path.read_bytes()[-22:]
    assert (end[:4], int.from_bytes(end[16:20], "little")) == (b"PK\5\6", path.read_bytes().index(b"PK\1\2"))
    assert details == export.metadata_for(model.card, model.quantization, "abc")
    entries = {
        entry.name.decode(): bytes(contents(path).buffers[entry.buffer].data)
        for entry in contents(path).metadata
    }
    assert entries[metadata.RELEASE] == b"2.7.0".ljust(16, b"\0")
    described = entries[metadata.NAME]
    assert described[4:8] == b"M001"
    for text in (json.loads(details["input"])["rule"], "labels.txt", model.card.license, "logits"):
        assert text.encode() in described


def test_equal_models_give_equal_files_and_constants_lie_where_processors_read_them(tmp_path: Path) -> None:
    model = int8_student()
    path = write(model, tmp_path)
    first = path.read_bytes()
    assert write(model, tmp_path).read_bytes() == first
    parsed = schema.Model.GetRootAs(first)
    [subgraph] = [parsed.Subgraphs(index) for index in range(parsed.SubgraphsLength())]
    places = set()
    for index in range(subgraph.TensorsLength()):
        tensor = subgraph.Tensors(index)
        data = parsed.Buffers(tensor.Buffer()).DataAsNumpy()
        if isinstance(data, np.ndarray):
            places.add(data.ctypes.data - np.frombuffer(first, np.uint8).ctypes.data)
    assert len(places) > 50
    assert {place % 16 for place in places} == {0}


def test_an_int8_network_is_int8_throughout(tmp_path: Path) -> None:
    model = contents(write(int8_student(), tmp_path))
    [subgraph] = model.subgraphs
    kinds = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    seen: dict[str, set[str]] = {}
    for operator in subgraph.operators:
        name = names[model.operatorCodes[operator.opcodeIndex].builtinCode]
        seen.setdefault(name, set()).add(kinds[subgraph.tensors[operator.outputs[0]].type])
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "QUANTIZE"):
        assert seen[name] == {"INT8"}
    stored = [
        t for t in subgraph.tensors if kinds[t.type] == "INT8" and model.buffers[t.buffer].data is not None
    ]
    assert len(stored) == 28
    assert all(set(t.quantization.zeroPoint.tolist()) == {0} for t in stored)


@pytest.mark.parametrize("content", [None, b"", b"PK no model", b"\x20\x00\x00\x00TFL3" + bytes(64)])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LiteRtError, match=r"broken\.tflite"):
        interpreter.open_file(path, threads=1)


@pytest.mark.parametrize(
    "values",
    [{"stages": ["all"]}, {"results": "artifacts/litert"}, {"stages": ["all"], "results": "elsewhere"}],
)
def test_both_keys_are_set_together(values: dict[str, Any]) -> None:
    assert LiteRtSettings().results is None
    assert (
        LiteRtSettings.model_validate({"stages": ["all"], "results": "artifacts/litert"}).results
        == paths.LITERT
    )
    with pytest.raises(ValidationError, match="litert=all"):
        LiteRtSettings.model_validate(values)


def test_only_its_own_stage_loads_the_runtime() -> None:
    imports = fingerprint.import_graph()
    stages = fingerprint.stage_names(Path(__file__).parents[1])
    loading = [
        name
        for name in stages
        if "ai_edge_litert" in imports.find_upstream_modules(f"pipeline.stages.{name}")
    ]
    assert loading == ["litert"]
    assert "ai_edge_litert" not in imports.find_upstream_modules("pipeline.shipping.folder")


def test_a_network_that_another_layout_would_change_is_refused() -> None:
    network, _ = uneven_student()
    flat = nn.Sequential(
        OrderedDict(
            stem=unit(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()),
            flatten=nn.Flatten(),
            head=nn.Linear(4 * 31 * 31, 3),
        )
    )
    with pytest.raises(LiteRtError, match="head"):
        graph.write(trace(flat), None, InputContract(SIZE), 3)
    with pytest.raises(LiteRtError, match="logits"):
        graph.write(network, None, InputContract(SIZE), 4)


def test_only_the_litert_file_of_the_same_network_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx, other = tiny_onnx.write(Path("tiny.onnx")), tiny_onnx.write(Path("other.onnx"), note="another")
    assert files_beside(onnx) == []
    paths.LITERT.mkdir(parents=True)
    file = paths.litert("tiny")
    file.write_bytes(b"the file")
    row = {"sha256": provenance.sha256(file), "onnx_sha256": provenance.sha256(onnx)}
    paths.LITERT_RESULTS.write_text(json.dumps({"variants": {"tiny": row}}))
    assert files_beside(other) == []
    written = folder.ship(inference.open_classifier(onnx, threads=1), Path("out"), None)
    assert Path("out/tiny.tflite") in written
    assert f"{provenance.sha256(file)}  tiny.tflite" in Path("out", folder.SUMS).read_text()
    file.write_bytes(b"changed")
    assert files_beside(onnx) == []
    paths.LITERT_RESULTS.write_text("{")
    assert files_beside(onnx) == []


def test_scores_stand_beside_those_of_the_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.LITERT.mkdir(parents=True)
    paths.METRICS.mkdir(parents=True)
    model = student()
    paths.litert("tiny").write_bytes(b"the file")
    random = np.random.default_rng(0)
    logits = random.normal(size=(8, 4)).astype(np.float32)
    own = logits.argmax(axis=1)
    labels = np.concatenate([own[:6], (own[6:] + 1) % 4])
    onnx = {"top1": 5 / 8, "predictions": [(own[0] + 1) % 4, *own[1:]], "size_bytes": 9, "sha256": "ab"}
    paths.metrics("tiny").write_text(json.dumps(onnx, default=int))
    row = litert_stage._compare(model, [logits[:4], logits[4:]], labels)
    assert (row["n"], row["top1"], row["agreement"], row["delta"]) == (8, 6 / 8, 7 / 8, 1 / 8)
    assert row["delta_lo"] < 1 / 8 < row["delta_hi"]
    assert (row["size_bytes"], row["onnx_size_bytes"], row["onnx_sha256"]) == (8, 9, "ab")

    targets = (random.random((8, 4)) > 0.5).astype(np.float64)
    flipped = logits.copy()
    flipped[3, 1] *= -1
    onnx = {"map": 0.5, "predictions": flipped.tolist(), "size_bytes": 9, "sha256": "ab"}
    paths.metrics("tiny").write_text(json.dumps(onnx))
    attributes = replace(model, card=replace(model.card, task="multi_label"))
    row = litert_stage._compare(attributes, [logits], targets)
    assert (row["metric"], row["agreement"], row["delta_lo"]) == ("map", 7 / 8, None)
    assert row["delta"] == row["map"] - 0.5


@pytest.mark.slow
def test_attributes_go_from_the_network_to_the_scores_of_every_litert_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, random = ("a", "b", "c", "d"), np.random.default_rng(0)
    targets = (random.random((60, 4)) < 0.5).astype(float)
    rows = [",".join(["file_name", *names])]
    for number, row in enumerate(targets):
        Image.fromarray(photographs(1, 40)[0].numpy()).save(tmp_path / f"{number}.png")
        rows.append(",".join([f"{number}.png", *map(str, row)]))
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    root = tmp_path / "checkout"
    root.mkdir()
    monkeypatch.chdir(root)
    values = [
        "data=attributes",
        f"data.path={tmp_path}",
        "litert=all",
        "student.size=64",
        "compute.workers=0",
    ]
    values += ["benchmark.sessions=2", "benchmark.seconds=1", "quantize.calibration=8", "compute.workers=0"]
    compose_and_dump("params.yaml", str(CONFIGS), None, "config", "", values)
    parameters = yaml.safe_load(Path("params.yaml").read_text())
    parameters["variants"] = {
        "fp32": {"parent": "teacher", "op": "distill"},
        "int8-ptq": {"parent": "fp32", "op": "quantize", "method": "ptq"},
        "fp16": {"parent": "fp32", "op": "quantize", "method": "fp16"},
    }
    Path("params.yaml").write_text(yaml.safe_dump(parameters))
    listing = sources.attributes(tmp_path)
    divided = splits.assign(listing.labelled, train=None, val=0.2, test=0.4, seed=0)
    facts = {"source": "attributes", "path": str(tmp_path), "license": "CC0-1.0"}
    writing.write(paths.DATA, listing, divided, facts)

    whole = student()
    card = replace(whole.card, variant="fp32", task="multi_label")
    models = {"fp32": replace(whole, card=card)}
    int8 = quantized(models["fp32"])
    models["int8-ptq"] = replace(int8, card=replace(int8.card, variant="int8-ptq"))
    for name, model in models.items():
        paths.model(name).mkdir(parents=True)
        storage.save(paths.model(name), model)
    quantize.main("fp16")
    for name in parameters["variants"]:
        export_stage.main(name)
        evaluate.main(name)
    litert_stage.main()

    results = json.loads(paths.LITERT_RESULTS.read_text())["variants"]
    assert set(results) == {"fp32", "int8-ptq", "fp16"}
    for name, row in results.items():
        assert (row["n"], row["metric"], row["agreement"]) == (24, "map", 1.0)
        assert row["parity"]["rungs"][-1]["rung"] == "litert"
        with zipfile.ZipFile(paths.litert(name)) as archive:
            details = json.loads(archive.read(metadata.DETAILS))
        assert details["task"] == "multi-label-image-classification"
        assert json.loads(details["labels"]) == list(names)
