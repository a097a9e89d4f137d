"""The demo page, in Chromium if it is installed: it answers as `predict` does."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from pipeline import __main__ as command_line
from pipeline.onnx import inference
from pipeline.onnx.inference import Classifier
from pipeline.provenance import sha256
from pipeline.shipping import demo
from pipeline.shipping.folder import ShippingError
from pipeline.shipping.samples import Sample
from tests import document, tiny_onnx
from tests.hostile import NAMES, record_dialogs
from tests.rows import row
from tests.tiny_students import in_half, int8_student, ship, student
from tests.tiny_students import photographs as photographs_of

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


def samples(folder: Path, names: Sequence[str] = LABELS) -> list[Sample]:
    """One photograph of each colour."""
    drawn = []
    for number, name in enumerate(names[:3]):
        colour = tuple(220 if channel == number else 20 for channel in range(3))
        drawn.append(Sample(folder / f"sample-{number + 1:02}.png", (name,)))
        Image.new("RGB", (48, 40), colour).save(drawn[-1].file)
    return drawn


@pytest.fixture
def address(tmp_path: Path, classifiers: list[Classifier]) -> Iterator[str]:
    rejected = row("right", score=0.8842, score_lo=0.876, score_hi=0.889, verdict="reject")
    rows = {sha256(classifiers[0].path): rejected}
    demo.build(tmp_path / "page", classifiers, rows, samples(tmp_path), "wrong is the one to ship.")
    with demo.server(tmp_path / "page", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
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
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_click_on_a_photograph_of_the_test_set_shows_its_right_answer_beside_those_of_the_variants(
    page: Page, tmp_path: Path
) -> None:
    assert page.locator("#recommendation").text_content() == "wrong is the one to ship."
    assert page.locator("#known bdi").all_text_contents() == list(LABELS)
    buttons = page.locator("#samples button")
    expect(buttons).to_have_count(3)
    for number, label in enumerate(LABELS):
        buttons.nth(number).click()
        expect(page.locator("#right")).to_have_attribute("data-best", label)
        expect(page.locator("#wrong")).to_have_attribute("data-best", LABELS[(1, 0, 2)[number]])
        for variant in ("right", "wrong"):  # the tick stands at the right answer, wherever it is
            expect(page.locator(f"#{variant} .guesses li.right span").first).to_have_text(label)
        expect(page.locator("#status bdi").last).to_have_text(label)
        expect(page.locator("#samples button[aria-pressed=true]")).to_have_count(1)
    # Of a person's own photograph, the page knows no right answer.
    Image.new("RGB", (40, 30), (250, 20, 10)).save(tmp_path / "red.png")
    page.set_input_files("#file", tmp_path / "red.png")
    expect(page.locator("#right")).to_have_attribute("data-best", "red")
    expect(page.locator(".guesses li.right")).to_have_count(0)
    expect(page.locator("#samples button[aria-pressed=true]")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@needs_npm
def test_the_folder_is_all_that_a_web_server_needs(tmp_path: Path, classifiers: list[Classifier]) -> None:
    for _ in range(2):
        demo.build(tmp_path / "page", classifiers, {})
    names = {file.name for file in (tmp_path / "page").iterdir()}
    entries = json.loads((tmp_path / "page" / "manifest.json").read_text())["variants"]
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


@pytest.fixture
def served(tmp_path: Path) -> Iterator[int]:
    """The port of a server whose folder has a page, a model, a link and a folder, beside a secret."""
    folder = tmp_path / "page"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "below" / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    for name in ("index.html", "page.mjs", "page.css", "runtime.wasm", "a.onnx", "manifest.json"):
        (folder / name).write_text(name)
    with demo.server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, Message, bytes]:
    """Status, headers and body of an answer; the path is sent as it is."""
    connection = HTTPConnection(demo.LOOPBACK, port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"{demo.LOOPBACK}:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


TYPES = {
    "/": "text/html",
    "/index.html": "text/html",
    "/index.html?a=1": "text/html",
    "/page.mjs": "text/javascript",
    "/page.css": "text/css",
    "/runtime.wasm": "application/wasm",
    "/a.onnx": "application/octet-stream",
    "/manifest.json": "application/json",
}


@pytest.mark.parametrize(("path", "kind"), TYPES.items())
def test_each_file_has_its_type_and_every_answer_forbids_to_guess_another(
    served: int, path: str, kind: str
) -> None:
    status, headers, _ = ask(served, path)
    assert (status, headers.get_content_type()) == (200, kind)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "//secret.txt", "/./../secret.txt"),
        *(
            "/below",
            "/below/",
            "/below/secret.txt",
            "/link.txt",
            "/absent",
            "/page.mjs/",
            "/%00",
            "/a.onnx%00.html",
        ),
        *(
            "/etc/passwd",
            "//etc/passwd",
            "/%2fetc%2fpasswd",
            "/.",
            "/..",
            "/<img src=x onerror=alert(1)>".replace(" ", "%20"),
        ),
        *("/\\..\\secret.txt", "/page.mjs%0d%0aX-Evil:1", "http://[::1/", "*"),
    ],
)
def test_nothing_but_the_files_of_its_folder_is_served(served: int, path: str) -> None:
    status, headers, body = ask(served, path)
    assert status == 404
    assert b"secret" not in body
    assert b"<img" not in body
    assert "X-Evil" not in headers
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8000", "", "0.0.0.0", "192.168.0.2:80"]
)
def test_a_site_that_points_its_name_to_this_machine_gets_nothing(served: int, host: str) -> None:
    assert ask(served, "/manifest.json", host=host)[0] == 421
    assert ask(served, "/manifest.json", method="HEAD", host=host)[0] == 421


def test_a_tunnel_may_have_another_port(served: int) -> None:
    for host in ("localhost", "LOCALHOST:9999", "127.0.0.1:1"):
        assert ask(served, "/manifest.json", host=host)[0] == 200


@pytest.mark.parametrize(
    ("method", "status"),
    [("HEAD", 200), *((name, 405) for name in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS")), ("TRACE", 501)],
)
def test_only_reading_is_allowed(served: int, method: str, status: int) -> None:
    assert ask(served, "/page.mjs", method=method)[0] == status


@pytest.mark.parametrize("target", ["ui", "demo"])
def test_a_port_in_use_ends_make_before_an_address_is_printed(target: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PORT"}
    with socket.create_server((demo.LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        # What is installed stays as it is.
        done = subprocess.run(
            ["make", "-o", "install", "-o", "pipeline/shipping/node_modules", target, f"PORT={port}"],
            cwd=Path(__file__).parents[1],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode != 0
    assert "http" not in done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(port) in errors[0]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_leaves_the_folder_that_is_served_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").write_text("of another demo")
    with socket.create_server((demo.LOOPBACK, 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["pipeline", "demo", "--port", port, "--folder", str(tmp_path)])
        with pytest.raises(SystemExit) as end:
            command_line.main()
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (1, "")
    assert port in said.err
    assert (tmp_path / "index.html").read_text() == "of another demo"


def test_the_page_has_the_policy_of_its_server() -> None:
    text = (demo.HERE / "page" / "index.html").read_text()
    policy = document.parse(text).one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    # Browsers ignore `frame-ancestors` in a page.
    assert demo.HEADERS["Content-Security-Policy"] == f"{policy}; frame-ancestors 'none'"


@needs_npm
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("gpu", [False, True])
def test_float_variants_run_on_the_gpu_where_the_browser_has_webgpu_and_answer_as_predict_does(
    tmp_path: Path, gpu: bool
) -> None:
    flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]  # a GPU that is the CPU
    torch.manual_seed(0)
    models = {"fp32": student(), "fp16": in_half(student()), "int8": int8_student()}
    files = [ship(replace(m, card=replace(m.card, variant=name)), tmp_path) for name, m in models.items()]
    classifiers = [inference.open_classifier(file, threads=1) for file in files]
    demo.build(tmp_path / "page", classifiers, {})
    complaints: list[str] = []
    with demo.server(tmp_path / "page", 0) as server, sync_playwright() as playwright:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        arguments = ["--no-sandbox", *(flags if gpu else ["--disable-gpu"])]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        view = browser.new_page()
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.goto(f"http://{demo.LOOPBACK}:{server.server_port}/")
        for number, pixels in enumerate(photographs_of(5)):
            file = tmp_path / f"{number}.png"
            Image.fromarray(pixels.numpy()).save(file)
            view.set_input_files("#file", file)
            for classifier in classifiers:
                name = classifier.path.stem
                guess = inference.predict(classifier, file, 1).guesses[0]
                best = view.locator(f"#{name} .guesses li").first
                expect(best).to_contain_text(guess.label, timeout=120_000)
                shown = float((best.locator("span").last.text_content() or "").rstrip("%"))
                assert shown == pytest.approx(100 * guess.probability, abs=2.0 if name == "int8" else 0.1)
            view.locator(f"body[data-timed='{number + 1}']").wait_for(state="attached", timeout=120_000)
        devices = {
            name: view.locator(f"#{name}").get_attribute("data-device") for name in ("fp32", "fp16", "int8")
        }
        # SwiftShader has no shaders of float16.
        assert devices == {"fp32": "webgpu" if gpu else "wasm", "fp16": "wasm", "int8": "wasm"}
        assert view.locator("#fp32 .device").text_content() == ("WebGPU" if gpu else "CPU")
        browser.close()
        server.shutdown()
        thread.join()
    assert not complaints


@needs_npm
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_shows_hostile_names_as_text(tmp_path: Path) -> None:
    weights = np.eye(3, len(NAMES), dtype=np.float32) / 64
    files = []
    for turn in range(2):
        of = tiny_onnx.write(
            tmp_path / f"v{turn}.onnx", size=32, labels=NAMES, weights=np.roll(weights, 3 * turn, 1)
        )
        files.append(inference.open_classifier(of, threads=1))
    demo.build(tmp_path / "page", files, {}, samples(tmp_path, NAMES))
    complaints: list[str] = []
    with demo.server(tmp_path / "page", 0) as server, sync_playwright() as playwright:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page()
        dialogs = record_dialogs(view)
        view.on("console", lambda message: complaints.append(message.text))
        view.goto(f"http://{demo.LOOPBACK}:{server.server_port}/")
        for channel in range(3):
            colour = tuple(200 if number == channel else 20 for number in range(3))
            Image.new("RGB", (40, 30), colour).save(tmp_path / "photo.png")
            view.set_input_files("#file", tmp_path / "photo.png")
            for turn in range(2):
                expect(view.locator(f"#v{turn}")).to_have_attribute("data-best", NAMES[channel + 3 * turn])
                guess = view.locator(f"#v{turn} .guesses li span").first
                assert guess.text_content() == NAMES[channel + 3 * turn]
            assert view.locator("#status bdi").all_text_contents() == [NAMES[channel], NAMES[channel + 3]]
        assert view.locator("#known bdi").all_text_contents() == list(NAMES[:12])
        for number in range(3):
            button = view.locator("#samples button").nth(number)
            button.click()
            expect(button).to_have_attribute("aria-pressed", "true")
            expect(view.locator("#status bdi")).to_have_count(3)
            assert view.locator("#status bdi").last.text_content() == NAMES[number]
        assert view.locator("img:not(.strip img), main script, main style").count() == 0
        browser.close()
        server.shutdown()
        thread.join()
    assert dialogs == complaints == []
