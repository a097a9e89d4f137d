import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.inspection import out_of_distribution
from pipeline.inspection.out_of_distribution import FolderError
from pipeline.onnx import inference
from tests import tiny_onnx


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", out_of_distribution.KINDS)
def test_images_of_every_kind_are_as_many_and_as_large_as_the_given_ones_and_seeded(
    kind: str, images: np.ndarray
) -> None:
    make = out_of_distribution.KINDS[kind]
    first, again, other = (make(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == images.shape
    assert first.dtype == np.uint8
    assert (first == again).all()
    assert (first != other).any()


def test_a_plain_image_has_one_colour(images: np.ndarray) -> None:
    plain = out_of_distribution.draw_plain_colours(images, np.random.default_rng(0))
    assert (plain == plain[:, :1, :1]).all()


def test_shuffled_patches_are_the_same_pixels_in_other_places(images: np.ndarray) -> None:
    shuffled = out_of_distribution.shuffle_patches(images, np.random.default_rng(0))
    for before, after in zip(images, shuffled, strict=True):
        assert sorted(before.reshape(-1, 3).tolist()) == sorted(after.reshape(-1, 3).tolist())
        patches = {after[y : y + 4, x : x + 4].tobytes() for y in range(0, 32, 4) for x in range(0, 32, 4)}
        assert before[:4, :4].tobytes() in patches
        assert (before != after).any()


def test_a_folder_is_rendered_as_the_file_takes_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for number in range(5):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / "below" / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    classifier = inference.open_classifier(tiny_onnx.write(tmp_path / "tiny.onnx"), threads=1)
    whole = out_of_distribution.read_folder(tmp_path, classifier, 10, np.random.default_rng(0))
    assert whole.images.shape == (5, 8, 8, 3)
    assert whole.unreadable == []
    drawn = out_of_distribution.read_folder(tmp_path, classifier, 2, np.random.default_rng(0))
    assert len(drawn.images) == 2


def test_unreadable_files_of_a_folder_are_left_out_and_listed(tmp_path: Path) -> None:
    for number in range(9):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / f"{number}.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:50])
    classifier = inference.open_classifier(tiny_onnx.write(tmp_path / "tiny.onnx"), threads=1)
    out_of_distribution.check_folder(tmp_path)
    whole = out_of_distribution.read_folder(tmp_path, classifier, 10, np.random.default_rng(0))
    assert len(whole.images) == 8
    assert [Path(line.split()[0]).name for line in whole.unreadable] == ["2.png"]


@pytest.mark.parametrize("good", [0, 2])
def test_a_folder_of_which_half_cannot_be_read_is_refused_with_one_of_them_before_any_work(
    good: int, tmp_path: Path
) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    for number in range(4, 4 + good):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{number}.jpg")
    out = r"probe\.out_of_distribution = '.*'.* 4 of \d .*0\.jpg .*"
    if good == 0:
        classifier = inference.open_classifier(tiny_onnx.write(tmp_path / "tiny.onnx"), threads=1)
        with pytest.raises(FolderError, match=out):
            out_of_distribution.read_folder(tmp_path, classifier, 3, np.random.default_rng(0))
    with pytest.raises(FolderError, match=out):
        out_of_distribution.check_folder(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"must hold images$"):
        out_of_distribution.check_folder(tmp_path)
