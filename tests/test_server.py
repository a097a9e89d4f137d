"""The shipped server: the answers of `predict.py`, one clear answer to whatever else comes, and it lives on.

It is started by the command of its own Dockerfile, in the environment of the tests.
"""

import ast
import asyncio
import http.client
import importlib.metadata
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from pipeline.onnx import inference
from pipeline.shipping import folder
from tests import odd_images, tiny_onnx

ROOT = Path(__file__).parents[1]
DOCKERFILE = folder.HERE / "Dockerfile"
REQUIREMENTS = folder.HERE / "requirements-server.txt"
LABELS = ("red & more", "<green>", "bl\u00fc")


def instructions(name: str) -> list[str]:
    """The arguments of each instruction of this name in the Dockerfile."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE.read_text(), re.MULTILINE)


@dataclass
class Server:
    """A running server."""

    folder: Path
    port: int
    process: "subprocess.Popen[str]"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        head = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(content) if content else None, head

    def metrics(self) -> dict[str, float]:
        """Value of each series."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.getheader("content-type", "").startswith("text/plain; version=0.0.4")
        lines = response.read().decode().splitlines()
        return {
            name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))
        }

    def errors(self) -> dict[str, float]:
        """Number of errors by kind."""
        pattern = r'classifier_errors_total\{kind="(\w+)"\}'
        return {m[1]: value for name, value in self.metrics().items() if (m := re.fullmatch(pattern, name))}

    def is_well(self) -> bool:
        """Whether it still answers a photograph."""
        status, answer, _ = self.ask("POST", "/predict", encoded(0))
        return self.process.poll() is None and status == 200 and len(answer["classes"]) == 3


BY_HAND = ("python", "server.py")


def start(target: Path, *options: str, command: Sequence[str] = ()) -> Server:
    """Start the server in a folder on a free port, by the command of its Dockerfile or by another one."""
    words = command or ast.literal_eval(instructions("CMD")[-1])
    assert words[0] == "python"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, *words[1:], "--port", str(port), *options],
        cwd=target,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return Server(target, port, process)
        except OSError:
            time.sleep(0.1)
    output, _ = process.communicate()
    raise AssertionError(output)


def ship(target: Path, task: str = "image-classification") -> Path:
    preparation = {"size": 16, "crop": 0.9, "interpolation": "bicubic"}
    metadata = {"labels": json.dumps(LABELS), "input": json.dumps(preparation), "task": task}
    model = tiny_onnx.write(target.with_suffix(".onnx"), labels=LABELS, size=16, metadata=metadata)
    folder.ship(inference.open_classifier(model, threads=1), target, None)
    return target


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # What the container holds, and nothing else.
    target = ship(tmp_path_factory.mktemp("shipped") / "my classifier")
    inside = tmp_path_factory.mktemp("app")
    for words in instructions("COPY"):
        *patterns, _ = words.split()
        for pattern in patterns:
            files = list(target.glob(pattern))
            assert files, pattern
            for file in files:
                (inside / file.name).write_bytes(file.read_bytes())
    running = start(inside)
    yield Server(target, running.port, running.process)
    running.process.terminate()
    output, _ = running.process.communicate(timeout=15)
    assert "Traceback" not in output, output
    assert running.process.returncode in (0, -15)


def photograph(number: int) -> Image.Image:
    """A photograph of a size of its own."""
    random = np.random.default_rng(number)
    height, width = random.integers(20, 400, 2)
    colour = random.integers(110, 146, 3)
    pixels = np.clip(colour + random.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def encoded(number: int) -> bytes:
    """A file of that photograph, in one of several formats, some turned by EXIF."""
    kind = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")[number % 5]
    exif = Image.Exif()
    exif[0x0112] = number % 8 + 1
    image = photograph(number)
    image = image.convert(("RGB", "L", "RGBA")[number % 3]) if kind == "PNG" else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"exif": exif} if kind == "JPEG" else {}))
    return buffer.getvalue()


def form(*files: bytes, boundary: str = "a-b_c'd") -> tuple[bytes, dict[str, str]]:
    """A form with files, and the header that says so."""
    parts = [b'Content-Disposition: form-data; name="note"\r\n\r\nhello\r\n']
    disposition = b'Content-Disposition: form-data; name="image"; filename="x.jpg"\r\n'
    parts += [disposition + b"Content-Type: image/jpeg\r\n\r\n" + file + b"\r\n" for file in files]
    mark = f"--{boundary}".encode()
    body = b"".join(mark + b"\r\n" + part for part in parts) + mark + b"--\r\n"
    return body, {"Content-Type": f'multipart/form-data; boundary="{boundary}"'}


