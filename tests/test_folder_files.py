"""Files of folders: links, odd names and places, and files that change while they are read."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import images, listing, reading, sources, splits, trees, writing
from pipeline.data.listing import SourceError
from tests.photo_folders import both, paint

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("places", "link", "target"),
    [
        (both("train"), "test", "train"),
        (both("train", "test"), "Validation", "test"),
        (both("set/train"), "set/test", "train"),
        (["gato", "perro"], "caballo", "gato"),
        ([*both("train"), "test/perro"], "test/gato", "../train/gato"),
        (both("elsewhere/../train"), "test", "train"),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_split_or_class_that_is_a_link_to_another_is_refused(
    tmp_path: Path, places: list[str], link: str, target: str, absolute: bool
) -> None:
    (tmp_path / "elsewhere").mkdir()
    paint(tmp_path, *places)
    (tmp_path / "elsewhere").rmdir()
    place = tmp_path / link
    place.symlink_to((place.parent / target).resolve() if absolute else target)
    with pytest.raises(SourceError) as caught:
        sources.read("folder", tmp_path)
    assert f"`{link}`" in str(caught.value)
    assert "link" in str(caught.value)


def test_two_links_to_one_folder_outside_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "real", "gato", "perro")
    (tmp_path / "set").mkdir()
    for name in ("train", "test"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "real")
    with pytest.raises(SourceError, match=r"`(test|train)` is a link"):
        sources.read("folder", tmp_path / "set")


@pytest.mark.parametrize(("link", "target"), [("latest", "train"), ("again", "."), (".hidden", "train")])
def test_other_links_beside_the_splits_are_listed(tmp_path: Path, link: str, target: str) -> None:
    paint(tmp_path, *both("train", "test"))
    (tmp_path / link).symlink_to(target)
    contents = sources.read("folder", tmp_path)
    assert [item.source for item in contents.rejected] == [link]
    assert len(contents.notes) == (0 if link.startswith(".") else 1)


def test_every_file_is_used_or_listed_with_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "set"
    paint(root, "train/cat", "train/dog", "val/cat", "val/dog", "test", "extra/deep", "train/loose.png")
    paint(root, "train/cat/.hidden", "train/dog/.h.png", "__MACOSX/train/cat", ".cache", "top.png")
    paint(root, "unlabelled/web", "train/unlabelled")
    paint(tmp_path, "elsewhere")
    for name in (
        "README.md",
        "train/dog/Thumbs.db",
        "train/cat/clip.mp4",
        "train/cat/none",
        "train/labels.csv",
    ):
        (root / name).write_bytes(b"x")
    (root / "train/cat/.DS_Store").write_bytes(b"x")
    (root / "train/cat/empty.png").write_bytes(b"")
    (root / "train/cat/photo.heic").write_bytes(b"x")
    (root / "train/dog/link.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (root / "train/dog/gone.png").symlink_to("nowhere")
    (root / "train/dog/self.png").symlink_to("self.png")
    (root / "train/dog/more").symlink_to(tmp_path / "elsewhere")
    (root / "train/dog/up").symlink_to("../..")
    (root / "train/dog/cats").symlink_to("../cat")
    os.mkfifo(root / "train/dog/pipe.png")
    contents = sources.read("folder", root)
    assigned = splits.assign(contents.labelled, contents.unlabelled, train=None, val=0.3, test=0.3, seed=0)
    reasons = {item.source: item.reason for item in [*contents.rejected, *assigned.rejected]}
    assert len(reasons) == len(contents.rejected) + len(assigned.rejected)
    used = {image.source for _, split in assigned.items() for image in split}
    seen = {
        str(Path(folder).relative_to(root) / name) for folder, _, files in os.walk(root) for name in files
    }
    assert (used | set(reasons)) >= seen
    assert not used & set(reasons)
    assert "train/dog/link.png" in used
    kinds = {item.source: item.kind for item in contents.rejected}
    assert {source: kinds[source] for source in (
        "README.md", "test/0.png", "extra/deep/1.png", "train/loose.png", "train/cat/.hidden/0.png",
        "train/dog/.h.png", "__MACOSX/train/cat/0.png", "top.png", "train/unlabelled/0.png",
        "train/cat/empty.png", "train/cat/photo.heic", "train/dog/gone.png", "train/dog/up",
        "train/dog/cats", "train/dog/pipe.png",
    )} == {
        "README.md": "no image", "test/0.png": "unlabelled", "extra/deep/1.png": "aside",
        "train/loose.png": "unlabelled", "train/cat/.hidden/0.png": "hidden", "train/dog/.h.png": "hidden",
        "__MACOSX/train/cat/0.png": "hidden", "top.png": "unlabelled", "train/unlabelled/0.png": "aside",
        "train/cat/empty.png": "damaged", "train/cat/photo.heic": "format", "train/dog/gone.png": "damaged",
        "train/dog/up": "link", "train/dog/cats": "link", "train/dog/pipe.png": "damaged",
    }  # fmt: skip
    # The linked file and the linked folder hold the same picture.
    assert reasons["train/dog/more/0.png"] == "same content as train/dog/link.png"
    assert any("`test`" in note and "2 images" in note for note in contents.notes)
    assert any("`extra`" in note for note in contents.notes)


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    paint(tmp_path / "real", "dog", "more")
    root = tmp_path / "set"
    paint(root, "cat")
    (root / "dog").symlink_to(tmp_path / "real" / "dog")
    for name in ("cat", "dog"):
        for other in ("cat", "dog", "."):
            (root / name / f"to {other}").symlink_to(root / other)
    (root / "cat" / "outside").symlink_to(tmp_path)
    (root / "cat" / "more").symlink_to(tmp_path / "real" / "more")
    (root / "cat" / "again").symlink_to(tmp_path / "real" / "more")
    contents = sources.read("folder", root)
    assert [image.source for image in contents.labelled] == [
        "cat/0.png", "cat/1.png", "cat/again/0.png", "cat/again/1.png", "dog/0.png", "dog/1.png",
    ]  # fmt: skip
    listed = {item.source: item.reason for item in contents.rejected}
    assert {"cat/to cat", "cat/to .", "cat/to dog", "cat/outside", "cat/more"} <= set(listed)
    assert "contains it" in listed["cat/outside"]
    assert "again" in listed["cat/more"]


def test_images_that_change_or_vanish_after_they_were_listed_end_in_one_line(tmp_path: Path) -> None:
    root = tmp_path / "set"
    paint(root, "cat", "dog", count=6)
    for change in ("vanish", "change"):
        contents = sources.read("folder", root)
        assigned = splits.assign(contents.labelled, train=None, val=0.2, test=0.2, seed=0)
        file = root / assigned.train[0].source
        before = file.read_bytes()
        file.unlink()
        if change == "change":
            Image.new("RGB", (5, 5)).save(file)
        with pytest.raises(SourceError, match=assigned.train[0].source):
            writing.write(tmp_path / "data", contents, assigned, {})
        file.write_bytes(before)


def test_a_file_that_vanishes_between_listing_and_reading_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path, "cat", "dog")
    walk = trees.walk

    def walk_and_remove(root: Path) -> trees.Tree:
        tree = walk(root)
        (root / "cat" / "1.png").unlink()
        return tree

    monkeypatch.setattr(trees, "walk", walk_and_remove)
    [rejected] = sources.read("folder", tmp_path).rejected
    assert (rejected.source, rejected.kind) == ("cat/1.png", "missing")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path, "cat", "dog", "owl/deep", "owl")
    scandir = os.scandir

    def refuse(folder: Path):
        if Path(folder).name in ("dog", "deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"'dog'.*Permission denied"):
        sources.read("folder", tmp_path)
    monkeypatch.setattr(
        os, "scandir", lambda folder: refuse(folder) if "deep" in str(folder) else scandir(folder)
    )
    assert [(item.source, item.kind) for item in sources.read("folder", tmp_path).rejected] == [
        ("owl/deep", "unreadable")
    ]


NAMES = {
    "not UTF-8": os.fsdecode(b"\xe4\xff.png"),
    "line break": "a\nb.png",
    "control": "a\x1b[31mb\x07.png",
    "right to left": "a\u202egnp.png",
    "long": "n" * 251 + ".png",
    "blank": " .png",
    "quotes": "'\"`$(x).png",
    "hash": "#%?*[0].png",
    "dash": "-rf.png",
    "backslash": "a\\b.png",
    "emoji": "🐈.png",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_files_of_any_name_are_used_and_printed_on_one_line(tmp_path: Path, name: str) -> None:
    paint(tmp_path / "set", "cat", "dog", count=5)
    paint(tmp_path / "set", f"cat/{name}", count=1)
    contents = sources.read("folder", tmp_path / "set")
    assert (len(contents.labelled), contents.rejected) == (11, [])
    assert all(image.source.isprintable() for image in contents.labelled)
    assigned = splits.assign(contents.labelled, train=None, val=0.2, test=0.2, seed=0)
    writing.write(tmp_path / "data", contents, assigned, {})
    (tmp_path / "set" / "cat" / name).write_bytes(b"damaged")
    [rejected] = sources.read("folder", tmp_path / "set").rejected
    assert rejected.source.isprintable()


def test_a_class_whose_name_is_not_in_utf_8_is_named(tmp_path: Path) -> None:
    paint(tmp_path, "cat", os.fsdecode(b"k\xe4se"))
    with pytest.raises(SourceError, match=r"k\\xe4se.*UTF-8"):
        sources.read("folder", tmp_path)


@pytest.mark.parametrize("place", ["/", "/proc", "/proc/self", "/sys", "/dev", "/home/..", "~", ".", ".."])
def test_places_that_hold_more_than_images_are_refused_without_looking(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "walk", lambda root: pytest.fail(f"{root} was listed"))
    for source in sources.SOURCES:
        with pytest.raises(SourceError, match=r"^data\.path \(="):
            sources.read(source, Path(place).expanduser())


@pytest.mark.parametrize(
    "kind", ["missing", "file", "link to nothing", "loop", "pipe", "long name", "zero byte"]
)
def test_what_is_no_folder_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    match kind:
        case "file":
            place.write_text("x")
        case "link to nothing":
            place.symlink_to("nowhere")
        case "loop":
            place.symlink_to("place")
        case "pipe":
            os.mkfifo(place)
        case "long name":
            place = tmp_path / ("n" * 300)
        case "zero byte":
            place = tmp_path / "a\0b"
    for source in sources.SOURCES:
        with pytest.raises(SourceError, match=r"^data\.path \(=.*must be a folder") as caught:
            sources.read(source, place)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("pipe", "pipe"),
        ("socket", "socket"),
        ("device", "device"),
        ("link to nothing", "link to nothing"),
        ("bytes", "UTF-8"),
        ("loop", "could not be looked at"),
    ],
)
def test_what_dvc_cannot_hash_is_named_before_it_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "set"
    paint(root, "cat", "dog")
    assert sources.check_files(root) == []
    file = root / "cat" / "odd.png"
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "socket":
            monkeypatch.chdir(root / "cat")
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("odd.png")
            monkeypatch.chdir(tmp_path)
        case "device":
            file.symlink_to("/dev/null")
        case "link to nothing":
            file.symlink_to("nowhere")
        case "bytes":
            paint(root, "cat/" + os.fsdecode(b"odd\xe4.png"), count=1)
        case "loop":
            file.symlink_to("odd.png")
    with pytest.raises(SourceError) as caught:
        sources.check_files(root)
    head, line = str(caught.value).splitlines()
    assert head.startswith(f"data.path (={root})")
    assert "cat/odd" in line
    assert word in line


def test_links_to_folders_whose_changes_dvc_does_not_notice_are_noted(tmp_path: Path) -> None:
    paint(tmp_path / "real", "dog")
    paint(tmp_path / "set", "cat")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "real" / "dog")
    # DVC does not look behind the link.
    (tmp_path / "real" / "dog" / "gone.png").symlink_to("nowhere")
    paint(tmp_path / "real", "dog/" + os.fsdecode(b"odd\xe4.png"), count=1)
    [note] = sources.check_files(tmp_path / "set")
    assert "dog" in note


def test_predict_takes_linked_files_and_folders_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    paint(tmp_path / "real", "deep")
    root = tmp_path / "set"
    paint(root, "a.png", ".hidden", count=1)
    (root / "b.png").symlink_to(tmp_path / "real" / "deep" / "0.png")
    (root / "c").symlink_to(tmp_path / "real")
    (root / "d.png").symlink_to("nowhere")
    (root / "loop").symlink_to(root)
    (root / "notes.txt").write_text("x")
    lines: list[str] = []
    found = [str(file.relative_to(root)) for file in images.find([str(root)], lines.append)]
    assert found == ["a.png", "b.png", "c/deep/0.png", "c/deep/1.png"]
    for word in ("notes.txt", "d.png", "loop", "0.png"):
        assert any(word in line for line in lines), word
    assert all(line.isprintable() for line in lines)
    lines.clear()
    assert [file.name for file in images.find([f"{root}/*.*"], lines.append)] == ["a.png", "b.png", "d.png"]
    assert len(lines) == 1
    assert "notes.txt" in lines[0]
    assert [file.name for file in images.find([f"{root}/{'n' * 300}.png"], lines.append)] == [
        "n" * 300 + ".png"
    ]


def test_a_name_that_the_terminal_lacks_is_printed_as_an_escape() -> None:
    code = (
        "from pipeline.running.process import one_line_errors\n"
        "with one_line_errors():\n"
        "    print('k\\u00e4se \\udce4')\n"
    )
    for encoding in ("ascii:strict", "utf-8:strict"):
        environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": encoding}
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        assert b"\\udce4" in result.stdout


def test_large_images_are_hashed_in_strips_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 11, 3), dtype=np.uint8)
    expected = hashlib.sha256(b"(11, 37)" + pixels.tobytes()).hexdigest()
    for strip in (1, 11, 50, 10_000):
        monkeypatch.setattr(listing, "STRIP_PIXELS", strip)
        assert listing.content_hash(Image.fromarray(pixels)) == expected


def test_results_are_computed_a_bounded_number_ahead() -> None:
    started: list[int] = []

    def note(number: int) -> int:
        started.append(number)
        return number

    results = reading.in_order(note, range(100), threads=2)
    assert next(results) == 0
    assert len(started) <= 5
    assert list(results) == list(range(1, 100))
