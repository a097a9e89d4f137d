from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.evaluation.confidence import Confidence
from pipeline.inspection import explanation
from pipeline.inspection.explanation import Album
from students.mobilenet_v1 import MobileNetV1
from teachers.contract import InputContract

CONTRACT = InputContract(64)


class Spot(nn.Module):
    """A classifier of two classes: the left half of the image is bright, or the right half."""

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(convolution.weight, 1 / 3)
        self.unit = nn.Sequential(convolution, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.unit(x)
        return torch.stack([x[..., :32].mean(dim=(1, 2, 3)), x[..., 32:].mean(dim=(1, 2, 3))], dim=1)


def test_the_map_is_warm_where_the_answer_comes_from() -> None:
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    image[:, 20:40, 5:20] = 255
    [warmth] = explanation.grad_cam(Spot(), CONTRACT, image, torch.tensor([0]))
    assert warmth[25, 10] == pytest.approx(1)
    assert warmth[5, 5] == warmth[25, 50] == 0


def test_an_image_that_speaks_for_no_class_has_a_map_of_zeros() -> None:
    black = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    assert (explanation.grad_cam(Spot(), CONTRACT, black, torch.tensor([0])) == 0).all()


def test_a_students_last_map_is_that_of_its_last_block_also_when_pruned() -> None:
    for channels in ([8] * 14, [8] * 13 + [16]):
        student = MobileNetV1(classes=3, channels=channels, size=64).eval()
        assert explanation.last_map(student) == "blocks.12.pointwise"
        images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
        maps = explanation.grad_cam(student, CONTRACT, images, torch.tensor([0, 2]))
        assert maps.shape == (2, 64, 64)
        assert maps.min() >= 0
        assert maps.max() <= 1 + 1e-6


def test_the_overlay_is_the_image_in_grey_where_the_map_is_cold() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    grey = np.asarray(explanation.overlay(image, np.zeros((8, 8))))
    assert (grey == np.asarray(Image.fromarray(image).convert("L"))[..., None]).all()
    warm = np.asarray(explanation.overlay(image, np.ones((8, 8)))).astype(int)
    assert (warm[..., 0] > warm[..., 2]).all()


def test_similarity_of_a_map_with_itself_is_one_and_with_a_constant_one_unknown() -> None:
    warmth = np.random.default_rng(0).random((8, 8))
    assert explanation.similarity(warmth, warmth) == pytest.approx(1)
    assert explanation.similarity(warmth, 1 - warmth) == pytest.approx(-1)
    assert explanation.similarity(warmth, np.zeros((8, 8))) is None


@pytest.fixture
def album(tmp_path: Path) -> Album:
    labels = np.array([0, 0, 1, 1, 2, 2])
    return Album(
        tmp_path,
        lambda indices: torch.full((len(indices), 8, 8, 3), 7, dtype=torch.uint8),
        labels,
        ("red", "green", "blue"),
        [f"{number}.jpg" for number in range(6)],
    )


def answered(predictions: list[int], confidence: list[float]) -> Confidence:
    unused = np.zeros(len(predictions))
    return Confidence(np.array(predictions), np.array(confidence), unused, unused)


def test_flips_are_the_images_whose_correctness_changed_the_surest_first(album: Album) -> None:
    variant = answered([1, 0, 2, 0, 2, 2], [0.4, 0.5, 0.6, 0.9, 0.5, 0.5])
    parent = answered([0, 1, 1, 1, 2, 0], [0.7, 0.7, 0.7, 0.8, 0.7, 0.7])
    flips = explanation.find_flips(album, variant, parent, "fp32", most=2)
    assert [line["index"] for line in flips["lost"]] == [3, 2]
    assert [line["index"] for line in flips["gained"]] == [1, 5]
    first = flips["lost"][0]
    assert (first["truth"], first["parent_answer"], first["answer"]) == ("green", "green", "red")
    assert (first["source"], first["confidence"], first["parent_confidence"]) == ("3.jpg", 0.9, 0.8)
    assert all((album.folder / line["file"]).is_file() for line in flips["lost"] + flips["gained"])


def test_confusions_show_their_surest_examples(album: Album) -> None:
    variant = answered([1, 1, 1, 1, 2, 0], [0.4, 0.5, 0.6, 0.9, 0.5, 0.5])
    first, second = explanation.find_confusions(album, variant)
    assert (first["truth"], first["answer"], first["count"], first["of"]) == ("red", "green", 2, 2)
    assert [line["index"] for line in first["examples"]] == [1, 0]
    assert (second["truth"], second["answer"]) == ("blue", "red")
