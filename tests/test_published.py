"""Published weights give the same logits here as in the library that published them."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

import students
from pipeline import paths
from pipeline.models import initialisation, storage
from pipeline.models.initialisation import Start
from pipeline.models.storage import Model, Quantization
from students import published
from students.mobilenet_v1 import STRIDES, scaled_channels
from teachers.contract import InputContract
from teachers.errors import TeacherError, WeightsError
from tests import tiny_students


def perturbed(module: nn.Module) -> nn.Module:
    """Give a network weights and statistics with which the logits depend on the image."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.running_mean, std=0.2)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(part.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
    return module.eval()


def hugging_face(config: MobileNetV1Config, classes: int, folder: Path, labels: Sequence[str] = ()) -> Any:
    """Build a perturbed network and save its weights as the library does."""
    config.num_labels = classes
    if labels:
        config.id2label = dict(enumerate(labels))
    network = perturbed(MobileNetV1ForImageClassification(config))
    cast(Any, network).save_pretrained(folder)
    return network


def imported(start: Start, width: float, size: int, classes: int) -> nn.Module:
    arguments = {**start.arguments, "channels": scaled_channels(width), "classes": classes, "size": size}
    labels = start.labels or tuple(map(str, range(classes)))
    return initialisation.network("mobilenet_v1", arguments, labels, start).eval()