def test_fifty_photographs_get_the_answers_of_the_shipped_example_and_of_predict(
    server: Server, tmp_path: Path
) -> None:
    files = []
    for number in range(50):
        files.append(tmp_path / f"{number:02}")
        files[-1].write_bytes(encoded(number))
    output = subprocess.run(
        [sys.executable, "-I", server.folder / "predict.py", *files],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.split("\t")[1:] for line in output.splitlines()]
    assert len({tuple(line) for line in lines}) > 45  # four are grey, which is a third of each colour
    classifier = inference.open_classifier(server.folder.with_suffix(".onnx"), threads=1)
    for number, guesses in enumerate(lines):
        body, headers = form(encoded(number)) if number % 2 else (encoded(number), {})
        status, answer, _ = server.ask("POST", "/predict?top=3", body, headers)
        assert status == 200
        answered = {c["label"]: c["probability"] for c in answer["classes"]}
        shown = {label: float(share[:-1]) / 100 for label, share in (g.rsplit(" ", 1) for g in guesses)}
        assert next(iter(answered)) == next(iter(shown))
        assert answered == pytest.approx(shown, abs=0.005)
        predicted = inference.predict(classifier, files[number], 3).guesses
        assert answered == pytest.approx({guess.label: guess.probability for guess in predicted}, abs=1e-6)


@pytest.mark.parametrize("name", odd_images.readable())
def test_the_server_reads_the_pixels_that_every_reader_makes(
    name: str, server: Server, tmp_path: Path
) -> None:
    content = odd_images.readable()[name]
    (tmp_path / name).write_bytes(content)
    classifier = inference.open_classifier(server.folder.with_suffix(".onnx"), threads=1)
    guesses = inference.predict(classifier, tmp_path / name, 3).guesses
    status, answer, _ = server.ask("POST", "/predict", content)
    assert status == 200
    assert [c["label"] for c in answer["classes"]] == [guess.label for guess in guesses]
    for shown, guess in zip(answer["classes"], guesses, strict=True):
        assert shown["probability"] == pytest.approx(guess.probability, abs=1e-6)


def test_attributes_are_answered_each_by_itself(tmp_path: Path) -> None:
    target = ship(tmp_path / "several", "multi-label-image-classification")
    running = start(target)
    try:
        _, answer, _ = running.ask("POST", "/predict", encoded(1))
    finally:
        running.process.terminate()
        running.process.communicate(timeout=15)
    (tmp_path / "x").write_bytes(encoded(1))
    classifier = inference.open_classifier(target.with_suffix(".onnx"), threads=1)
    wanted = {
        guess.label: guess.probability for guess in inference.predict(classifier, tmp_path / "x", 3).guesses
    }
    assert {c["label"]: c["probability"] for c in answer["classes"]} == pytest.approx(wanted, abs=1e-6)
    assert sum(wanted.values()) > 1.5


