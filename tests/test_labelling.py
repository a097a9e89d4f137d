"""Labelling block by block: the same store with any number of processes, in bounded memory."""

import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import files, provenance
from pipeline.data import batches, store
from pipeline.data.batches import Request, ViewSet
from pipeline.data.requests import Lazily
from pipeline.distillation import labelling, labels
from pipeline.distillation.labels import Answers, LabelError
from pipeline.running import affinity
from pipeline.tasks import SINGLE_LABEL
from pipeline.training import compute, loop
from pipeline.training.settings import ComputeSettings
from tests import labelling_ranks
from tests.labelling_ranks import CLASSES, CONTRACTS, KEY, SPACE, TOP, VIEWS

ARRAYS = (labels.VALUES, labels.TOP_CLASSES)
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "BATCH", 4)
    monkeypatch.setattr(labelling, "BLOCK", 8)


def label(data: Path, folder: Path) -> Path:
    """The store that one process makes."""
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    labelling_ranks.label(fabric, data, folder)
    return folder / "labels"


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one process has labelled, with its finished blocks."""
    folder = tmp_path_factory.mktemp("alone")
    label(prepared, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def label_in_processes(data: Path, folder: Path, count: int) -> list[str]:
    program = [sys.executable, "-m", "tests.labelling_ranks", str(data), str(folder), str(count)]
    done = subprocess.run(
        program,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))


@torch.no_grad()
def test_the_blocks_are_the_answers_to_whole_views_at_once(
    prepared: Path, alone: Path, tmp_path: Path
) -> None:
    """Each member is asked for all images view by view; then means and the most probable classes are taken
    over all images."""
    images = store.read(prepared, "train")
    views = []
    for view in range(VIEWS):
        members = []
        for seed, contract in enumerate(CONTRACTS):
            network = labelling_ranks.network(seed)
            requests = batches.sequential(range(len(images)), view, contract.size, 4)
            shown = ViewSet(images, SPACE, contract)
            parts = [network(contract.normalise(shown[request].images)) for request in requests]
            members.append(torch.cat(parts).to(torch.float16))
        views.append(SINGLE_LABEL.mean(members).to(torch.float16))
    logarithms = torch.stack(views, dim=1).float().log_softmax(-1)
    greatest, classes = logarithms.topk(TOP, dim=-1)
    rest = logarithms.scatter(-1, classes, -torch.inf).logsumexp(-1, keepdim=True)
    np.save(tmp_path / labels.VALUES, torch.cat([greatest, rest], dim=-1).half().numpy())
    np.save(tmp_path / labels.TOP_CLASSES, classes.numpy().astype(np.uint16))
    for name in ARRAYS:
        assert (alone / "labels" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert len(np.unique(np.load(tmp_path / labels.VALUES)[:, 0], axis=0)) > 0.9 * len(images)


def test_two_processes_make_the_store_of_one_and_go_on_where_another_number_was_stopped(
    prepared: Path, alone: Path, tmp_path: Path
) -> None:
    expected = contents(alone / "labels")
    assert label_in_processes(prepared, tmp_path / "two", 2) == ["rank 0 of 2", "rank 1 of 2"]
    assert contents(tmp_path / "two" / "labels") == expected
    assert contents(tmp_path / "two" / "partial") == contents(alone / "partial")
    blocks = sorted((tmp_path / "two" / "partial").iterdir())
    assert len(blocks) == 6
    for block in blocks[1:]:
        block.unlink()
    kept = blocks[0].stat().st_mtime_ns
    assert contents(label(prepared, tmp_path / "two")) == expected
    assert blocks[0].stat().st_mtime_ns == kept


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_are_started_by_the_main_thread(
    prepared: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Only there does PyTorch notice how one ends. Without such processes, a thread renders ahead."""
    threads: list[threading.Thread] = []

    class Watched(DataLoader[Any]):
        def __iter__(self) -> Any:
            threads.append(threading.current_thread())
            return super().__iter__()

    monkeypatch.setattr(batches, "DataLoader", Watched)
    monkeypatch.setattr(batches, "CHEAP", 0.0)
    monkeypatch.setattr(affinity, "limit_workers", lambda count: count)
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    labelling_ranks.label(fabric, prepared, tmp_path, workers)
    assert [thread is threading.main_thread() for thread in threads] == [workers > 0]
    assert contents(tmp_path / "labels") == contents(alone / "labels")