def greatest_difference(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    assert theirs.shape == ours.shape
    assert theirs.std(dim=0).mean() > 0.02
    return float((theirs - ours).abs().max())


@pytest.mark.parametrize(("width", "size"), [(1.0, 64), (0.75, 192), (0.75, 101), (0.5, 160), (0.25, 128)])
@pytest.mark.parametrize("tf_padding", [True, False])
def test_hugging_face_checkpoints(tmp_path: Path, width: float, size: int, tf_padding: bool) -> None:
    config = MobileNetV1Config(depth_multiplier=width, image_size=size, tf_padding=tf_padding)
    theirs = hugging_face(config, 7, tmp_path)
    start = initialisation.SOURCES["hugging_face"](str(tmp_path))
    images = torch.randn(4, 3, size, size)
    with torch.no_grad():
        assert greatest_difference(theirs(images).logits, imported(start, width, size, 7)(images)) < 1e-4


def test_the_background_class_is_dropped(tmp_path: Path) -> None:
    config = MobileNetV1Config(depth_multiplier=0.25)
    names = ["background", *(f"class {index}" for index in range(1, 1001))]
    theirs = hugging_face(config, 1001, tmp_path, names)
    start = initialisation.SOURCES["hugging_face"](str(tmp_path))
    assert start.labels is not None
    assert (len(start.labels), start.labels[0]) == (1000, "class 1")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (
            greatest_difference(theirs(images).logits[:, 1:], imported(start, 0.25, 64, 1000)(images)) < 1e-4
        )


def test_timms_checkpoints(tmp_path: Path) -> None:
    theirs = perturbed(timm.create_model("mobilenetv1_100", num_classes=9))
    torch.save(theirs.state_dict(), tmp_path / "mobilenetv1.pth")
    start = initialisation.SOURCES["timm"](str(tmp_path / "mobilenetv1.pth"))
    images = torch.randn(4, 3, 96, 96)
    with torch.no_grad():
        assert greatest_difference(theirs(images), imported(start, 1.0, 96, 9)(images)) < 1e-4


def test_timms_wider_checkpoints(tmp_path: Path) -> None:
    theirs = perturbed(timm.create_model("mobilenetv1_125", num_classes=9))
    save_file(theirs.state_dict(), tmp_path / "wide.safetensors")
    start = initialisation.SOURCES["timm"](str(tmp_path / "wide.safetensors"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert greatest_difference(theirs(images), imported(start, 1.25, 64, 9)(images)) < 1e-4


def slim_variables(width: float) -> dict[str, np.ndarray]:
    """Variables under TF-slim's names and in its layouts, with the moving averages that Google published."""
    draw = np.random.default_rng(0)
    variables: dict[str, np.ndarray] = {"global_step": np.array(1, np.int64)}

    def add(scope: str, weights: str, shape: tuple[int, ...], fan_in: int) -> None:
        channels = shape[2] if weights == "depthwise_weights" else shape[3]
        tensors = {
            f"{scope}/{weights}": draw.normal(0, (2 / fan_in) ** 0.5, shape),
            f"{scope}/BatchNorm/gamma": draw.uniform(0.5, 1.5, channels),
            f"{scope}/BatchNorm/beta": draw.normal(0, 0.2, channels),
            f"{scope}/BatchNorm/moving_mean": draw.normal(0, 0.2, channels),
            f"{scope}/BatchNorm/moving_variance": draw.uniform(0.5, 1.5, channels),
        }
        for name, value in tensors.items():
            variables[name] = value.astype(np.float32)
            variables[f"{name}/ExponentialMovingAverage"] = np.zeros_like(variables[name])

    channels = scaled_channels(width)
    add("MobilenetV1/Conv2d_0", "weights", (3, 3, 3, channels[0]), 27)
    for block, (inputs, outputs) in enumerate(itertools.pairwise(channels), start=1):
        add(f"MobilenetV1/Conv2d_{block}_depthwise", "depthwise_weights", (3, 3, inputs, 1), 9)
        add(f"MobilenetV1/Conv2d_{block}_pointwise", "weights", (1, 1, inputs, outputs), inputs)
    head = "MobilenetV1/Logits/Conv2d_1c_1x1"
    variables[f"{head}/weights"] = draw.normal(0, 0.1, (1, 1, channels[-1], 1001)).astype(np.float32)
    variables[f"{head}/biases"] = draw.normal(0, 0.1, 1001).astype(np.float32)
    return variables


def slim_forward(tf: Any, variables: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """MobileNetV1 in TensorFlow's own operations."""

    def unit(x: Any, scope: str, stride: int) -> Any:
        strides = (1, stride, stride, 1)
        if f"{scope}/depthwise_weights" in variables:
            x = tf.nn.depthwise_conv2d(x, variables[f"{scope}/depthwise_weights"], strides, "SAME")
        else:
            x = tf.nn.conv2d(x, variables[f"{scope}/weights"], strides, "SAME")
        names = ("moving_mean", "moving_variance", "beta", "gamma")
        return tf.nn.relu6(
            tf.nn.batch_normalization(x, *(variables[f"{scope}/BatchNorm/{name}"] for name in names), 1e-3)
        )

    x = unit(images, "MobilenetV1/Conv2d_0", 2)
    for block, stride in enumerate(STRIDES[1:], start=1):
        x = unit(
            unit(x, f"MobilenetV1/Conv2d_{block}_depthwise", stride),
            f"MobilenetV1/Conv2d_{block}_pointwise",
            1,
        )
    head = "MobilenetV1/Logits/Conv2d_1c_1x1"
    return (
        tf.reduce_mean(x, (1, 2)) @ variables[f"{head}/weights"][0, 0] + variables[f"{head}/biases"]
    ).numpy()


@pytest.mark.parametrize("size", [192, 101])
def test_tensorflow_slims_checkpoints(tmp_path: Path, size: int) -> None:
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is an optional extra")
    variables, prefix = slim_variables(0.75), str(tmp_path / "mobilenet_v1_0.75_192.ckpt")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[tf.constant(value) for value in variables.values()],
    )
    images = torch.randn(2, 3, size, size)
    theirs = slim_forward(tf, variables, images.permute(0, 2, 3, 1).numpy())
    start = initialisation.SOURCES["slim"](prefix)
    with torch.no_grad():
        ours = imported(start, 0.75, size, 1000)(images)
    assert greatest_difference(torch.from_numpy(theirs)[:, 1:], ours) < 1e-4
    for file in tmp_path.glob("*.data-*"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not an intact TensorFlow checkpoint"):
        initialisation.SOURCES["slim"](prefix)


def test_slim_names_are_translated_without_tensorflow() -> None:
    variables = {name: torch.from_numpy(value) for name, value in slim_variables(0.25).items()}
    translated = published.translate("slim", variables)
    with torch.device("meta"):
        expected = students.build(
            "mobilenet_v1", {"classes": 1001, "channels": scaled_channels(0.25)}
        ).state_dict()
    shapes = {name: value.shape for name, value in expected.items() if "num_batches" not in name}
    assert {name: value.shape for name, value in translated.items()} == shapes


def test_another_number_of_classes_keeps_all_but_the_head(tmp_path: Path) -> None:
    hugging_face(MobileNetV1Config(depth_multiplier=0.25), 7, tmp_path)
    start = initialisation.SOURCES["hugging_face"](str(tmp_path))
    arguments = {**start.arguments, "channels": scaled_channels(0.25), "classes": 3, "size": 64}
    ours = initialisation.network("mobilenet_v1", arguments, ("a", "b", "c"), start).state_dict()
    unchanged = {
        name
        for name, value in ours.items()
        if name in start.tensors and torch.equal(value, start.tensors[name])
    }
    assert set(ours) - unchanged == {"classifier.weight", "classifier.bias"}
    assert ours["classifier.weight"].shape == (3, 256)


KNOWN = (
    "tench, Tinca tinca",
    "goldfish, Carassius auratus",
    "golden fish",
    "Old English sheepdog, bobtail",
    "crane",
    "crane",
)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("goldfish", "Old English sheepdog"), [1, 3]),
        (("old_english_sheepdog", "Carassius auratus"), [3, 1]),
        (("bobtail", "tench", "Golden-Fish"), [3, 0, 2]),
        (("tench", "cat"), None),  # not all are known
        (("tench", "crane"), None),  # a name of two classes
        (("bobtail", "Old English sheepdog"), None),  # two names of one class
        (KNOWN, [0, 1, 2, 3, 4, 5]),  # all of them, though two have the same name, as in ImageNet
    ],
)
def test_classes_that_the_weights_know_keep_their_part_of_the_head(
    classes: tuple[str, ...], expected: list[int] | None
) -> None:
    arguments = {"channels": scaled_channels(0.25), "size": 64}
    tensors = students.build("mobilenet_v1", {**arguments, "classes": len(KNOWN)}).state_dict()
    start = initialisation.Start("published", {}, tensors, labels=KNOWN)
    assert initialisation.known_classes(classes, start) == expected
    ours = initialisation.network("mobilenet_v1", {**arguments, "classes": len(classes)}, classes, start)
    head = ours.state_dict()["classifier.weight"]
    if expected is None:
        assert not any(torch.equal(row, other) for row in head for other in tensors["classifier.weight"])
    else:
        assert torch.equal(head, tensors["classifier.weight"][expected])
        assert torch.equal(ours.state_dict()["classifier.bias"], tensors["classifier.bias"][expected])


def test_a_student_of_an_earlier_run_has_the_same_logits(tmp_path: Path) -> None:
    labels = ("a", "b", "c")
    arguments = {"classes": 3, "channels": [24] * 10 + [40] * 4, "activation": "relu6", "padding": "same"}
    before = perturbed(students.build("mobilenet_v1", arguments))
    contract = InputContract(64, mean=(0.5, 0.5, 0.5))
    card = tiny_students.card(
        arguments, contract, variant="pruned-50", parent="fp32", op="prune", labels=labels
    )
    storage.save(tmp_path, Model(before, card))
    start = initialisation.SOURCES["run"](str(tmp_path))
    images = torch.randn(2, 3, 64, 64)
    after = initialisation.network("mobilenet_v1", {**start.arguments, "classes": 3}, labels, start).eval()
    with torch.no_grad():
        assert torch.equal(before(images), after(images))
    assert (start.mean, start.labels) == ((0.5, 0.5, 0.5), labels)
    other = initialisation.network("mobilenet_v1", {**start.arguments, "classes": 3}, ("a", "c", "b"), start)
    rows = other.state_dict()["classifier.weight"]
    assert torch.equal(rows, start.tensors["classifier.weight"][[0, 2, 1]])
    small = Quantization({}, 63, {"images": 1 / 255})
    storage.save(tmp_path, Model(before, card, small))
    with pytest.raises(WeightsError, match="a float student is expected; variant pruned-50 is quantised"):
        initialisation.SOURCES["run"](str(tmp_path))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    hugging_face(MobileNetV1Config(depth_multiplier=0.25), 7, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "mean", "std"),
    [
        ({}, 0.5, 0.5),
        ({"do_normalize": False, "image_mean": [0.4] * 3}, 0.0, 1.0),
        ({"image_mean": [0.25] * 3, "image_std": [0.125] * 3}, 0.25, 0.125),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [255.0] * 3}, 0.5, 1.0),
    ],
)
def test_a_checkpoint_is_fed_as_its_image_processor_feeds_it(
    checkpoint: Path, rule: dict[str, Any], mean: float, std: float
) -> None:
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({"size": 64, **rule}))
    start = initialisation.SOURCES["hugging_face"](str(checkpoint))
    assert (start.mean, start.std) == ((mean,) * 3, (std,) * 3)


