from pathlib import Path

import pytest
from PIL import Image

from pipeline import images


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
