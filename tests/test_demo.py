"""The demo page, in Chromium if it is installed: it answers as `predict` does."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from pipeline.onnx import inference
from pipeline.onnx.inference import Classifier
from pipeline.provenance import sha256
from pipeline.shipping import demo
from pipeline.shipping.folder import ShippingError
from tests import tiny_onnx
from tests.rows import row

LABELS = ("red", "green", "blue")
needs_npm = pytest.mark.skipif(
    not demo.RUNTIME_FOLDER.is_dir(), reason="needs `npm ci --prefix pipeline/shipping`"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def classifiers(tmp_path: Path) -> list[Classifier]:
    """A classifier that is right, and one that confuses red and green."""
    preparation = {"size": 32, "crop": 0.9, "interpolation": "bilinear"}
    metadata = {
        "labels": json.dumps(LABELS),
        "input": json.dumps(preparation),
        "task": "image-classification",
    }
    weights = np.eye(3, dtype=np.float32) / 64
    files = [
        tiny_onnx.write(tmp_path / "right.onnx", size=32, weights=weights, metadata=metadata),
        tiny_onnx.write(tmp_path / "wrong.onnx", size=32, weights=weights[[1, 0, 2]], metadata=metadata),
    ]
    return [inference.open_classifier(file, threads=1) for file in files]


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    files = []
    for number in range(20):
        height, width = random.integers(20, 400, 2)
        pixels = random.integers(0, 256, (height, width, 3)) + np.eye(3)[number % 3] * 60
        files.append(tmp_path / f"{number}.{('jpg', 'png')[number % 2]}")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


@pytest.fixture
def address(tmp_path: Path, classifiers: list[Classifier]) -> Iterator[str]:
    rejected = row("right", score=0.8842, score_lo=0.876, score_hi=0.889, verdict="reject")
    demo.build(tmp_path / "page", classifiers, {sha256(classifiers[0].path): rejected})
    with demo.server(tmp_path / "page", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{demo.LOOPBACK}:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    """The page on a phone; it may contact only its own server, and logs no errors."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((address, "data:")) else complaints.append(request.url)
            ),
        )
        page.goto(address)
        yield page
        browser.close()
    assert not complaints


def drop(page: Page, file: Path) -> None:
    """Drop a file on the page, as a person does."""
    content = page.evaluate_handle(
        """([bytes, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name));
            return transfer;
        }""",
        [list(file.read_bytes()), file.name],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": content})


@needs_npm
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_answers_as_predict_does_for_twenty_photographs(
    page: Page, classifiers: list[Classifier], photographs: list[Path]
) -> None:
    for file in photographs:
        drop(page, file)
        for classifier in classifiers:
            guesses = inference.predict(classifier, file, 3).guesses
            lines = page.locator(f"#{classifier.path.stem} .guesses li")
            wanted = [f"{guess.label}{guess.probability:.1%}" for guess in guesses]
            if file.suffix == ".png":
                expect(lines).to_have_text(wanted, timeout=15_000)
            else:  # decoders of JPEG may differ by a step of a pixel
                expect(lines.first).to_contain_text(guesses[0].label, timeout=15_000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@needs_npm
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_shows_scores_marks_variants_that_differ_and_recovers_from_a_file_that_is_not_an_image(
    page: Page, tmp_path: Path
) -> None:
    expect(page.locator("#right")).to_contain_text("88.4%")
    expect(page.locator("#right h2 .reject")).to_be_visible()
    expect(page.locator("#wrong .metric")).to_have_count(0)
    (tmp_path / "notes.txt").write_text("no image")
    page.set_input_files("#file", tmp_path / "notes.txt")
    expect(page.locator("#status.error")).to_be_visible()
    Image.new("RGB", (40, 30), (250, 20, 10)).save(tmp_path / "red.png")
    page.set_input_files("#file", tmp_path / "red.png")
    expect(page.locator("#right")).to_have_attribute("data-best", "red")
    expect(page.locator("#wrong")).to_have_attribute("data-best", "green")
    expect(page.locator("#wrong.apart")).to_be_visible()
    expect(page.locator("#right.apart")).to_have_count(0)
    expect(page.locator("#status.error")).to_have_count(0)
    expect(page.locator("#status")).to_contain_text("red")
    expect(page.locator("body")).to_have_attribute("data-timed", "2")
    expect(page.locator("#wrong .time")).to_contain_text("ms")


@needs_npm
def test_the_folder_is_all_that_a_web_server_needs(tmp_path: Path, classifiers: list[Classifier]) -> None:
    for _ in range(2):
        demo.build(tmp_path / "page", classifiers, {})
    names = {file.name for file in (tmp_path / "page").iterdir()}
    entries = json.loads((tmp_path / "page" / "manifest.json").read_text())
    assert [entry["file"] for entry in entries] == ["right.onnx", "wrong.onnx"]
    assert {*demo.PAGE, *demo.RUNTIME, "contract.mjs", "right.onnx", "wrong.onnx"} <= names
    texts = [(tmp_path / "page" / name).read_text() for name in (*demo.PAGE, "contract.mjs")]
    for name in ("page.css", "page.mjs", "worker.mjs", "manifest.json", "contract.mjs", "ort.wasm.min.mjs"):
        assert any(name in text for text in texts)


def test_a_folder_with_other_files_stays_as_it_is(
    tmp_path: Path, classifiers: list[Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "RUNTIME", ())
    (tmp_path / "mine").mkdir()
    for name in ("precious.txt", "manifest.json"):
        (tmp_path / "mine" / name).write_text("keep me")
    with pytest.raises(ShippingError, match="not empty"):
        demo.build(tmp_path / "mine", classifiers, {})
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep me"


def test_a_page_that_was_interrupted_is_written_again(
    tmp_path: Path, classifiers: list[Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "RUNTIME", ())
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("half of it")
    demo.build(tmp_path / "page", classifiers, {})
    assert (tmp_path / "page" / "manifest.json").is_file()


def test_without_onnxruntime_web_it_says_how_to_get_it(
    tmp_path: Path, classifiers: list[Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "RUNTIME_FOLDER", tmp_path)
    with pytest.raises(ShippingError, match=r"ort\.wasm\.min\.mjs .*`make demo`"):
        demo.build(tmp_path / "page", classifiers, {})


def test_it_is_served_to_this_machine_only_and_a_port_in_use_is_named(tmp_path: Path) -> None:
    with demo.server(tmp_path, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(ShippingError, match=rf"port {server.server_port} cannot be served"):
            demo.server(tmp_path, server.server_port)
    with pytest.raises(ShippingError, match="port 99999 cannot be served"):
        demo.server(tmp_path, 99999)