@pytest.mark.parametrize("names", [{"1": "a", "2": "b"}, {"a": 0}, ["a", "b"]])
def test_names_of_classes_without_their_numbers_are_one_line(checkpoint: Path, names: Any) -> None:
    file = checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "id2label": names}))
    assert "id2label" in fails_in_one_line(checkpoint)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("config.json", [], "config.json"),
        ("config.json", None, "config.json"),
        ("config.json", {"hidden_act": ["relu"]}, "hidden_act"),
        ("config.json", {"layer_norm_eps": -1}, "layer_norm_eps"),
        ("config.json", {"layer_norm_eps": "small"}, "layer_norm_eps"),
        ("preprocessor_config.json", [], "preprocessor_config.json"),
        ("preprocessor_config.json", {"size": {"height": 64, "width": 96}}, "size"),
        ("preprocessor_config.json", {"size": "large"}, "size"),
        ("preprocessor_config.json", {"size": -1}, "size"),
        ("preprocessor_config.json", {"do_center_crop": True, "crop_size": 32.5}, "crop_size"),
        ("preprocessor_config.json", {"image_std": [0, 0.5, 0.5]}, "standard deviation"),
    ],
)
def test_a_declaration_that_cannot_be_used_is_one_line(
    checkpoint: Path, name: str, change: Any, named: str
) -> None:
    file = checkpoint / name
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **change} if isinstance(change, dict) else change))
    with pytest.raises(TeacherError) as caught:
        initialisation.SOURCES["hugging_face"](str(checkpoint))
    [line] = str(caught.value).splitlines()
    assert named in line