def test_a_damaged_block_is_labelled_again(
    prepared: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(alone / "partial", tmp_path / "partial")
    block = tmp_path / "partial" / "000002.npy"
    content = bytearray(block.read_bytes())
    content[300] ^= 1
    block.write_bytes(content)
    assert contents(label(prepared, tmp_path)) == contents(alone / "labels")
    assert "000002.npy.damaged" in capsys.readouterr().err


def test_a_block_that_another_process_did_not_leave_here_is_named(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone / "partial", tmp_path / "partial")
    (tmp_path / "partial" / "000003.npy").unlink()
    blocks = labelling.Blocks(tmp_path / "partial", 43, CLASSES)
    with pytest.raises(LabelError, match=r"000003\.npy"):
        labels.save(tmp_path / "labels", KEY, teacher="two", engine="x", blocks=blocks, images=43)
    assert list((tmp_path / "labels").iterdir()) == []


def test_what_is_in_memory_while_a_store_is_written_does_not_grow_with_the_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        def blocks() -> Iterator[Answers]:
            for number in range(count):
                values = np.full((500, 2, 51), number, np.float16)
                yield Answers(values, np.zeros((500, 2, 50), np.uint16), 1000)

        tracemalloc.start()
        key = replace(KEY, views=2, top=50)
        labels.save(tmp_path, key, teacher="x", engine="x", blocks=blocks(), images=500 * count)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    small, large = peak(4), peak(64)
    assert (tmp_path / labels.VALUES).stat().st_size > 6e6
    assert large < small + 50_000
    stored = labels.load(tmp_path, data_sha256="data", teacher_sha256="teacher", space=SPACE).answers
    np.testing.assert_array_equal(stored.values[::500, 0, 0], np.arange(64))


@pytest.mark.parametrize("classes", [2**16, 2**16 + 1, 70_000])
def test_classes_beyond_16_bits_keep_their_numbers(tmp_path: Path, classes: int) -> None:
    logits = np.zeros((2, 1, classes), np.float16)
    logits[0, 0, -1] = logits[1, 0, 3] = 20
    answers = labels.compact(logits, 2)
    labels.save(tmp_path, replace(KEY, views=1, top=2), teacher="x", engine="x", blocks=[answers], images=2)
    stored = labels.load(tmp_path, data_sha256="data", teacher_sha256="teacher", space=SPACE).answers
    shown = stored.at(np.array([0, 1]), 0)
    assert shown.shape == (2, classes)
    assert shown.argmax(1).tolist() == [classes - 1, 3]


def test_an_array_that_grows_is_the_one_that_is_written_at_once(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.float16).reshape(10, 2, 3)
    files.write_array(tmp_path / "whole.npy", array)
    with files.growing_array(tmp_path / "grown.npy", array.shape, array.dtype) as append:
        append(array[:7])
        append(array[7:])
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    with (
        pytest.raises(ValueError, match=r"short\.npy"),
        files.growing_array(tmp_path / "short.npy", array.shape, array.dtype) as append,
    ):
        append(array[:9])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["grown.npy", "whole.npy"]


def test_a_great_file_is_read_once_until_anything_about_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ALWAYS_READ", 4)
    monkeypatch.setattr(provenance, "SETTLED_SECONDS", 0.0)
    reads: list[Path] = []
    read = provenance.sha256
    monkeypatch.setattr(provenance, "sha256", lambda path: reads.append(path) or read(path))
    (tmp_path / "store").mkdir()
    great, small = tmp_path / "store" / "great", tmp_path / "store" / "small"
    for file in (great, small):
        file.write_bytes(file.name[:4].encode() if file is small else b"great file")
    digests = {file: read(file) for file in (great, small)}
    for _ in range(3):
        assert all(provenance.is_unchanged(file, digest) for file, digest in digests.items())
    assert reads == [great, small, small, small]
    assert {file.name for file in (tmp_path / "store").iterdir()} == {"great", "small"}
    before = great.stat()
    great.write_bytes(b"Great file")
    os.utime(great, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not provenance.is_unchanged(great, digests[great])
    assert provenance.is_unchanged(great, read(great))
    assert not provenance.is_unchanged(great, digests[great]), "the record is of the content, not of the name"


def test_a_file_that_may_still_change_within_the_same_tick_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ALWAYS_READ", 0)
    (tmp_path / "store").mkdir()
    file = tmp_path / "store" / "great"
    file.write_bytes(b"a")
    assert provenance.is_unchanged(file, provenance.sha256(file))
    assert [path.name for path in tmp_path.iterdir()] == ["store"], "nothing is recorded yet"


@pytest.mark.parametrize(("images", "batch", "views"), [(10, 4, None), (10, 4, 2), (7, 7, 3), (9, 1, 2)])
def test_the_order_of_a_training_is_drawn_when_it_is_needed(
    images: int, batch: int, views: int | None
) -> None:
    own = np.arange(images) * 3
    per_epoch, sizes = images // batch, [number % 5 for number in range(3 * (images // batch) + 1)]
    found = loop._requests(sizes, own, batch, 11, views)
    for number, request in enumerate(found):
        epoch, place = divmod(number, per_epoch)
        order = own[batches.shuffled(images, epoch, 11)]
        assert list(request.indices) == list(order[place * batch :][:batch])
        assert (request.view, request.size) == (epoch % (views or 10), number % 5)
    assert len(list(found)) == len(found) == len(sizes)


def test_a_slice_of_lazy_requests_is_lazy() -> None:
    made: list[int] = []
    requests = Lazily(100, lambda number: made.append(number) or Request([number], None, 1))
    later = requests[10:][5:20:2]
    assert (len(later), made) == (8, [])
    assert [request.indices for request in later] == [[number] for number in range(15, 30, 2)]
    assert made == list(range(15, 30, 2))
    assert (requests[-1].indices, later[-1].indices) == ([99], [29])
    with pytest.raises(IndexError):
        requests[100]
