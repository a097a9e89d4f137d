"""The photographs of the test split that people try a model on."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import __main__ as command_line
from pipeline import paths
from pipeline.data.arrow import Rows
from pipeline.data.store import ImageSet
from pipeline.shipping import samples
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL, Task
from tests import tiny_onnx

GPS = 0x8825


def images(labels: list[Any], classes: int, task: Task = SINGLE_LABEL, side: int = 40) -> ImageSet:
    """A split of JPEGs that say where they were taken, each with its own shade of grey."""
    rows = []
    for number, label in enumerate(labels):
        exif = Image.Exif()
        exif.get_ifd(GPS)[1] = "N"
        buffer = io.BytesIO()
        Image.new("RGB", (side, side + 8), (number, number, number)).save(buffer, "JPEG", exif=exif)
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": label})
    names = tuple(f"class {number}" for number in range(classes))
    return ImageSet(Rows(pa.Table.from_pylist(rows)), names, task)


@pytest.mark.parametrize(("classes", "each"), [(2, 3), (3, 3), (4, 3), (5, 2), (10, 1), (12, 1)])
def test_every_class_has_as_many_samples(tmp_path: Path, classes: int, each: int) -> None:
    drawn = samples.draw(images([k % classes for k in range(10 * classes)], classes), tmp_path, seed=0)
    assert [sample.labels for sample in drawn] == [
        (f"class {k}",) for k in range(classes) for _ in range(each)
    ]
    for sample in drawn:  # the answer is that of the photograph
        shade = np.asarray(Image.open(sample.file)).mean()
        assert sample.labels == (f"class {round(float(shade)) % classes}",)


def test_of_very_many_classes_twelve_are_shown(tmp_path: Path) -> None:
    drawn = samples.draw(images(list(range(100)), 100), tmp_path, seed=0)
    assert len({sample.labels for sample in drawn}) == len(drawn) == samples.MOST


def test_a_sample_has_all_attributes_of_its_photograph(tmp_path: Path) -> None:
    shares = [[1.0, 0.0, 0.7], [0.0, 0.0, 0.2]] * 10
    drawn = samples.draw(images(shares, 3, MULTI_LABEL), tmp_path, seed=0)
    assert {sample.labels for sample in drawn} == {("class 0", "class 2"), ()}


def test_samples_are_small_say_nothing_about_their_origin_and_replace_earlier_ones(tmp_path: Path) -> None:
    for side, size in ((40, (40, 48)), (800, (384, 388))):
        (tmp_path / "samples").mkdir(exist_ok=True)
        (tmp_path / "samples" / "sample-99.png").write_bytes(b"of earlier data")
        drawn = samples.draw(images([0, 1] * 4, 2, side=side), tmp_path / "samples", seed=0)
        assert sorted((tmp_path / "samples").iterdir()) == sorted(sample.file for sample in drawn)
        for sample in drawn:
            with Image.open(sample.file) as picture:
                assert picture.size == size
                assert not picture.getexif()


def test_predict_without_images_classifies_the_samples_and_prints_the_right_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    classes = ("class 0", "class 1")
    paths.ONNX.mkdir(parents=True)
    tiny_onnx.write(paths.onnx("tiny"), labels=classes, weights=np.eye(3, 2, dtype=np.float32))

    def predict(*options: str) -> int:
        monkeypatch.setattr("sys.argv", ["pipeline", "predict", "tiny", "--top", "1", *options])
        try:
            command_line.main()
        except SystemExit as end:
            return int(str(end.code or 0))
        return 0

    assert predict() == 1
    assert str(paths.DATA) in capsys.readouterr().err
    split = images([0, 1] * 4, 2)
    datasets.Dataset(split.rows.table).save_to_disk(paths.DATA / "test")
    (paths.DATA / "report.json").write_text(json.dumps({"classes": classes, "task": "single_label"}))
    configs = Path(__file__).parents[1] / "params.yaml"
    (tmp_path / "params.yaml").write_text(configs.read_text())
    assert predict() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("right: ")[2].rstrip(")") for line in lines] == 3 * ["class 0"] + 3 * ["class 1"]
    assert predict("--json") == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["right"] for answer in answers] == 3 * [["class 0"]] + 3 * [["class 1"]]