@pytest.mark.parametrize(
    ("size", "side"),
    [(64, 64), ([64, 64], 64), ({"shortest_edge": 64}, 64), ({"height": 64, "width": 64}, 64)],
)
def test_the_size_of_square_images_is_read_in_every_form(checkpoint: Path, size: Any, side: int) -> None:
    (checkpoint / "preprocessor_config.json").write_text("\ufeff" + json.dumps({"size": size}), "utf-8")
    assert initialisation.SOURCES["hugging_face"](str(checkpoint)).size == side


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ([], "card.json"),
        ({"input": None}, "input"),
        ({"input": {"size": 64, "mean": [0.5] * 3, "std": [0, 1, 1], "crop": 1.0}}, "input.std.0"),
        ({"input": {"size": 64, "mean": [0.5], "std": [1, 1, 1], "crop": 1.0}}, "input.mean"),
        ({"input": {"size": 64, "std": [1, 1, 1], "crop": 1.0}}, "input.mean"),
        ({"labels": "abc"}, "labels"),
        ({"arguments": "none"}, "arguments"),
        ({"variant": None}, "variant"),
    ],
)
def test_a_card_that_cannot_be_used_is_one_line(tmp_path: Path, change: Any, named: str) -> None:
    contract = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "crop": 1.0}
    card = {"variant": "fp32", "arguments": {}, "labels": ["a", "b"], "input": contract}
    values = {**card, **change} if isinstance(change, dict) else change
    (tmp_path / paths.CARD).write_text(json.dumps(values))
    with pytest.raises(WeightsError) as caught:
        initialisation.SOURCES["run"](str(tmp_path))
    [line] = str(caught.value).splitlines()
    assert named in line


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def fails_in_one_line(folder: Path, width: float = 0.25) -> str:
    with pytest.raises(WeightsError) as caught:
        imported(initialisation.SOURCES["hugging_face"](str(folder)), width, 64, 7)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_another_width_is_reported_in_one_line(checkpoint: Path) -> None:
    message = fails_in_one_line(checkpoint, width=0.5)
    assert "widths (16, 32, 64" in message
    assert "are expected; (8, 16, 32" in message


def test_missing_tensors_are_reported_in_one_line(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.pop("mobilenet_v1.layer.3.convolution.weight"))
    assert "missing (blocks.1.pointwise.conv.weight)" in fails_in_one_line(checkpoint)


def test_a_truncated_file_is_reported_in_one_line(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "not an intact safetensors file" in fails_in_one_line(checkpoint)


def test_another_architecture_is_reported_in_one_line(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "resnet"}))
    assert "mobilenet_v1 is expected; config.json says 'resnet'" in fails_in_one_line(checkpoint)


def test_a_folder_without_a_model_is_reported_in_one_line(tmp_path: Path) -> None:
    assert "config.json: a JSON file is expected" in fails_in_one_line(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_a_pickle_with_code_is_rejected_and_none_of_it_runs(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save({"state_dict": Bomb()}, checkpoint / "pytorch_model.bin")
    assert "run its code" in fails_in_one_line(checkpoint)
