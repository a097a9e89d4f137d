import gzip
import os
import pickle
import shutil
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.data import arrow, fetch, images, sampling, sources, splits, store, writing
from pipeline.data.arrow import Rows
from pipeline.data.batches import Request, ViewSet
from pipeline.data.sources import SourceError
from pipeline.data.views import ViewSpace
from pipeline.tasks import softmax_cross_entropy
from teachers.contract import InputContract

FACTS = {"source": "folder", "path": "x", "license": "CC0-1.0"}


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for stem, count in (("train", 60), ("t10k", 20)):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return tmp_path


def assign(listing: sources.Listing, train: int | None = None, val: int | float = 0.2, seed: int = 0):
    return splits.assign(listing.labelled, train=train, val=val, test=0.25, seed=seed)


def test_fashion_mnist_keeps_its_whole_test_split_and_takes_val_from_train(fashion: Path) -> None:
    made = assign(sources.fashion_mnist(fashion), train=30, val=10)
    assert {name: len(images) for name, images in made.items()} == {"train": 30, "val": 10, "test": 20}
    assert set(Counter(image.label for image in made.train).values()) == {3}
    assert set(Counter(image.label for image in made.val).values()) == {1}


def test_damaged_idx_files_are_named(fashion: Path) -> None:
    file = fashion / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(SourceError, match=r"t10k-labels.* is damaged"):
        sources.fashion_mnist(fashion)
    file.unlink()
    with pytest.raises(SourceError, match=r"t10k-labels.* is missing"):
        sources.fashion_mnist(fashion)


def test_a_folder_without_splits_is_split_by_class_and_content(photographs: Path) -> None:
    listing = sources.folder(photographs)
    made = assign(listing)
    assert listing.classes == ("blue", "green", "red")
    assert [len(images) for _, images in made.items()] == [43, 11, 18]
    hashes = [{image.sha256 for image in images} for _, images in made.items()]
    assert not hashes[0] & hashes[1]
    assert not (hashes[0] | hashes[1]) & hashes[2]
    again = splits.assign(listing.labelled[::-1], train=None, val=0.2, test=0.25, seed=0)
    assert {i.sha256 for i in again.test} == hashes[2]
    assert {i.sha256 for i in assign(listing, seed=1).test} != hashes[2]


def test_split_folders_are_kept_and_leaks_into_test_are_taken_out_of_train(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(12)]
    for index, picture in enumerate(pictures):
        split = ("train", "validation", "test")[index % 3]
        place = tmp_path / split / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{index}.png")
    (tmp_path / "train" / "a").mkdir(exist_ok=True)
    pictures[2].save(tmp_path / "train" / "a" / "leak.png")
    pictures[0].save(tmp_path / "train" / "a" / "repeat.bmp")
    (tmp_path / "train" / "a" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "train" / "a" / "notes.txt").write_text("hello")
    listing = sources.folder(tmp_path)
    made = assign(listing)
    assert [len(images) for _, images in made.items()] == [4, 4, 4]
    assert (made.leaked, made.repeated) == (1, 1)
    reasons = {item.source: item.reason for item in [*listing.rejected, *made.rejected]}
    assert "cannot be decoded" in reasons["train/a/broken.jpg"]
    assert "not an image" in reasons["train/a/notes.txt"]
    assert "of test" in reasons["train/a/leak.png"]
    assert "same content as" in reasons["train/a/repeat.bmp"]


def test_splits_made_anew_take_all_images_and_counts(photographs: Path) -> None:
    listing = sources.folder(photographs)
    given = [
        replace(item, split="test" if index % 2 else "train") for index, item in enumerate(listing.labelled)
    ]
    made = splits.assign(given, train=None, val=9, test=21, seed=0, anew=True)
    assert [len(images) for _, images in made.items()] == [42, 9, 21]
    assert Counter(item.label for item in made.test) == {0: 7, 1: 7, 2: 7}
    assert {item.split for item in made.test} == {"train", "test"}