def png(width: int, height: int) -> bytes:
    """A black picture: 400 million pixels have 50 kB."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def cut() -> bytes:
    return encoded(0)[: len(encoded(0)) // 2]


HOSTILE: dict[str, tuple[str, str, bytes | None, dict[str, str], int, str]] = {
    "20 MB": ("POST", "/predict", b"\xff\xd8\xff" + b"x" * 20_000_000, {}, 413, "too_large"),
    "a bomb": ("POST", "/predict", png(20_000, 20_000), {}, 413, "too_many_pixels"),
    "text": ("POST", "/predict", b"What is on this picture?", {}, 415, "not_an_image"),
    "JSON": ("POST", "/predict", b"{}", {"Content-Type": "application/json"}, 415, "not_an_image"),
    "a page": ("POST", "/predict", b"<html></html>", {}, 415, "not_an_image"),
    "half a photograph": ("POST", "/predict", cut(), {}, 422, "unreadable_image"),
    "grey floats": (
        "POST",
        "/predict",
        odd_images.unreadable()["floats.tif"][0],
        {},
        422,
        "unreadable_image",
    ),
    "nothing": ("POST", "/predict", b"", {}, 400, "empty"),
    "no body": ("POST", "/predict", None, {}, 400, "empty"),
    "compressed": ("POST", "/predict", b"x", {"Content-Encoding": "gzip"}, 415, "encoded"),
    "an empty form": ("POST", "/predict", *form(), 400, "bad_request"),
    "an empty file": ("POST", "/predict", *form(b""), 400, "empty"),
    "two files": ("POST", "/predict", *form(encoded(0), encoded(1)), 400, "bad_request"),
    "a form of text": ("POST", "/predict", *form(b"text"), 415, "not_an_image"),
    "no boundary": ("POST", "/predict", b"x", {"Content-Type": "multipart/form-data"}, 400, "bad_request"),
    "half a form": ("POST", "/predict", form(encoded(0))[0][:200], form()[1], 400, "bad_request"),
    "no classes": ("POST", "/predict?top=0", encoded(0), {}, 400, "bad_request"),
    "odd classes": ("POST", "/predict?top=%00%D9%A3", encoded(0), {}, 400, "bad_request"),
    "another method": ("GET", "/predict", None, {}, 405, "method_not_allowed"),
    "a method that nobody knows": ("BREW", "/predict", None, {}, 405, "method_not_allowed"),
    "another place": ("POST", "/../server.py", b"x" * 3_000_000, {}, 404, "not_found"),
    "the file": ("GET", "/server.py", None, {}, 404, "not_found"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_gets_one_clear_answer_and_the_server_lives(name: str, server: Server) -> None:
    method, path, body, headers, status, kind = HOSTILE[name]
    before = server.errors().get(kind, 0)
    actual, answer, head = server.ask(method, path, body, headers)
    assert (actual, answer["error"]["kind"]) == (status, kind)
    message = answer["error"]["message"]
    assert message
    assert len(message.splitlines()) == 1
    assert not re.search(r"Traceback|\.py\b|0x[0-9a-f]{6}|/tmp", message)
    assert head["content-type"] == "application/json"
    if status == 405:
        assert "POST" in head["allow"]
    assert server.errors()[kind] == before + 1
    assert server.is_well()


def test_a_long_body_is_refused_by_its_length_before_it_is_sent(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000000\r\n")
        client.sendall(b"Expect: 100-continue\r\n\r\n")
        answer = b""
        while b"}" not in answer and (more := client.recv(65536)):  # head and body may come apart
            answer += more
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"too_large"' in answer


def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_long(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        for _ in range(20):
            client.sendall(chunk)
        client.sendall(b"0\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert server.is_well()


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n"],
    ids=["TLS", "no path", "long head"],
)
def test_what_is_no_request_ends_the_connection_and_not_the_server(
    request_bytes: bytes, server: Server
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request_bytes)
        try:
            answer = client.recv(65536)
        except ConnectionResetError:
            answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert server.is_well()


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(server: Server) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 5000
            )
    deadline = time.monotonic() + 10
    while server.metrics()["classifier_waiting_bytes"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.metrics()["classifier_waiting_bytes"] == 0
    assert server.is_well()


def test_five_hundred_at_once_get_one_answer_each(server: Server) -> None:
    bodies = [encoded(number) for number in range(10)]

    async def ask(number: int) -> tuple[int, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = bodies[number % 10]
        head = (
            f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        top, _, content = answer.partition(b"\r\n\r\n")
        return int(top.split()[1]), json.loads(content)

    async def everyone() -> list[tuple[int, Any]]:
        return await asyncio.wait_for(asyncio.gather(*map(ask, range(500))), 60)

    before = server.metrics()["classifier_seconds_count"]
    answers = asyncio.run(everyone())
    assert [status for status, _ in answers] == [200] * 500
    for number, (_, answer) in enumerate(answers):
        assert answer == answers[number % 10][1]
    assert server.metrics()["classifier_seconds_count"] == before + 500
    assert server.is_well()


def test_health_and_metrics_say_how_it_is(server: Server) -> None:
    assert server.is_well()
    status, health, _ = server.ask("GET", "/health")
    assert (status, health["status"], health["classes"]) == (200, "ok", 3)
    figures = server.metrics()
    buckets = [value for name, value in figures.items() if name.startswith("classifier_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == figures["classifier_seconds_count"] > 0
    assert 0 < figures["classifier_seconds_sum"] < 60 * figures["classifier_seconds_count"]
    assert figures['classifier_requests_total{status="200"}'] > figures["classifier_seconds_count"]


def test_started_by_hand_it_is_for_this_machine_alone_and_takes_limits(tmp_path: Path) -> None:
    running = start(ship(tmp_path / "small"), "--megabytes", "1", "--megapixels", "1", command=BY_HAND)
    try:
        listening = psutil.Process(running.process.pid).net_connections("tcp")
        assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        assert running.ask("POST", "/predict", png(1001, 1000))[0] == 413
        assert running.ask("POST", "/predict", b"x" * 1_100_000)[0] == 413
        assert running.ask("POST", "/predict", png(1000, 1000))[0] == 200
    finally:
        running.process.terminate()
        running.process.communicate(timeout=15)


def at_once(target: Path, *options: str) -> tuple[int, str]:
    """Status and last line of standard error of a server that does not start."""
    command = [sys.executable, target / "server.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "99999"), ("--megabytes", "0"), ("--megapixels", "101"), ("--port", "x")]
)
def test_a_number_out_of_its_range_is_named(option: str, value: str, tmp_path: Path) -> None:
    status, line = at_once(ship(tmp_path / "small"), option, value)
    assert status == 2
    assert option in line
    assert repr(value) in line


def test_a_folder_that_is_not_whole_is_one_line(tmp_path: Path) -> None:
    target = ship(tmp_path / "small")
    model = target / json.loads((target / "model.json").read_text())["file"]
    model.write_bytes(b"cut off")
    status, line = at_once(target)
    assert status == 1
    assert str(model) in line
    (target / "model.json").unlink()
    status, line = at_once(target)
    assert status == 1
    assert str(target / "model.json") in line


def test_who_is_too_slow_or_too_many_is_refused(tmp_path: Path) -> None:
    script = (
        "import server; server.HEAD_SECONDS = server.BODY_SECONDS = 0.5; server.WAITING_BYTES = 200_000; "
    )
    running = start(ship(tmp_path / "slow"), command=("python", "-c", f"{script} server.main()"))
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as silent:
            assert silent.recv(100) == b""
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as slow:
            slow.sendall(head + b"x")
            assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")
        status, answer, headers = running.ask("POST", "/predict", b"x" * 500_000)
        assert (status, answer["error"]["kind"], headers["retry-after"]) == (503, "busy", "1")
        assert running.metrics()["classifier_waiting_bytes"] == 0
        assert running.is_well()
    finally:
        running.process.terminate()
        running.process.communicate(timeout=15)


def test_the_container_listens_to_all() -> None:
    [words] = instructions("CMD")
    assert ast.literal_eval(words)[-2:] == ["--host", "0.0.0.0"]


def test_the_container_is_small_runs_as_nobody_and_installs_exactly_what_is_tested() -> None:
    [image] = instructions("FROM")
    assert re.fullmatch(r"python:3\.1[1-3]-slim", image)
    assert instructions("USER") == ["nobody"]
    text = DOCKERFILE.read_text()
    assert text.index("USER nobody") < text.index("\nCMD")
    assert "apt" not in text
    pins = [Requirement(line) for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    locked = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    versions = {str(canonicalize_name(name)): version for name, version in locked}
    assert {canonicalize_name(pin.name): str(pin.specifier) for pin in pins} == {
        name: f"=={versions[name]}"
        for name in needed({"starlette", "uvicorn", "onnxruntime", "numpy", "pillow"})
    }


def needed(names: set[str]) -> set[str]:
    """Packages with all that they need on Python 3.13."""
    found: set[str] = set()
    while names - found:
        name = (names - found).pop()
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            wish = Requirement(line)
            if wish.marker is None or wish.marker.evaluate({"python_version": "3.13", "extra": ""}):
                names.add(canonicalize_name(wish.name))
    return found


def test_what_the_server_imports_is_what_is_pinned() -> None:
    tree = ast.parse((folder.HERE / "server.py").read_text())
    tops = {
        ((node.module or "") if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    foreign = tops - set(sys.stdlib_module_names) - {"pipeline", "pixels"}
    assert foreign == {"numpy", "onnxruntime", "PIL", "starlette", "uvicorn"}
    assert shlex.split(instructions("RUN")[0])[-2:] == ["-r", REQUIREMENTS.name]
