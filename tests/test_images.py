import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp", "[1].png", "notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".txt":
            file.touch()
        else:
            Image.new("RGB", (4, 4)).save(file)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("", ["[1].png", "a.PNG", "b.jpg", "deep/er/c.webp"]),
        ("*.jpg", ["b.jpg"]),
        ("**/*.webp", ["deep/er/c.webp"]),
        ("[1].png", ["[1].png"]),
        ("*", ["[1].png", "a.PNG", "b.jpg", "deep/er/c.webp"]),
        ("de*", ["deep/er/c.webp"]),
        ("notes.txt", ["notes.txt"]),
        ("absent/*.png", ["absent/*.png"]),
    ],
)
def test_a_place_gives_its_images_in_order(folder: Path, place: str, names: list[str]) -> None:
    assert [str(file.relative_to(folder)) for file in images.find([f"{folder}/{place}"])] == names


def test_a_folder_without_images_is_given_back_to_be_named(folder: Path) -> None:
    (folder / "empty").mkdir()
    places = [str(folder / "empty"), str(folder / "b.jpg")]
    assert [str(file) for file in images.find(places)] == places


def test_colours_and_8_bits_of_grey_are_read_and_more_bits_are_refused(tmp_path: Path) -> None:
    colour = Image.new("RGB", (2, 1), (200, 100, 50))
    for mode, suffix in (
        ("L", "png"),
        ("LA", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("1", "png"),
    ):
        colour.convert(mode).save(tmp_path / f"{mode}.{suffix}")
        assert images.decode(tmp_path / f"{mode}.{suffix}").mode == "RGB"
    grey = np.array([[0, 255, 256, 65535]])
    for name, values in (("16.png", grey.astype(np.uint16)), ("float.tif", grey.astype(np.float32))):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(ValueError, match="grey values of more than 8 bits"):
            images.decode(tmp_path / name)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize(("size", "expected"), [((90, 120), (128, 96)), ((120, 90), (96, 128))])
def test_a_larger_image_is_reduced_upright_to_its_shorter_side(
    size: tuple[int, int], expected: tuple[int, int], mode: str, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = Image.linear_gradient("L").resize((size[0] * 12, size[1] * 12)).convert(mode)
    file = tmp_path / "side.jpg"
    ramp.save(file, exif=exif, quality=100)
    whole, partly = images.decode(file), images.decode(file, at_least=2 * 96)
    assert 2 * 96 <= min(partly.size) < min(whole.size)
    reduced = images.decode(images.reduce(file.read_bytes(), 96))
    assert reduced.size == expected
    small = [np.asarray(image.resize((24, 24)), dtype=np.int16) for image in (whole, reduced)]
    assert np.abs(small[0] - small[1]).max() <= 3


def test_what_is_too_long_for_a_jpeg_stays_as_it_is(tmp_path: Path) -> None:
    Image.new("L", (20, 70_000)).save(tmp_path / "strip.png")
    strip = (tmp_path / "strip.png").read_bytes()
    assert images.reduce(strip, 19) == strip
    assert images.decode(tmp_path / "strip.png").size == (20, 70_000)


def test_a_long_comment_is_left_behind(tmp_path: Path) -> None:
    Image.new("L", (200, 100), 9).save(tmp_path / "said.gif", comment=b"x" * 70_000)
    reduced = images.reduce((tmp_path / "said.gif").read_bytes(), 50)
    with Image.open(io.BytesIO(reduced)) as image:
        assert (image.format, image.size) == ("JPEG", (100, 50))
        assert "comment" not in image.info


def test_an_image_that_is_not_larger_stays_byte_for_byte(tmp_path: Path) -> None:
    Image.new("RGB", (96, 200)).save(tmp_path / "tall.png")
    encoded = (tmp_path / "tall.png").read_bytes()
    assert images.reduce(encoded, 96) == encoded
