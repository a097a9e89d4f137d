"""Checkpoints and other stores that work goes on from: whatever is damaged is left aside, with a word."""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import cache, files
from pipeline.training import checkpoints
from pipeline.training.checkpoints import FILE, Progress

PROGRESS = Progress(7, [{"epoch": 1.0, "loss": 0.5}])


class Training:
    """A tiny network with an average and an optimiser that has made a step."""

    def __init__(self, seed: int, width: int = 4) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.averaged = copy.deepcopy(self.module)
        self.optimizer = torch.optim.AdamW(self.module.parameters())
        self.module(torch.rand(5, 3)).square().sum().backward()
        self.optimizer.step()

    def save(self, folder: Path, identity: str = "a") -> None:
        checkpoints.save(
            folder,
            identity,
            PROGRESS,
            module=self.module,
            averaged=self.averaged,
            optimizer=self.optimizer,
        )

    def restore(self, folder: Path, identity: str = "a") -> Progress | None:
        return checkpoints.restore(
            folder, identity, module=self.module, averaged=self.averaged, optimizer=self.optimizer
        )

    def tensors(self) -> list[Tensor]:
        states = self.optimizer.state_dict()["state"].values()
        tensors = [*self.module.state_dict().values(), *self.averaged.state_dict().values()]
        return [
            tensor.clone()
            for tensor in [*tensors, *(state[key] for state in states for key in sorted(state))]
        ]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    """The content of a checkpoint in `tmp_path`."""
    Training(1).save(tmp_path)
    return (tmp_path / FILE).read_bytes()


def test_a_checkpoint_restores_everything(tmp_path: Path, written: bytes) -> None:
    training = Training(2)
    assert training.restore(tmp_path) == PROGRESS
    assert equal(training.tensors(), Training(1).tensors())
    assert (tmp_path / FILE).read_bytes() == written
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]


