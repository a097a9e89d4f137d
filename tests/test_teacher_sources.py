"""Teachers from everywhere give here what they give at home."""

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import timm
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from pipeline import tasks
from pipeline.data import sources, splits, store, writing
from pipeline.data.batches import ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import adaptation, labelling, teacher_store
from pipeline.distillation.settings import TeacherInput
from pipeline.training import compute
from pipeline.training.settings import ComputeSettings
from teachers.contract import InputContract
from teachers.errors import TeacherError, WeightsError
from teachers.hugging_face_models import contract, measured
from teachers.sources import SOURCES
from teachers.teacher import Teacher, columns
from tests import odd_onnx

HALF, QUARTER, WHOLE = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (1.0, 1.0, 1.0)
NAMES = ("T-shirt", "hat", "Shoe, footwear")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Hugging Face classifier of three classes, as the library saves it."""
    folder = tmp_path_factory.mktemp("resnet")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    config.num_labels = 3
    config.id2label = dict(enumerate(NAMES))
    torch.manual_seed(0)
    cast(Any, ResNetForImageClassification(config)).save_pretrained(folder)
    processor = ViTImageProcessor(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    processor.save_pretrained(folder)
    return folder


def ask(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(images)


def test_a_hugging_face_classifier_gives_its_own_logits(hub_folder: Path, images: torch.Tensor) -> None:
    teacher = SOURCES["hugging_face"](str(hub_folder), "default")
    with torch.no_grad():
        theirs = cast(Any, ResNetForImageClassification).from_pretrained(hub_folder).eval()(images).logits
    torch.testing.assert_close(ask(teacher.module, images), theirs, rtol=0, atol=0)
    assert (teacher.outputs, teacher.labels) == (3, NAMES)
    assert teacher.input == InputContract(64, HALF, QUARTER, "bilinear", 1.0)
    assert [type(teacher.module.get_submodule(path)) for path in teacher.heads] == [nn.Linear]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224},
                "resample": 3,
            },
            InputContract(224, HALF, HALF, "bicubic", 224 / 256),
        ),
        ({"size": 384, "do_normalize": False}, InputContract(384)),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 2},
            InputContract(224, HALF, HALF, "bilinear", 0.875),
        ),
        (
            {"size": 32, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [255.0] * 3},
            InputContract(32, HALF, WHOLE),
        ),
    ],
)
def test_image_processors_become_contracts(rule: dict[str, Any], expected: InputContract) -> None:
    assert contract("x", rule) == expected


def test_a_hugging_face_classifier_in_half_precision_is_widened(hub_folder: Path, tmp_path: Path) -> None:
    for number, dtype in enumerate((torch.float16, torch.bfloat16)):
        shutil.copytree(hub_folder, folder := tmp_path / str(number))
        network = cast(Any, ResNetForImageClassification).from_pretrained(hub_folder)
        network.to(dtype).save_pretrained(folder)
        for weights in ("default", None):
            module = SOURCES["hugging_face"](str(folder), weights).module
            assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


PROCESSORS = {
    "usual": (ViTImageProcessor, {"size": 32, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.5]}),
    "blue first": (MobileViTImageProcessor, {"size": 36, "crop_size": {"height": 32, "width": 32}}),
    "divided twice": (EfficientNetImageProcessor, {"size": 32, "image_std": [0.2, 0.3, 0.5]}),
    "cropped": (ConvNextImageProcessor, {"size": {"shortest_edge": 32}, "crop_pct": 0.5, "resample": 2}),
    "not cropped": (ConvNextImageProcessor, {"size": {"shortest_edge": 384}, "crop_pct": 0.5}),
}
"""Classes of image processors with settings, whose keys alone do not say what most of them do."""


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_network_gets_the_pixels_that_its_image_processor_makes(kind: str) -> None:
    processor = PROCESSORS[kind][0](**PROCESSORS[kind][1])
    rule = (
        processor.to_dict()
        if kind != "blue first"
        else {"size": 36, **PROCESSORS[kind][1], "do_center_crop": True}
    )
    given, blue_first = measured(kind, processor, contract(kind, rule))
    colours = np.linspace(0, 255, 500 * 500 * 3).reshape(500, 500, 3).round().astype(np.uint8)
    image = Image.fromarray(colours)
    theirs = processor(images=[image], return_tensors="pt")["pixel_values"][0]
    box = given.centre_box(*image.size)
    ours = given.normalise(torch.from_numpy(np.array(given.render(image, box)))[None])[0]
    ours = ours.flip(0) if blue_first else ours
    assert blue_first == (kind == "blue first")
    assert (ours - theirs).abs().max() < 0.03 * float(theirs.max() - theirs.min())


def test_an_image_processor_that_cannot_be_used_is_one_line() -> None:
    class Odd:
        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def __call__(self, images: Any, **_: Any) -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return {
                "pixel_values": [
                    self.answer(np.asarray(images[0], np.float32).transpose(2, 0, 1)[:, :32, :32])
                ]
            }

    for answer in (
        OSError("a\nb"),
        lambda pixels: pixels[0],
        lambda pixels: pixels[:, :16, :16],
        lambda pixels: pixels.mean(0, keepdims=True).repeat(3, 0),
        lambda pixels: -pixels,
    ):
        with pytest.raises(TeacherError) as error:
            measured("odd", Odd(answer), InputContract(32))
        assert len(str(error.value).splitlines()) == 1
        assert "'odd'" in str(error.value)
    for rule in (
        {"size": {"height": 32, "width": 64}},
        {"size": 32, "image_mean": 0.5},
        {"size": 32, "image_std": [1]},
    ):
        with pytest.raises(TeacherError):
            contract("odd", rule)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("source", "name"), [("timm", "resnet10t"), ("torchvision", "resnet18")])
def test_local_weights_bring_their_own_number_of_classes(
    tmp_path: Path, images: torch.Tensor, source: str, name: str, suffix: str
) -> None:
    torch.manual_seed(0)
    make = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}[source]
    theirs = make(name, num_classes=5)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        parallel = {f"module.{key}": value for key, value in theirs.state_dict().items()}
        torch.save({"state_dict": parallel, "epoch": 3}, path)
    else:
        save_file(theirs.state_dict(), path)
    teacher = SOURCES[source](name, str(path))
    torch.testing.assert_close(ask(teacher.module, images), ask(theirs, images), rtol=0, atol=0)
    assert teacher.outputs == 5
    with pytest.raises(WeightsError, match="are expected; "):
        SOURCES[source]({"timm": "resnet14t", "torchvision": "resnet34"}[source], str(path))
    with pytest.raises(WeightsError, match="no such file"):
        SOURCES[source](name, str(tmp_path / f"absent{suffix}"))


def onnx_file(
    path: Path, ending: str = "", batch: int | str = "batch", size: int = 64, scale: float = 1.0
) -> np.ndarray:
    """Mean colours times a matrix, perhaps through a softmax or a sigmoid; returns the matrix."""
    matrix = (scale * np.random.default_rng(0).normal(size=(3, 4))).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["means"]),
        helper.make_node("Flatten", ["means"], ["colours"]),
        helper.make_node("MatMul", ["colours", "matrix"], ["sums"]),
        helper.make_node(ending or "Identity", ["sums"], ["answers"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return matrix


@pytest.mark.parametrize("batch", ["batch", 1])
def test_an_onnx_file_is_a_black_box(tmp_path: Path, images: torch.Tensor, batch: int | str) -> None:
    matrix = torch.from_numpy(onnx_file(tmp_path / "box.onnx", batch=batch))
    teacher = SOURCES["onnx"](str(tmp_path / "box.onnx"), "default")
    torch.testing.assert_close(ask(teacher.module, images), images.mean((2, 3)) @ matrix, rtol=0, atol=1e-5)
    assert (teacher.outputs, teacher.input, teacher.heads, teacher.labels) == (4, None, (), None)
    given = TeacherInput(mean=HALF, std=QUARTER)
    assert adaptation.contract(teacher, size=None, crop=0.9, corrections=given) == InputContract(
        64, HALF, QUARTER, "bilinear", 0.9
    )
    with pytest.raises(TeacherError, match=r"teacher\.input"):
        adaptation.contract(teacher, size=None, crop=1.0, corrections=TeacherInput())
    with pytest.raises(TeacherError, match=r"takes images of 64 pixels; teacher\.size = 32"):
        adaptation.contract(teacher, size=32, crop=1.0, corrections=given)


def test_an_onnx_file_of_bytes_takes_no_mean(tmp_path: Path) -> None:
    odd_onnx.WORKING["bytes in planes"](tmp_path / "box.onnx")
    teacher = SOURCES["onnx"](str(tmp_path / "box.onnx"), "default")
    plain = adaptation.contract(teacher, size=None, crop=1.0, corrections=TeacherInput())
    assert plain == InputContract(odd_onnx.SIZE)
    with pytest.raises(TeacherError, match=r"teacher\.input\.mean"):
        adaptation.contract(teacher, size=None, crop=1.0, corrections=TeacherInput(mean=HALF))


def test_a_vision_transformer_of_hugging_face_takes_images_of_any_size(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
        patch_size=8,
    )
    config.num_labels = 4
    cast(Any, ViTForImageClassification(config)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    teacher = SOURCES["hugging_face"](str(tmp_path), "default")
    for size in (32, 48, 64):
        assert ask(teacher.module, torch.rand(2, 3, size, size)).shape == (2, 4)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("classifier.bias")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"classifier\.bias") as error:
        SOURCES["hugging_face"](str(tmp_path), "default")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("ending", ["Softmax", "Sigmoid"])
def test_probabilities_become_logits(tmp_path: Path, images: torch.Tensor, ending: str) -> None:
    matrix = torch.from_numpy(onnx_file(tmp_path / "box.onnx", ending))
    teacher = SOURCES["onnx"](str(tmp_path / "box.onnx"), "default")
    logits = images.mean((2, 3)) @ matrix
    wanted = logits.log_softmax(1) if ending == "Softmax" else logits
    torch.testing.assert_close(ask(teacher.module, images), wanted, rtol=0, atol=1e-4)
    # A probability of 1, which none of its log-odds is: finite all the same.
    onnx_file(tmp_path / "sure.onnx", ending, scale=1000)
    sure = SOURCES["onnx"](str(tmp_path / "sure.onnx"), "default")
    assert ask(sure.module, images).isfinite().all()


def test_an_onnx_file_labels_like_the_network_it_came_from(tmp_path: Path, photographs: Path) -> None:
    matrix = torch.from_numpy(onnx_file(tmp_path / "box.onnx"))
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4, bias=False))
    network[2].weight = nn.Parameter(matrix.T)
    listing = sources.folder(photographs)
    made = splits.assign(listing.labelled, train=None, val=0.2, test=0.25, seed=0)
    writing.write(tmp_path / "data", listing, made, {"source": "folder", "path": "x", "license": "CC0-1.0"})
    space = ViewSpace(seed=0, crop_scale=(0.6, 1.0), crop_ratio=(0.8, 1.25))
    view_set = ViewSet(store.read(tmp_path / "data", "train"), space, InputContract(64, HALF, QUARTER))
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    box = SOURCES["onnx"](str(tmp_path / "box.onnx"), "default").module
    found = [
        next(
            iter(
                labelling.compute(
                    fabric,
                    [module],
                    view_set,
                    views=2,
                    classes=4,
                    top=None,
                    partial=tmp_path / str(number),
                    workers=0,
                )
            )
        ).values
        for number, module in enumerate((network, box))
    ]
    assert found[0].shape == (len(view_set), 2, 4)
    assert found[0].std() > 0.5
    # Half precision has steps of 0.001 to 0.002 at logits from 1 to 4.
    np.testing.assert_allclose(found[0].astype(float), found[1].astype(float), rtol=1e-3, atol=1e-4)
    probabilities = [torch.from_numpy(answers).float().softmax(-1) for answers in found]
    assert (probabilities[0] - probabilities[1]).abs().max() < 1e-3


def test_wrong_onnx_files_are_one_line(tmp_path: Path) -> None:
    onnx_file(tmp_path / "box.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "box.onnx").read_bytes()[:100])
    onnx_file(tmp_path / "eight.onnx", batch=8)
    whole = onnx.load(tmp_path / "box.onnx")
    onnx.save(
        whole, tmp_path / "parts.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    for name, message in (
        ("parts.onnx", "keeps weights in other files"),
        ("cut.onnx", "not an intact ONNX file"),
        ("absent.onnx", "no such file"),
        ("eight.onnx", "a batch of any size or of 1 is expected; found 8"),
    ):
        with pytest.raises(TeacherError, match=message) as caught:
            SOURCES["onnx"](str(tmp_path / name), "default")
        assert len(str(caught.value).splitlines()) == 1


def box(outputs: int, names: tuple[str, ...] | None) -> Teacher:
    return Teacher(nn.Identity(), outputs, None, (), "a box", names)


def test_classes_are_found_by_name_or_by_number() -> None:
    assert columns(box(3, NAMES), ["shoe", "t_shirt"]) == (2, 0)
    assert columns(box(3, None), ["a", "b", "c"]) == (0, 1, 2)
    with pytest.raises(TeacherError, match="no 'glove' among 'T-shirt', 'hat'"):
        columns(box(3, NAMES), ["hat", "glove"])
    with pytest.raises(TeacherError, match="3 logits without names; the data have 2"):
        columns(box(3, None), ["a", "b"])


def test_a_stored_teacher_answers_as_before(hub_folder: Path, tmp_path: Path, images: torch.Tensor) -> None:
    teacher = SOURCES["hugging_face"](str(hub_folder), "default")
    assert teacher.input is not None
    card = {
        "source": "hugging_face",
        "name": str(hub_folder),
        "adapted": False,
        "input": teacher.input.to_dict(),
    }
    teacher_store.save(tmp_path / "network", teacher, ["shoe", "hat"], card)
    module, found = teacher_store.load(tmp_path / "network")
    assert found == teacher.input
    torch.testing.assert_close(ask(module, images), ask(teacher.module, images)[:, [2, 1]], rtol=0, atol=0)

    onnx_file(tmp_path / "box.onnx")
    black = SOURCES["onnx"](str(tmp_path / "box.onnx"), "default")
    teacher_store.save(tmp_path / "file", black, list("abcd"), {**card, "source": "onnx", "name": "box.onnx"})
    (tmp_path / "box.onnx").unlink()
    module, _ = teacher_store.load(tmp_path / "file")
    torch.testing.assert_close(ask(module, images), ask(black.module, images), rtol=0, atol=0)
    cards = [teacher_store.read_card(tmp_path / name) for name in ("file", "network")]
    assert teacher_store.identity(cards[:1]) != teacher_store.identity(cards[1:])


def test_an_ensemble_is_asked_live_at_the_size_of_each_member(tmp_path: Path) -> None:
    matrices = []
    for name, size, scale in (("0", 64, 1.0), ("1", 32, -4.0)):
        matrices.append(torch.from_numpy(onnx_file(tmp_path / f"{name}.onnx", size=size, scale=scale)))
        teacher = SOURCES["onnx"](str(tmp_path / f"{name}.onnx"), "default")
        card = {"source": "onnx", "name": name, "adapted": False, "input": InputContract(size).to_dict()}
        teacher_store.save(tmp_path / name, teacher, list("abcd"), card)
    teacher_store.write_card(tmp_path, {"members": ["0", "1"]})
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    live = teacher_store.live(fabric.device, tmp_path, tasks.SINGLE_LABEL)
    assert [contract.size for contract in live.inputs] == [64, 32]
    torch.manual_seed(0)
    seen = [torch.randint(256, (5, size, size, 3), dtype=torch.uint8) for size in (64, 32)]
    wanted = torch.stack(
        [
            (pixels.float().mean((1, 2)) / 255 @ matrix).softmax(1)
            for pixels, matrix in zip(seen, matrices, strict=True)
        ]
    ).mean(0)
    torch.testing.assert_close(live.ask(seen).softmax(1), wanted, rtol=1e-4, atol=1e-5)


def test_an_ensemble_means_its_members_probabilities() -> None:
    torch.manual_seed(0)
    members = [torch.randn(4, 2, 5) * 3 for _ in range(3)]
    wanted = torch.stack([logits.softmax(-1) for logits in members]).mean(0)
    torch.testing.assert_close(tasks.softmax_mean(members).exp(), wanted)
    assert tasks.softmax_mean(members[:1]) is members[0]


def test_an_ensemble_of_attributes_means_each_attributes_probability() -> None:
    torch.manual_seed(0)
    members = [torch.randn(4, 5) * 3 for _ in range(3)]
    wanted = torch.stack([logits.sigmoid() for logits in members]).mean(0)
    torch.testing.assert_close(tasks.sigmoid_mean(members).sigmoid(), wanted)