def test_a_folder_of_unlabelled_images_joins_what_the_student_learns_from(
    tmp_path: Path, photographs: Path
) -> None:
    root = tmp_path / "raw"
    shutil.copytree(photographs, root)
    more = root / "unlabelled" / "from the web"
    more.mkdir(parents=True)
    random = np.random.default_rng(1)
    for name in ("one", "two", "three"):
        Image.fromarray(random.integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(more / f"{name}.png")
    shutil.copy(more / "one.png", more / "again.png")
    (more / "notes.txt").write_text("no picture")
    known = images.decode(photographs / "red" / "03.jpg")
    known.save(more / "known.png")
    listing = sources.read("folder", root)
    assert listing.classes == ("blue", "green", "red")
    made = splits.assign(listing.labelled, listing.unlabelled, train=None, val=0.2, test=0.25, seed=0)
    assert len(made.unlabelled) == 3
    assert {item.source for item in made.rejected} == {
        "unlabelled/from the web/one.png",
        "unlabelled/from the web/known.png",
    }
    report = writing.write(tmp_path / "data", listing, made, FACTS)
    assert report["images"]["unlabelled"] == 3
    train = store.read(tmp_path / "data", "train")
    training_images = store.read_training_images(tmp_path / "data")
    assert len(training_images) == len(train) + 3
    assert training_images.has_label.tolist() == [True] * len(train) + [False] * 3
    assert train.fully_labelled
    assert not training_images.fully_labelled
    assert sampling.choose(training_images, 10**6, seed=0).max() < len(train)
    batch = ViewSet(
        training_images, ViewSpace(seed=0, crop_scale=(0.5, 1.0), crop_ratio=(1.0, 1.0)), InputContract(32)
    )[Request([0, len(train)], 0, 32)]
    assert batch.labels.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    logits = torch.randn(2, 3)
    torch.testing.assert_close(
        softmax_cross_entropy(logits, batch.labels), softmax_cross_entropy(logits[:1], torch.tensor([0])) / 2
    )


def test_rows_of_several_files_are_read_from_them_in_every_process(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        {"image": {"bytes": random.bytes(9), "path": None}, "label": number, "source": f"{number}.png"}
        for number in range(30)
    ]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "split", num_shards=3)
    opened = arrow.read(tmp_path / "split")
    assert len(opened.files) == 3
    received = pickle.loads(pickle.dumps(opened))
    assert len(pickle.dumps(opened)) < 1000, "the content is not sent"
    both = received.followed_by(opened)
    for number in (0, 9, 10, 29):
        wanted = rows[number]["image"]["bytes"]
        assert received.encoded(number) == both.encoded(number) == both.encoded(30 + number) == wanted
        assert received.value("source", number) == f"{number}.png"
    assert opened.encoded(-1) == rows[29]["image"]["bytes"]
    some = both.select([59, 2])
    assert [some.encoded(row) for row in (0, 1)] == [rows[29]["image"]["bytes"], rows[2]["image"]["bytes"]]
    assert pickle.loads(pickle.dumps(some)).column("label") == [29, 2]
    assert some.has("label")
    assert not some.has("verified")


def test_some_rows_of_a_table_are_taken_without_the_others() -> None:
    encoded = [bytes([number]) * 2**20 for number in range(40)]
    parts = [pa.table({"image": [{"bytes": one} for one in encoded[i : i + 10]]}) for i in range(0, 40, 10)]
    rows = Rows(pa.concat_tables(parts))
    before = pa.total_allocated_bytes()
    some = rows.select([31, 0, 12])
    assert pa.total_allocated_bytes() - before < 4 * 2**20
    assert [some.encoded(row) for row in range(3)] == [encoded[31], encoded[0], encoded[12]]
    assert len(rows.select([])) == 0


def test_too_few_images_and_no_class_folders_are_said(tmp_path: Path, photographs: Path) -> None:
    with pytest.raises(SourceError, match=r"data\.path .* class folders.* 0$"):
        sources.folder(tmp_path)
    with pytest.raises(SourceError, match=r"data\.train.* 1000 .* 43 "):
        assign(sources.folder(photographs), train=1000)


