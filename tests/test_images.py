import io
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from pipeline import pixels
from pipeline.data import images
from pipeline.data.images import ImageFileError
from tests import odd_images

READABLE = odd_images.readable()
UNREADABLE = odd_images.unreadable()


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


@pytest.mark.parametrize("name", READABLE)
def test_every_kind_of_image_is_read_as_upright_rgb(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(READABLE[name])
    image = images.decode(tmp_path / name)
    assert image.mode == "RGB"
    turned = any(f"turned_{orientation}." in name for orientation in (5, 6, 7, 8))
    assert image.size == ((30, 40) if turned else (40, 30))


def test_damaged_exif_of_a_photograph_is_ignored() -> None:
    pair = [np.asarray(images.decode(READABLE[name])) for name in ("damaged_exif.jpg", "rgb.jpg")]
    assert (pair[0] == pair[1]).all()


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "rgb.bmp", "grey.png", "grey.jpg", "palette.png"])
def test_ordinary_images_are_what_pillow_reads(name: str) -> None:
    with Image.open(io.BytesIO(READABLE[name])) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert (np.asarray(images.decode(READABLE[name])) == wanted).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_pillow_turns_it(orientation: int) -> None:
    content = READABLE[f"turned_{orientation}.png"]
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert (np.asarray(images.decode(content)) == wanted).all()


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bits_of_grey_become_8_over_their_whole_range(byte_order: str) -> None:
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    mode = {"<u2": "I;16", ">u2": "I;16B"}[byte_order]
    image = Image.frombytes(mode, (256, 256), values.astype(byte_order).tobytes())
    pixels = np.asarray(images.decode(odd_images.encode(image, "TIFF")))
    assert (pixels == np.rint(values / 257)[:, :, None]).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("white_is_zero.tif", 255 - odd_images.RAMP[:, :, 2:].astype(int)),
        ("planes.tif", odd_images.RAMP),
        ("deep.tif", np.rint(odd_images.DEEP[:, :, 2:] / 257)),
        ("deep_rgb.png", odd_images.DEEP // 256),
        ("grey_1_key.png", np.full((30, 40, 1), 255) * 1 - 255 * (odd_images.X % 2 == 0)[..., None]),
        ("grey_2.png", (odd_images.X % 4 * 85)[..., None]),
        ("grey_4.png", (odd_images.X % 16 * 17)[..., None]),
    ],
)
def test_values_of_every_depth_have_the_range_that_their_file_means(name: str, expected: np.ndarray) -> None:
    pixels = np.asarray(images.decode(READABLE[name])).astype(int)
    assert (pixels == np.broadcast_to(expected, pixels.shape)).all()


