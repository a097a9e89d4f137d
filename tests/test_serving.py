"""The served model: the answers of `predict`, and one line to a client whose request is not valid."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
from fastapi import FastAPI
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types.schema import ParamSchema, ParamSpec
from PIL import Image

from pipeline import pixels
from pipeline.onnx import inference
from pipeline.onnx.inference import Classifier
from pipeline.tracking import runs, serving
from pipeline.tracking.serving import BadRequestError, ServedClassifier
from tests import odd_images, tiny_onnx, tracked

READABLE = odd_images.readable()
UNREADABLE = odd_images.unreadable()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_onnx.write(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def served(model: Path) -> ServedClassifier:
    return ServedClassifier(str(model))


@pytest.fixture(scope="module")
def classifier(model: Path) -> Classifier:
    return inference.open_classifier(model, threads=1)


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("name", READABLE)
def test_an_image_in_any_form_has_the_answer_of_predict(
    name: str, served: ServedClassifier, classifier: Classifier, tmp_path: Path
) -> None:
    content = READABLE[name]
    (tmp_path / name).write_bytes(content)
    guesses = inference.predict(classifier, tmp_path / name, 3).guesses
    wanted = [(guess.label, pytest.approx(guess.probability)) for guess in guesses]
    image = np.asarray(pixels.decode(content))
    for form in (
        content,
        as_text(content),
        f"data:image/png;base64,{as_text(content)}",
        image,
        image.tolist(),
    ):
        [answer] = served.predict([form])
        assert [(entry["label"], entry["probability"]) for entry in answer["classes"]] == wanted


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (np.full((4, 4, 3), 0.5), "float64.*255"),
        (np.full((4, 4, 3), np.nan), "float64"),
        (np.full((4, 4, 3), np.inf, dtype=np.float32), "float32"),
        (np.zeros((4, 4, 3), dtype=bool), "bool"),
        (np.full((4, 4, 3), 300, dtype=np.uint16), "0..255.*300"),
        (np.full((4, 4, 3), -1), "0..255.*-1"),
        (np.zeros((4, 4), dtype=np.uint8), r"\[4, 4\]"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"\[4, 4, 4\]"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"\[0, 4, 3\]"),
        ([[[1, 2, 3], [4, 5]]], "array of pixels"),
        ([[[10**30, 0, 0]]], "object"),
        ([[["a", "b", "c"]]], "integers"),
        (None, "array of pixels"),
        (7, "array of pixels"),
        ({"b64": "AAAA"}, "array of pixels"),
        ("$$$", "base64"),
        ("äöü", "base64"),
        ("", "empty"),
    ],
)
def test_pixels_of_another_form_are_refused_and_never_a_black_picture(
    item: Any, reason: str, served: ServedClassifier
) -> None:
    good = as_text(READABLE["rgb.png"])
    with pytest.raises(BadRequestError, match=rf"^image 1 .*{reason}") as raised:
        served.predict([good, item])
    assert raised.value.get_http_status_code() == 400
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_image_is_refused_with_its_number_and_reason(
    name: str, served: ServedClassifier
) -> None:
    content, reason = UNREADABLE[name]
    with pytest.raises(BadRequestError, match=rf"^image 0 .*{reason}"):
        served.predict([content])


@pytest.mark.parametrize(
    "batch", [[], np.zeros((0, 4, 4, 3), np.uint8), {}, {"a": ["x"], "b": ["y"]}, 7, None]
)
def test_a_request_without_a_list_of_images_is_refused(batch: Any, served: ServedClassifier) -> None:
    with pytest.raises(BadRequestError):
        served.predict(batch)


def test_the_pixels_of_a_request_are_bounded(
    served: ServedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_PIXELS", 3 * 40 * 30)
    content = READABLE["rgb.png"]
    assert len(served.predict([content] * 3)) == 3
    with pytest.raises(BadRequestError, match="3,600"):
        served.predict([content] * 4)


@dataclass(frozen=True)
class Response:
    """What a client receives."""

    status: int
    body: bytes
    read: int
    """Bytes of the request that the server took."""


Ask = Callable[..., Response]


@pytest.fixture(scope="module")
def ask(model: Path) -> Ask:
    """Send a request to MLflow's scoring server with a logged model, in this process."""
    folder = model.parent / "logged"
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=Path(serving.__file__).stem,
        code_paths=[serving.__file__, pixels.__file__],
        data_path=str(model),
        signature=ModelSignature(params=ParamSchema([ParamSpec("top", "integer", 0)])),
        pip_requirements=["numpy"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastapi.FastAPI", FastAPI)
        patch.setenv(serving.SERVER, str(folder))
        patch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "60")
        app = scoring_server.init(mlflow.pyfunc.load_model(str(folder)))
        patch.delenv("__IS_IN_SERVING_ENVIRONMENT", raising=False)

    def ask(body: bytes, kind: str | None = "application/json", announced: int | None = None) -> Response:
        pieces = [body[start : start + 2**20] for start in range(0, len(body), 2**20)] or [b""]
        taken, sent = 0, []

        async def receive() -> dict[str, Any]:
            nonlocal taken
            if taken == len(pieces):
                await asyncio.sleep(60)
            taken += 1
            return {"type": "http.request", "body": pieces[taken - 1], "more_body": taken < len(pieces)}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", kind.encode())] if kind else []
        if announced is not None:
            headers.append((b"content-length", str(announced).encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/invocations",
            "raw_path": b"/invocations",
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        asyncio.run(app(scope, receive, send))
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return Response(sent[0]["status"], content, sum(map(len, pieces[:taken])))

    return ask


def requests() -> dict[str, bytes]:
    photograph = as_text(READABLE["rgb.jpg"])
    return {
        "floats": json.dumps({"inputs": np.full((1, 4, 4, 3), 0.5).tolist()}).encode(),
        "not a number": b'{"inputs": [[[[NaN, 1, 1]]]]}',
        "broken base64": json.dumps({"inputs": [photograph, "$$$"]}).encode(),
        "no image": json.dumps({"inputs": [as_text(b"hello")]}).encode(),
        "empty batch": b'{"inputs": []}',
        "no list": b'{"inputs": 5}',
        "ragged": b'{"inputs": [[[[1, 2, 3], [1, 2]]]]}',
        "negative top": json.dumps({"inputs": [photograph], "params": {"top": -1}}).encode(),
        "text as top": json.dumps({"inputs": [photograph], "params": {"top": "x"}}).encode(),
        "params as list": json.dumps({"inputs": [photograph], "params": [1]}).encode(),
        "no json": b"{",
        "no text": b"\xff\xfe\0",
        "nothing": b"",
        "a list": b"[]",
        "nested": b"[" * 100_000,
        "frame of a number": b'{"dataframe_split": 5}',
        "frame without columns": b'{"dataframe_split": {"columns": [], "data": []}}',
        "two values": b'{"inputs": {"a": ["x"], "b": ["y"]}}',
    }


def check_one_line(response: Response) -> None:
    assert 400 <= response.status < 500
    fields = json.loads(response.body)
    assert set(fields) == {"error_code", "message"}
    assert 0 < len(fields["message"]) < 600
    assert len(fields["message"].splitlines()) == 1
    assert "Traceback" not in fields["message"]


@pytest.mark.parametrize("name", requests())
def test_a_request_that_is_not_valid_is_answered_with_one_line_and_no_stack_trace(
    name: str, ask: Ask
) -> None:
    check_one_line(ask(requests()[name]))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"a,b\n1,2,3\n4", "text/csv"),
        (b"", "text/csv"),
        (b"xxx", "application/vnd.apache.parquet"),
        (b"{}", None),
        (b"{}", "image/png"),
        (b"{}", "application/json; charset=latin-1"),
    ],
)
def test_a_body_of_another_type_is_answered_with_one_line(body: bytes, kind: str | None, ask: Ask) -> None:
    check_one_line(ask(body, kind))


