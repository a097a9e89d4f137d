"""A float student in transformers' own network: the same answers, and one line where that is not possible."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import MobileNetV1Config, MobileNetV1ForImageClassification, MobileNetV1ImageProcessor

import students
from pipeline.models import hugging_face, initialisation
from pipeline.models.hugging_face import NotExpressibleError
from pipeline.models.storage import Model
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract
from tests import tiny_students

LABELS = ("a", "b", "a hat & more", "été")


def student(size: int = 64, **arguments: Any) -> Model:
    """A student of random weights whose batch norms have seen images, so that its answers depend on them."""
    values = {"classes": 4, "channels": list(scaled_channels(0.25)), "size": size, **arguments}
    contract = InputContract(size, (0.5, 0.4, 0.3), (0.5, 0.25, 1.0), "bicubic", 0.8)
    torch.manual_seed(0)
    module = students.build("mobilenet_v1", values)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, mean=0.5, std=0.3)
    nn.init.normal_(module.get_parameter("classifier.weight"))
    with torch.no_grad():
        module.train()(contract.normalise(tiny_students.photographs(16, size)))
    return Model(module.eval(), tiny_students.card(values, contract, labels=LABELS))


def picture(width: int, height: int) -> Image.Image:
    torch.manual_seed(0)
    return Image.fromarray(tiny_students.photographs(1, max(width, height))[0, :height, :width].numpy())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"activation": "relu6", "padding": "same"},
        {"padding": "same", "size": 97},
        {"norm_eps": 0.05, "dropout": 0.5},
        {"channels": [4] * 6 + [8] * 6 + [16] * 2, "size": 33},
        {"channels": [8, 8, 10, 10, 20, 20, 40, 40, 40, 40, 40, 40, 80, 80]},
    ],
    ids=str,
)
def test_transformers_loads_the_weights_and_gives_the_same_logits(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = student(**arguments)
    hugging_face.write(model, tmp_path)
    network = MobileNetV1ForImageClassification.from_pretrained(tmp_path)
    images = model.card.input.normalise(tiny_students.photographs(4, model.card.input.size))
    with torch.inference_mode():
        theirs, ours = network(images).logits, model.module(images)
    assert ours.std(dim=0).mean() > 0.01
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert network.config.id2label == dict(enumerate(LABELS))
    assert (network.config.label2id or {})["été"] == 3


def test_what_was_written_starts_a_student_with_the_same_input_and_settings(tmp_path: Path) -> None:
    model = student(activation="relu6", padding="same", norm_eps=0.02)
    assert {file.name for file in hugging_face.write(model, tmp_path)} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    start = initialisation.hugging_face(str(tmp_path))
    assert start.arguments == {"activation": "relu6", "padding": "same", "norm_eps": 0.02}
    assert (start.labels, start.mean, start.std) == (LABELS, model.card.input.mean, model.card.input.std)
    assert (start.size, start.crop) == (64, 0.8)
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(start.tensors[name], tensor), name


def test_the_image_processor_makes_nearly_the_same_pixels(tmp_path: Path) -> None:
    contract = InputContract(64, (0.5, 0.4, 0.3), (0.5, 0.25, 1.0))
    model = student()
    hugging_face.write(replace(model, card=replace(model.card, input=contract)), tmp_path)
    image = picture(192, 144)
    square = contract.render(image, contract.centre_box(*image.size))
    ours = contract.normalise(torch.from_numpy(np.array(square))[None])
    processor = MobileNetV1ImageProcessor.from_pretrained(tmp_path)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().mean() < 0.02
    assert ours.std() > 0.2


def test_the_pipeline_of_transformers_answers_for_each_attribute_by_itself(tmp_path: Path) -> None:
    model = student()
    hugging_face.write(replace(model, card=replace(model.card, task="multi_label")), tmp_path)
    classify = transformers.pipeline("image-classification", model=str(tmp_path))
    answers = {answer["label"]: answer["score"] for answer in classify(picture(80, 80))}
    processor = MobileNetV1ImageProcessor.from_pretrained(tmp_path)
    with torch.inference_mode():
        [logits] = model.module(processor(picture(80, 80), return_tensors="pt")["pixel_values"])
    chances = dict(zip(LABELS, logits.sigmoid().tolist(), strict=True))
    assert answers == {label: pytest.approx(chance, abs=1e-4) for label, chance in chances.items()}


@pytest.mark.parametrize("width", [0.05, 0.25, 0.5, 0.75, 0.9, 1.0, 1.3, 2.0])
def test_a_multiplier_that_transformers_rounds_to_our_channels_is_found(width: float) -> None:
    channels = tuple(max(int(base * width), 8) for base in scaled_channels(1.0))
    found = hugging_face.multiplier(channels)
    assert found is not None
    config = MobileNetV1Config(depth_multiplier=found[0], min_depth=found[1])
    network = MobileNetV1ForImageClassification(config)
    layers = network.mobilenet_v1.layer
    actual = [network.mobilenet_v1.conv_stem, *layers[1::2]]
    assert tuple(layer.convolution.out_channels for layer in actual) == channels


def test_published_widths_have_their_own_name() -> None:
    for width in (0.25, 0.5, 0.75, 1.0):
        assert hugging_face.multiplier(scaled_channels(width)) == (width, 8)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (student(channels=list(tiny_students.NARROW)), "depth_multiplier"),
        (Model(tiny_students.folded(student()).module, student(norm=False).card), "batch norms"),
        (tiny_students.int8_student(), "quantised"),
    ],
    ids=["free widths", "folded", "int8"],
)
def test_a_network_that_transformers_does_not_have_is_one_line(
    model: Model, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(NotExpressibleError, match=reason) as caught:
        hugging_face.write(model, tmp_path)
    assert model.card.variant in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
