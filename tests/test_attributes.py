"""Images with several attributes each, from the table that lists them to the score of the file."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Bernoulli, kl_divergence

from pipeline import tasks
from pipeline.data import sampling, sources, splits, store, writing
from pipeline.data.sources import SourceError
from pipeline.evaluation import scoring
from pipeline.onnx import inference
from pipeline.statistics.average_precision import average_precisions
from tests import tiny_onnx

NAMES = ("red", "green", "blue")
FACTS = {"source": "attributes", "path": "x", "license": "CC0-1.0"}


def paint(file: Path, number: int, targets: list[float]) -> None:
    """A picture whose channels are bright where it has the attribute, different from every other one."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[...] = [40 + round(160 * min(share, 1)) for share in targets]
    pixels[0, 0, 0] = number
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def table(folder: Path, rows: list[list[float]], names: tuple[str, ...] = NAMES) -> None:
    for number, row in enumerate(rows):
        paint(folder / f"{number}.png", number, row)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *names])
        writer.writerows([f"{number}.png", *row] for number, row in enumerate(rows))


def rows(count: int) -> list[list[float]]:
    return [[float(number % 2), float(number % 3 == 0), 0.25 * (number % 5)] for number in range(count)]


def test_metadata_csv_becomes_targets_on_disk(tmp_path: Path) -> None:
    table(tmp_path / "images", rows(40))
    listing = sources.attributes(tmp_path / "images")
    assert (listing.classes, listing.task, len(listing.labelled)) == (NAMES, "multi_label", 40)
    made = splits.assign(listing.labelled, train=None, val=0.2, test=0.25, seed=0)
    assert [len(images) for _, images in made.items()] == [24, 6, 10]
    report = writing.write(tmp_path / "data", listing, made, FACTS)
    train = store.read(tmp_path / "data", "train")
    assert (train.task, train.classes, train.labels.dtype) == (tasks.MULTI_LABEL, NAMES, np.float32)
    for index in range(len(train)):
        number = np.asarray(train.image(index))[0, 0, 0]
        assert train.labels[index].tolist() == rows(40)[number]
    assert report["counts"]["train"]["red"] == int((train.labels[:, 0] >= 0.5).sum())
    chosen = sampling.choose(train, 10, seed=0)
    assert len(set(chosen.tolist())) == 10


def test_split_folders_are_kept(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("validation", 4), ("test", 5)):
        table(tmp_path / split, rows(count))
    listing = sources.attributes(tmp_path)
    found = [image.split for image in listing.labelled]
    assert {split: found.count(split) for split in set(found)} == {"train": 12, "val": 4, "test": 5}


def test_celebas_tables_are_read_as_torchvision_keeps_them(tmp_path: Path) -> None:
    lines = ["4", "Smiling Young Hat"]
    for number, values in enumerate(["1 -1 1", "-1 -1 -1", "1 1 -1", "-1 1 1"]):
        paint(tmp_path / "img_align_celeba" / f"00000{number}.jpg", number, [0.0, 0.0, 0.0])
        lines.append(f"00000{number}.jpg  {values}")
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "list_eval_partition.txt").write_text(
        "000000.jpg 0\n000001.jpg 1\n000002.jpg 2\n000003.jpg 0\n"
    )
    listing = sources.attributes(tmp_path)
    assert listing.classes == ("Smiling", "Young", "Hat")
    assert [(image.split, image.label) for image in listing.labelled] == [
        ("train", (1.0, 0.0, 1.0)),
        ("val", (0.0, 0.0, 0.0)),
        ("test", (1.0, 1.0, 0.0)),
        ("train", (0.0, 1.0, 1.0)),
    ]