def test_the_store_gives_back_pixels_labels_and_a_report(tmp_path: Path, photographs: Path) -> None:
    listing = sources.folder(photographs)
    made = assign(listing)
    report = writing.write(tmp_path / "data", listing, made, FACTS)
    assert report == store.read_report(tmp_path / "data")
    assert report["counts"]["test"] == {"blue": 6, "green": 6, "red": 6}
    read = store.read(tmp_path / "data", "val")
    assert (len(read), read.classes) == (11, ("blue", "green", "red"))
    for index, candidate in enumerate(made.val):
        assert sources.content_hash(read.image(index)) == candidate.sha256 == read.hashes[index]
        assert int(read.keys[index]) == int(candidate.sha256[:16], 16)
    again = writing.write(tmp_path / "again", listing, made, FACTS)
    assert again["data_sha256"] == report["data_sha256"]
    files = sorted(f.relative_to(tmp_path / "data") for f in (tmp_path / "data").rglob("*") if f.is_file())
    assert len(files) >= 10
    for file in files:
        assert (tmp_path / "data" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_images_that_are_trained_on_are_reduced_and_others_are_not(tmp_path: Path, photographs: Path) -> None:
    root = tmp_path / "raw"
    shutil.copytree(photographs, root)
    (root / "unlabelled").mkdir()
    Image.linear_gradient("L").save(root / "unlabelled" / "one.png")
    listing = sources.read("folder", root)
    made = splits.assign(listing.labelled, listing.unlabelled, train=None, val=0.2, test=0.25, seed=0)
    whole = writing.write(tmp_path / "whole", listing, made, FACTS)
    report = writing.write(tmp_path / "data", listing, made, FACTS, train_side=16)
    assert report["data_sha256"] != whole["data_sha256"]
    assert report["train_side"] == 16
    for split in ("train", "unlabelled", "val", "test"):
        before, after = store.read(tmp_path / "whole", split), store.read(tmp_path / "data", split)
        assert before.hashes == after.hashes
        sides = [
            [min(images.image(index).size) for index in range(len(images))] for images in (before, after)
        ]
        assert min(sides[0]) > 16
        assert sides[1] == (sides[0] if split in ("val", "test") else [16] * len(before))


def test_rotated_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(tmp_path / "side.jpg", exif=exif)
    assert images.decode(tmp_path / "side.jpg").size == (10, 30)


def test_calibration_is_stratified_shuffled_and_seeded(tmp_path: Path, photographs: Path) -> None:
    listing = sources.folder(photographs)
    writing.write(tmp_path / "data", listing, assign(listing), FACTS)
    images = store.read(tmp_path / "data", "train")
    chosen = sampling.choose(images, 12, seed=3)
    assert Counter(images.labels[chosen].tolist()) == {0: 4, 1: 4, 2: 4}
    assert not np.array_equal(images.labels[chosen], np.sort(images.labels[chosen]))
    np.testing.assert_array_equal(chosen, sampling.choose(images, 12, seed=3))
    assert set(chosen.tolist()) != set(sampling.choose(images, 12, seed=4).tolist())
    assert sorted(sampling.choose(images, 10**6, seed=0).tolist()) == list(range(len(images)))


def test_fetching_goes_on_to_the_next_way_and_says_why_all_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fashion: Path
) -> None:
    def refused(_scratch: Path) -> Path:
        raise RuntimeError("refused")

    monkeypatch.setattr(fetch, "_installed", refused)
    monkeypatch.setattr(fetch, "_torchvision", refused)
    monkeypatch.setattr(fetch, "_debian", lambda _scratch: fashion)
    fetch.fetch_fashion_mnist(tmp_path / "raw" / "target", report=lambda _line: None)
    assert sorted(f.name for f in (tmp_path / "raw" / "target").iterdir()) == sorted(fetch.FILES)
    monkeypatch.setattr(fetch, "_debian", refused)
    with pytest.raises(SourceError, match=r"refused; .*refused; .*refused"):
        fetch.fetch_fashion_mnist(tmp_path / "raw" / "other")


def test_folders_that_programs_leave_behind_are_no_classes(tmp_path: Path, photographs: Path) -> None:
    shutil.copytree(photographs, tmp_path / "set")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "set" / name).mkdir()
        shutil.copy(photographs / "red" / "00.jpg", tmp_path / "set" / name)
    assert sources.folder(tmp_path / "set").classes == ("blue", "green", "red")


def test_a_class_without_an_image_is_named(tmp_path: Path, photographs: Path) -> None:
    shutil.copytree(photographs, tmp_path / "set")
    (tmp_path / "set" / "teal").mkdir()
    (tmp_path / "set" / "teal" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(SourceError, match="'teal'"):
        sources.folder(tmp_path / "set")


def test_a_folder_beside_the_splits_is_listed(tmp_path: Path, photographs: Path) -> None:
    shutil.copytree(photographs, tmp_path / "set" / "train")
    shutil.copytree(photographs / "red", tmp_path / "set" / "more reds")
    listing = sources.folder(tmp_path / "set")
    assert [item.source for item in listing.rejected] == [
        f"more reds/{number:02}.jpg" for number in range(24)
    ]
    assert {item.kind for item in listing.rejected} == {"aside"}
    assert all("more reds" in item.reason and "beside train" in item.reason for item in listing.rejected)
    assert any("more reds" in note for note in listing.notes)


def test_the_same_picture_under_two_labels_is_reported(tmp_path: Path, photographs: Path) -> None:
    shutil.copytree(photographs, tmp_path / "set")
    shutil.copy(photographs / "red" / "00.jpg", tmp_path / "set" / "green" / "copy.jpg")
    shutil.copy(photographs / "red" / "01.jpg", tmp_path / "set" / "red" / "copy.jpg")
    labelled = sources.folder(tmp_path / "set").labelled
    made = splits.assign(labelled, train=None, val=0.2, test=0.25, seed=0)
    assert [(item.source, item.reason) for item in made.rejected] == [
        ("red/00.jpg", "same content as green/copy.jpg, which has another label"),
        ("red/copy.jpg", "same content as red/01.jpg"),
    ]


def test_file_names_in_other_encodings_are_kept_readable(tmp_path: Path, photographs: Path) -> None:
    shutil.copytree(photographs, tmp_path / "set")
    shutil.copy(photographs / "red" / "00.jpg", tmp_path / "set" / "red" / os.fsdecode(b"\xe4.jpg"))
    (tmp_path / "set" / "red" / "00.jpg").unlink()
    listing = sources.folder(tmp_path / "set")
    made = splits.assign(listing.labelled, train=None, val=0.2, test=0.25, seed=0)
    writing.write(tmp_path / "data", listing, made, {"license": "x"})
    stored = [s for split in ("train", "val", "test") for s in store.read(tmp_path / "data", split).sources]
    assert "red/\\xe4.jpg" in stored