def test_one_of_another_identity_is_left_where_it_is(
    tmp_path: Path, written: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(2)
    assert training.restore(tmp_path, "b") is None
    assert equal(training.tensors(), Training(2).tensors())
    assert (tmp_path / FILE).read_bytes() == written
    assert capsys.readouterr().err == ""


def left_aside(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line about the checkpoint that a new training left aside; nothing of it was taken."""
    training = Training(2)
    before = training.tensors()
    assert training.restore(folder) is None
    assert equal(training.tensors(), before)
    assert not os.path.lexists(folder / FILE)
    assert os.path.lexists(folder / f"{FILE}.damaged")
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert str(folder / FILE) in err
    training.save(folder)
    assert training.restore(folder) == PROGRESS
    return err


def cut(content: bytes, source: random.Random) -> bytes:
    return content[: source.randrange(len(content))]


def flip(content: bytes, source: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 50))):
        changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
    return bytes(changed)


def flip_in_header(content: bytes, source: random.Random) -> bytes:
    size = 8 + int.from_bytes(content[:8], "little")
    return flip(content[:size], source) + content[size:]


def zero(content: bytes, source: random.Random) -> bytes:
    start, length = source.randrange(len(content)), source.randrange(1, 600)
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def insert(content: bytes, source: random.Random) -> bytes:
    start = source.randrange(len(content) + 1)
    return content[:start] + source.randbytes(source.randrange(1, 20)) + content[start:]


def exchange(content: bytes, source: random.Random) -> bytes:
    """Two numbers of the header exchanged, so that it stays valid JSON."""
    size = 8 + int.from_bytes(content[:8], "little")
    places = [i for i in range(8, size) if content[i : i + 1].isdigit()]
    a, b = source.sample(places, 2)
    changed = bytearray(content)
    changed[a], changed[b] = changed[b], changed[a]
    return bytes(changed)


DAMAGES = (cut, flip, flip_in_header, zero, insert, exchange)


def test_none_of_1000_random_damages_raises_or_changes_a_value(
    tmp_path: Path, written: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    source = random.Random(0)
    training = Training(2)
    before = training.tensors()
    aside = 0
    for number in range(1000):
        damaged = DAMAGES[number % len(DAMAGES)](written, source)
        if damaged == written:
            continue
        (tmp_path / FILE).write_bytes(damaged)
        assert training.restore(tmp_path) is None
        assert equal(training.tensors(), before)
        assert (tmp_path / f"{FILE}.damaged").read_bytes() == damaged
        assert len(capsys.readouterr().err.splitlines()) == 1
        aside += 1
    assert aside > 900


def folder_in_its_place(file: Path) -> None:
    file.mkdir()
    (file / "a").touch()


def foreign(file: Path) -> None:
    save_file({"module.0.weight": torch.ones(4, 3)}, file, {"identity": "a", "step": "3", "history": "[]"})


PLACES: dict[str, Callable[[Path], object]] = {
    "an empty file": lambda file: file.touch(),
    "a folder": folder_in_its_place,
    "a link to a folder": lambda file: file.symlink_to(file.parent),
    "a pipe": lambda file: os.mkfifo(file),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "JSON of another type": lambda file: file.write_text("[]"),
    "a picture": lambda file: file.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256))),
    "a length beyond the file": lambda file: file.write_bytes(b"\xff" * 64),
    "a foreign safetensors file": foreign,
}


@pytest.mark.parametrize("place", PLACES)
def test_what_lies_in_its_place_is_left_aside_twice(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    PLACES[place](tmp_path / FILE)
    left_aside(tmp_path, capsys)
    (tmp_path / FILE).unlink()
    PLACES[place](tmp_path / FILE)
    left_aside(tmp_path, capsys)


def other_width(training: Training) -> None:
    training.module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))


def other_type(training: Training) -> None:
    training.averaged = training.averaged.double()


def more_layers(training: Training) -> None:
    training.module = nn.Sequential(*training.module, nn.Linear(4, 4))


def fewer_layers(training: Training) -> None:
    training.module = nn.Sequential(training.module[0])


def other_optimizer(training: Training) -> None:
    other = Training(3, width=6)
    training.optimizer = other.optimizer


@pytest.mark.parametrize("change", [other_width, other_type, more_layers, fewer_layers, other_optimizer])
def test_a_whole_checkpoint_of_another_network_is_left_aside(
    tmp_path: Path, change: Callable[[Training], None], capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(1)
    change(training)
    training.save(tmp_path)
    left_aside(tmp_path, capsys)


def test_a_header_that_says_something_else_is_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for history in ("{}", "[1]", "[", "null"):
        with monkeypatch.context() as patch:
            patch.setattr(json, "dumps", lambda _, text=history: text)
            Training(1).save(tmp_path)
        left_aside(tmp_path, capsys)


def test_networks_that_share_tensors_are_restored(tmp_path: Path) -> None:
    training = Training(1)
    shared = nn.Linear(4, 4)
    training.module = nn.Sequential(shared, shared, nn.Linear(4, 4))
    training.averaged = copy.deepcopy(training.module)
    training.optimizer = torch.optim.AdamW(training.module.parameters())
    training.save(tmp_path)
    again = copy.deepcopy(training)
    with torch.no_grad():
        shared.weight.zero_()
    assert training.restore(tmp_path) == PROGRESS
    assert equal(training.tensors(), again.tensors())
    assert training.module[1].weight is shared.weight


def test_a_sealed_file_is_intact_until_it_is_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "0.npy"
    assert not files.intact(file, "it is made again")
    assert capsys.readouterr().err == ""
    source = random.Random(0)
    for number in range(200):
        with files.replacing(file) as fresh:
            with fresh.open("wb") as stream:
                np.save(stream, np.full((3, 4), number, np.float16))
            files.seal(fresh)
        assert files.intact(file, "it is made again")
        assert (np.load(file, mmap_mode="r") == number).all()
        damage = DAMAGES[number % 2]
        file.write_bytes(damage(file.read_bytes(), source))
        assert not files.intact(file, "it is made again")
        assert not file.exists()
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", '{"a": "1"}', '{"a": null}', '{"a": -1}', '{"a": NaN}', '{"a": 1', "\x00"],
)
def test_a_damaged_cache_is_left_aside(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cache.json"
    file.write_text(content)
    assert cache.read(file, cache.MEASUREMENTS) is None
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert str(file) in err
    assert (tmp_path / "cache.json.damaged").read_text() == content
    assert cache.read(file, cache.MEASUREMENTS) is None
    assert capsys.readouterr().err == ""
    file.write_text('{"a": 1, "b": 0.5}')
    assert cache.read(file, cache.MEASUREMENTS) == {"a": 1.0, "b": 0.5}