def test_wrong_tables_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"must hold metadata\.csv"):
        sources.attributes(tmp_path)
    table(tmp_path, [[0, 1, 2]])
    with pytest.raises(SourceError, match=r"line 2: blue = '2'; a number from 0 to 1"):
        sources.attributes(tmp_path)
    (tmp_path / "metadata.csv").write_text("name,red\na.png,1\n")
    with pytest.raises(SourceError, match=r"the column file_name and .* columns are: name"):
        sources.attributes(tmp_path)
    table(tmp_path, rows(3))
    (tmp_path / "1.png").unlink()
    assert [item.source for item in sources.attributes(tmp_path).rejected] == ["1.png"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("red,file_name\n1,/etc/a.png\n", r"line 2: file_name = '/etc/a.png'; a path below .* is expected"),
        ("red,file_name\n1,../a.png\n", r"line 2: file_name = '\.\./a.png'; a path below"),
        ("red,file_name\n1\n", "line 2: 2 values are expected, divided by ','; found 1"),
        ("file_name,red,red\na.png,1,0\n", "found file_name, red, red"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(SourceError, match=line):
        sources.attributes(tmp_path)


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes("file_name,grün\na.png,1\n".encode("latin-1"))
    with pytest.raises(SourceError, match=r"metadata\.csv is not in UTF-8"):
        sources.attributes(tmp_path)


@pytest.mark.parametrize(
    ("partition", "line"),
    [
        ("a.jpg 0\n\nb.jpg 7\n", r"partition\.txt, line 3: a file and one of 0, 1, 2 are expected"),
        ("a.jpg,0\n", r"partition\.txt, line 1: a file and one of 0, 1, 2 are expected; found 'a.jpg,0'"),
        ("a.jpg 0\n", r"celeba\.txt, line 5: b\.jpg is not in .*partition\.txt"),
    ],
)
def test_wrong_lines_of_celebas_tables_are_named(tmp_path: Path, partition: str, line: str) -> None:
    (tmp_path / "list_attr_celeba.txt").write_text("2\nSmiling Young\na.jpg 1 -1\n\nb.jpg 1 1\n")
    (tmp_path / "list_eval_partition.txt").write_text(partition)
    with pytest.raises(SourceError, match=line):
        sources.attributes(tmp_path)


def test_kl_is_that_of_independent_answers() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5), torch.randn(8, 5) * 4
    wanted = kl_divergence(Bernoulli(logits=teacher), Bernoulli(logits=student)).mean()
    torch.testing.assert_close(tasks.sigmoid_kl(student, teacher, 1.0), wanted)
    assert tasks.sigmoid_kl(teacher, teacher, 3.0).abs() < 1e-6


def test_a_file_is_scored_by_mean_average_precision(tmp_path: Path) -> None:
    model = tiny_onnx.write(tmp_path / "tiny.onnx")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 1, 1, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    colours = images[:, 0, 0].astype(np.float32)
    targets = (colours + random.normal(0, 60, colours.shape) > 128).astype(np.float32)
    result, kept = scoring.score(model, iter([images[:25], images[25:]]), targets, threads=1)
    assert kept is None
    assert result["metric"] == "map"
    wanted = average_precisions(colours, targets)
    assert result["map"] == pytest.approx(wanted.mean(), abs=1e-3)
    assert result["map_lo"] < result["map"] < result["map_hi"]
    assert [line["n"] for line in result["classes"]] == targets.sum(0).astype(int).tolist()
    assert np.asarray(result["predictions"]).shape == (60, 3)
    with pytest.raises(ValueError, match="3 attributes"):
        scoring.score(model, iter([images]), targets[:, :2], threads=1)


def test_predicted_attributes_do_not_share_one_whole(tmp_path: Path) -> None:
    contract = {"size": 8, "interpolation": "bilinear", "crop": 1.0}
    metadata = {
        "labels": json.dumps(NAMES),
        "input": json.dumps(contract),
        "task": tasks.MULTI_LABEL.onnx,
    }
    model = tiny_onnx.write(tmp_path / "tiny.onnx", metadata=metadata)
    paint(tmp_path / "photo.png", 200, [1.0, 1.0, 0.0])
    classifier = inference.open_classifier(model, threads=1)
    prediction = inference.predict(classifier, tmp_path / "photo.png", top=3)
    assert sum(guess.probability for guess in prediction.guesses) > 1.5
    assert {guess.label for guess in prediction.guesses[:2]} == {"red", "green"}