def test_a_valid_request_is_answered_as_the_model_answers(ask: Ask, served: ServedClassifier) -> None:
    photograph = as_text(READABLE["rgb.jpg"])
    for inputs in ([photograph], photograph):
        response = ask(json.dumps({"inputs": inputs, "params": {"top": 2}}).encode())
        assert response.status == 200
        answer = json.loads(response.body)["predictions"]
        assert answer == served.predict([photograph], {"top": 2})


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    served_copy = sys.modules["serving"]  # the copy that MLflow loaded
    monkeypatch.setattr(served_copy, "SECONDS_TO_HANG_UP", 0.01)
    announced = ask(b"", announced=served_copy.LARGEST_BODY + 1)
    assert announced.status == 413
    check_one_line(announced)
    monkeypatch.setattr(served_copy, "LARGEST_BODY", 3 * 2**20)
    streamed = ask(b"x" * 5 * 2**20)
    assert streamed.status == 413
    check_one_line(streamed)
    assert ask(json.dumps({"inputs": [as_text(READABLE["rgb.jpg"])]}).encode()).status == 200


def test_a_model_that_is_loaded_elsewhere_leaves_other_applications_alone(model: Path) -> None:
    import fastapi

    before = fastapi.FastAPI
    serving._load_pyfunc(str(model))
    assert fastapi.FastAPI is before


def test_large_pixels_are_read_once(served: ServedClassifier) -> None:
    [answer] = served.predict([np.asarray(Image.new("RGB", (3_000, 2_000), (250, 9, 9)))], {"top": 1})
    assert answer["classes"][0]["label"] == "red"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_champions_of_two_data_sets_are_served_at_once(tmp_path: Path) -> None:
    case = tracked.case(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", "distillery")
    flowers = tracked.other_data(case, tmp_path, "flowers", "e" * 64, labels=("poppy", "fern", "gentian"))
    for one in (case, flowers):
        runs.track(*one)
    wanted = {"distillery-photographs": "blue", "distillery-flowers": "gentian"}
    # The command looks for uvicorn on the path, as in an environment that is active.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": case.server.uri, "PATH": path}
    servers: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
    photograph = io.BytesIO()
    Image.new("RGB", (40, 30), (10, 20, 230)).save(photograph, "JPEG")
    body = json.dumps({"inputs": [as_text(photograph.getvalue())], "params": {"top": 1}}).encode()

    def answer(port: int) -> str | None:
        assert all(server.poll() is None for _, server in servers.values())
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.loads(response.read())["predictions"][0]["classes"][0]["label"]
        except OSError:
            return None

    try:
        for name in wanted:
            port = tracked.free_port()
            command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{name}@champion"]
            options = ["--env-manager", "local", "-p", str(port), "--workers", "1"]
            server = subprocess.Popen([*command, *options], env=environment, process_group=0)
            servers[name] = (port, server)
        for port, _ in servers.values():
            tracked.until(lambda port=port: answer(port) is not None)
        assert {name: answer(port) for name, (port, _) in servers.items()} == wanted
    finally:
        for _, server in servers.values():
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