def test_pillow_still_misreads_the_kinds_that_are_refused_for_it() -> None:
    # Where this fails, a later Pillow reads the kind right, and it need not be refused any more.
    files = odd_images.misread()
    grey = {
        "white_is_zero_16.tif": 255 - np.rint(odd_images.DEEP[:, :, 2] / 257),
        "signed_8.tif": odd_images.X + 128,
        "grey_12.tif": odd_images.X * 100 / 4095 * 255,
    }
    for name, expected in grey.items():
        with Image.open(io.BytesIO(files[name])) as image:
            values = np.asarray(image).astype(int) // (257 if image.mode.startswith("I;16") else 1)
        assert np.abs(values - expected).max() > 2, name
    with Image.open(io.BytesIO(files["planes_16.tif"])) as image:
        assert np.abs(np.asarray(image).astype(int) - odd_images.DEEP // 256).max() > 2
    for name in ("grey_2_key.png", "grey_4_key.png", "deep_rgb_key.png"):
        with Image.open(io.BytesIO(files[name])) as image:
            alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
        clear = odd_images.X % {"2": 4, "4": 16}.get(name[5], 99) == 1
        if name.startswith("deep"):
            clear = (odd_images.DEEP[3, 3] == odd_images.DEEP).all(axis=2)
        assert ((alpha == 0) != clear).any(), name


@pytest.mark.parametrize("name", ["alpha.png", "alpha.webp", "alpha.tif", "grey_alpha.png"])
def test_what_is_hidden_under_alpha_is_white(name: str) -> None:
    pixels = np.asarray(images.decode(READABLE[name]))
    clear, opaque = odd_images.ALPHA == 0, odd_images.ALPHA == 255
    assert clear.any()
    assert (pixels[clear] == 255).all()
    if name.startswith("alpha"):
        assert (pixels[opaque] == odd_images.RAMP[opaque]).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_a_colour_that_stands_for_transparency_is_white(mode: str) -> None:
    grey = np.array([[10, 20]], dtype=np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(grey)
    key: Any = 10
    if mode == "RGB":
        image, key = image.convert("RGB"), (10, 10, 10)
    elif mode == "P":
        image = image.convert("L").convert("P")
    pixels = np.asarray(images.decode(odd_images.encode(image, "PNG", transparency=key)))
    assert (pixels[0, 0] == 255).all()
    assert (pixels[0, 1] < 255).all()


@pytest.mark.parametrize("name", ["animated.gif", "animated.webp", "animated.png", "pages.tif", "camera.mpo"])
def test_of_several_frames_the_first_is_read(name: str) -> None:
    first = images.decode(READABLE[name])
    flipped = first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ramp = odd_images.RAMP.astype(int)
    errors = [np.abs(np.asarray(image).astype(int) - ramp).mean() for image in (first, flipped)]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_bad_file_is_refused_on_one_line_with_its_name_and_reason(name: str, tmp_path: Path) -> None:
    content, reason = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageFileError) as raised:
        images.decode(tmp_path / name)
    line = str(raised.value)
    assert line.startswith(f"{tmp_path / name} ")
    assert re.search(reason, raised.value.reason)
    assert raised.value.reason.removeprefix("it ") in line
    assert len(line.splitlines()) == 1
    with pytest.raises(ImageFileError):
        images.decode(images.reduce(content, 8))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(pixels.BYTES + 1)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("create", "reason"),
    [
        (Path.mkdir, "folder"),
        (pipe, "pipe"),
        (socket_file, "socket"),
        (lambda path: path.symlink_to("/dev/zero"), "device"),
        (lambda path: path.symlink_to("/dev/tty"), "device"),
        (lambda path: path.symlink_to("absent.jpg"), "not exist"),
        (lambda path: path.with_name("other.jpg").touch(), "not exist"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (sparse, r"[\d,]+ bytes"),
    ],
)
def test_what_is_not_a_regular_file_of_bounded_size_is_refused_at_once(
    create: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    create(tmp_path / "photo.jpg")
    with pytest.raises(ImageFileError, match=rf"photo\.jpg .*{reason}"):
        images.decode(tmp_path / "photo.jpg")


def test_a_name_is_printed_on_any_terminal(tmp_path: Path) -> None:
    for name in (b"b\xe4r.jpg", b"two\nlines.jpg", b"\x1b[31mred.jpg"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.write_bytes(b"no image")
        with pytest.raises(ImageFileError) as raised:
            images.decode(path)
        assert str(raised.value).isprintable()
        str(raised.value).encode("utf-8")


def test_no_program_is_started_for_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record"
    (tmp_path / "bin").mkdir()
    for name in ("gs", "djpeg", "convert"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho {name} >> '{record}'\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    postscript = odd_images.encode(Image.new("RGB", (9, 9)), "EPS")
    for content in [postscript, *(content for content, _ in UNREADABLE.values())]:
        with pytest.raises(ImageFileError):
            images.decode(content)
    assert not record.exists()


@pytest.mark.parametrize(
    "error", [RecursionError(), MemoryError(), KeyError("mode"), Warning("odd"), struct.error("x")]
)
def test_whatever_a_decoder_raises_is_a_refusal(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(ImageFileError) as raised:
        images.decode(READABLE["rgb.png"])
    assert type(error).__name__ in raised.value.reason


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_not_taken_for_a_bad_file(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "getexif", interrupt)
    with pytest.raises(error):
        images.decode(READABLE["rgb.png"])


def test_threads_decode_a_bounded_number_of_pixels_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "PIXELS", 3 * 40 * 30)
    inside, most = 0, 0
    lock = threading.Lock()

    def read(_: int) -> None:
        nonlocal inside, most
        with images.opened(READABLE["rgb.png"]):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.005)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(read, range(36)))
    assert most == 3


@pytest.mark.parametrize("options", [[], ["-W", "error"]])
def test_nothing_but_the_refusal_is_said_of_a_bad_file(options: list[str]) -> None:
    script = """
from pipeline import pixels
from tests import odd_images
for name, content in {**odd_images.readable(), **odd_images.unreadable()}.items():
    try:
        pixels.decode(content if isinstance(content, bytes) else content[0])
    except pixels.UnreadableImageError as error:
        assert isinstance(content, tuple), (name, error)
"""
    done = subprocess.run(
        [sys.executable, *options, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_in_this_environment_makes_pillow_guess_the_rest_of_a_cut_file() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


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
