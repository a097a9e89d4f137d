import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import sources, splits, store, writing
from pipeline.evaluation import slices
from pipeline.evaluation.slices import MetadataError
from teachers.contract import InputContract

SOURCES = [f"{number:02}.jpg" for number in range(60)]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def square(scale: float, size: int = 64) -> np.ndarray:
    """A white square that covers ``scale`` of a black one."""
    pixels = np.zeros((size, size, 3), np.uint8)
    side = round(math.sqrt(scale) * size)
    low = (size - side) // 2
    pixels[low : low + side, low : low + side] = 255
    return pixels


def test_scale_is_the_share_that_is_not_background() -> None:
    assert slices.object_scale(square(0.25)) == 0.25
    assert slices.object_scale(255 - square(0.25)) == 0.25


def test_without_a_plain_background_there_is_no_scale() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert math.isnan(slices.object_scale(noise))


def test_built_in_columns_divide_the_images_by_their_content(tmp_path: Path) -> None:
    for label, (name, brightness) in enumerate({"dark": 40, "light": 200}.items()):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(60):
            pixels = np.full((40, 30 + number), brightness + number % 5 + label, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    listing = sources.folder(tmp_path / "images")
    assigned = splits.assign(listing.labelled, train=None, val=0.02, test=0.45, seed=0)
    writing.write(tmp_path / "data", listing, assigned, {"source": "folder", "path": "", "license": ""})
    # Most images are in train, and all splits are read alike.
    images = max((store.read(tmp_path / "data", name) for name in ("train", "test")), key=len)
    brightness, aspect, scale = slices.built_in(images, InputContract(32))
    assert [len(column.groups) for column in (brightness, aspect)] == [3, 3]
    darkest = next(iter(brightness.groups.values()))
    assert set(images.labels[darkest]) == {0}
    assert sum(mask.sum() for mask in aspect.groups.values()) == len(images)
    # Plain images have a plain border and no object.
    assert not scale.groups
    assert "the same for all images: 0" in scale.note


def test_a_column_of_words_gives_groups_and_many_numbers_as_tertiles(tmp_path: Path) -> None:
    lines = [f"{name},{'outside' if n % 3 else 'inside'},{n}" for n, name in enumerate(SOURCES)]
    file = write(tmp_path / "m.csv", ["file_name,place,exposure", *lines, "unknown.jpg,moon,5"])
    place, exposure = slices.read_metadata(file, SOURCES)
    assert {name: int(mask.sum()) for name, mask in place.groups.items()} == {"inside": 20, "outside": 40}
    assert [int(mask.sum()) for mask in exposure.groups.values()] == [20, 20, 20]


def test_images_that_the_table_does_not_name_are_in_no_group_and_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", ["file_name,place", "00.jpg,inside", "01.jpg,"])
    [place] = slices.read_metadata(file, SOURCES)
    assert {name: int(mask.sum()) for name, mask in place.groups.items()} == {"inside": 1}
    assert "59 of 60 test images have no value" in place.note


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["name,place", "00.jpg,inside"], "file_name and at least one other.*: name, place"),
        (["file_name", "00.jpg"], "its columns are: file_name"),
    ],
)
def test_a_table_without_information_is_refused(tmp_path: Path, lines: list[str], reason: str) -> None:
    with pytest.raises(MetadataError, match=reason):
        slices.read_metadata(write(tmp_path / "m.csv", lines), SOURCES)


def test_a_table_of_other_images_gives_no_groups_and_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows after all trainings, where nothing but these groups is lost."""
    file = write(tmp_path / "m.csv", ["file_name,place", "other.jpg,inside"])
    [place] = slices.read_metadata(file, SOURCES)
    assert not place.groups
    assert "60 of 60" in place.note
    assert "names none of the test images, such as '00.jpg'" in capsys.readouterr().err


def measure(per_group: int, wrong: dict[str, int]) -> dict:
    """A variant that is wrong on so many images of each group, and its parent that is always right."""
    names = np.repeat(list(wrong), per_group)
    truth = np.zeros(len(names), int)
    own = truth.copy()
    for name, count in wrong.items():
        own[np.flatnonzero(names == name)[:count]] = 1
    column = slices.Column("place", "metadata", {name: names == name for name in wrong}, "")
    answers = {"fp32": truth, "int8": own}
    return slices.measure(column, answers, {"int8": "fp32", "fp32": "teacher"}, truth)["variants"]


def test_the_group_that_lost_is_named_and_the_gap_has_an_interval() -> None:
    result = measure(200, {"day": 4, "dusk": 6, "night": 60})
    assert (result["int8"]["best"], result["int8"]["worst"]) == ("day", "night")
    assert result["int8"]["gap"] == pytest.approx(0.28)
    assert 0 < result["int8"]["gap_lo"] < 0.28 < result["int8"]["gap_hi"]
    assert result["int8"]["distinguishable"]
    assert [line["worse"] for line in result["int8"]["groups"]] == [False, False, True]
    assert "delta" not in result["fp32"]["groups"][0]


def test_a_gap_of_chance_is_not_distinguishable() -> None:
    assert not measure(200, {"day": 10, "dusk": 12, "night": 15})["int8"]["distinguishable"]


def test_a_group_of_a_few_images_is_neither_best_nor_worst() -> None:
    result = measure(10, {"day": 0, "night": 9})["int8"]
    assert result["worst"] is None
    assert result["groups"][1]["score"] == pytest.approx(0.1)
