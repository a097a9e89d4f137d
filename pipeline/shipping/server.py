"""Classify photographs over HTTP: pip install -r requirements-server.txt, then python server.py

    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?top=3'
    curl -F image=@photo.jpg http://127.0.0.1:8000/predict

An answer is JSON: `classes` with labels and probabilities, or `error` with a kind and a message.
`/health` says whether the server runs, `/metrics` has figures in the text format of Prometheus.
"""

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import uvicorn
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING or __package__:
    from pipeline import pixels
else:  # the copy beside this file
    import pixels

TOP = 5
"""Number of classes in an answer, unless the request says another one."""
HEAD_SECONDS = 10
"""Time for a new connection to send the head of its first request."""
BODY_SECONDS = 30
"""Time for a request to send its body."""
ANSWER_SECONDS = 30
"""Time for an image to wait for the others and to be classified."""
HANG_UP_SECONDS = 5
"""Time for a client to read a refusal while it is still sending."""
WAITING_BYTES = 256 * 2**20
"""Most bytes that all requests hold together."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper limits of the histogram of times, in seconds."""
KINDS = {404: "not_found", 405: "method_not_allowed"}
"""Kind of an error by the status that the framework gives."""

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


class RefusedError(Exception):
    """A request gets an error with this status, kind and message."""

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, headers


class Classifier:
    """The ONNX file of a shipped folder."""

    def __init__(self, folder: Path, most_pixels: int) -> None:
        self.name = json.loads((folder / "model.json").read_text(encoding="utf-8"))["file"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # each image has a thread of its own
        self.session = onnxruntime.InferenceSession(folder / self.name, options, ["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.labels, self.rule = json.loads(metadata["labels"]), json.loads(metadata["input"])
        self.several = metadata.get("task") == "multi-label-image-classification"
        self.most_pixels = most_pixels
        Image.MAX_IMAGE_PIXELS = most_pixels // 2  # Pillow refuses more than twice as many

    def classify(self, encoded: bytes, top: int) -> list[dict[str, Any]]:
        """Return the most probable classes of an image file, the first one first."""
        try:
            with pixels.opened(encoded) as image:
                square = self.square(image)
        except pixels.UnreadableImageError as error:
            raise self.refusal(error) from error
        logits = np.asarray(self.session.run(["logits"], {"images": square[None]})[0])[0]
        powers = np.exp(logits - logits.max())
        probabilities = 1 / (1 + np.exp(-logits)) if self.several else powers / powers.sum()
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [{"label": self.labels[i], "probability": float(probabilities[i])} for i in order]

    def square(self, image: Image.Image) -> np.ndarray:
        """The centred square of an RGB image, resized as the metadata of the file say."""
        side = self.rule["crop"] * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        resampling = Image.Resampling[self.rule["interpolation"].upper()]
        size = (self.rule["size"], self.rule["size"])
        return np.asarray(image.resize(size, resampling, box=(left, top, left + side, top + side)))

    def refusal(self, error: pixels.UnreadableImageError) -> RefusedError:
        """What a client is told about an image that is not read."""
        if isinstance(error.__cause__, Image.DecompressionBombError):
            most = f"the image has more than {self.most_pixels:,} pixels"
            return RefusedError(413, "too_many_pixels", most)
        if isinstance(error.__cause__, UnidentifiedImageError):
            return RefusedError(415, "not_an_image", f"the body is no image: {error}")
        return RefusedError(422, "unreadable_image", f"the image cannot be read: {error}")


class Metrics:
    """Counts since the start, in the text format of Prometheus."""

    def __init__(self) -> None:
        self.answers: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.buckets = [0] * len(BUCKETS)
        self.seconds, self.classified = 0.0, 0

    def took(self, seconds: float) -> None:
        """Count an image that was classified."""
        self.seconds += seconds
        self.classified += 1
        for index, limit in enumerate(BUCKETS):
            self.buckets[index] += seconds <= limit

    def text(self, waiting_bytes: int) -> str:
        """All figures."""
        lines = [
            "# HELP classifier_requests_total Requests that were answered, by HTTP status.",
            "# TYPE classifier_requests_total counter",
            *(
                f'classifier_requests_total{{status="{status}"}} {count}'
                for status, count in sorted(self.answers.items())
            ),
            "# HELP classifier_errors_total Requests that were refused or failed, by kind.",
            "# TYPE classifier_errors_total counter",
            *(
                f'classifier_errors_total{{kind="{kind}"}} {count}'
                for kind, count in sorted(self.errors.items())
            ),
            "# HELP classifier_waiting_bytes Bytes of the images that are received or wait for their turn.",
            "# TYPE classifier_waiting_bytes gauge",
            f"classifier_waiting_bytes {waiting_bytes}",
            "# HELP classifier_seconds Time from the head of a request to the answer with classes.",
            "# TYPE classifier_seconds histogram",
            *(
                f'classifier_seconds_bucket{{le="{limit}"}} {count}'
                for limit, count in zip(BUCKETS, self.buckets, strict=True)
            ),
            f'classifier_seconds_bucket{{le="+Inf"}} {self.classified}',
            f"classifier_seconds_sum {self.seconds}",
            f"classifier_seconds_count {self.classified}",
        ]
        return "\n".join(lines) + "\n"


class Service:
    """The answers to requests."""

    def __init__(self, classifier: Classifier, most_bytes: int) -> None:
        self.classifier, self.most_bytes = classifier, most_bytes
        self.metrics = Metrics()
        self.waiting_bytes = 0
        self.workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    async def predict(self, request: Request) -> Response:
        """Classify the image in the body."""
        began = time.monotonic()
        top = number_of_classes(request.query_params.get("top", str(TOP)))
        body = bytearray()
        try:
            await self.receive(request, body)
            encoded = file_in(bytes(body), request.headers.get("content-type", ""))
            async with asyncio.timeout(ANSWER_SECONDS):
                loop = asyncio.get_running_loop()
                classes = await loop.run_in_executor(self.workers, self.classifier.classify, encoded, top)
        except TimeoutError as error:
            raise busy() from error
        finally:
            self.waiting_bytes -= len(body)
        self.metrics.took(time.monotonic() - began)
        return JSONResponse({"classes": classes})

    async def receive(self, request: Request, body: bytearray) -> None:
        """Receive the body within the limits."""
        too_large = RefusedError(413, "too_large", f"the body has more than {self.most_bytes:,} bytes")
        if int(request.headers.get("content-length", 0)) > self.most_bytes:
            raise too_large
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(415, "encoded", "the body must not be compressed")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    self.waiting_bytes += len(chunk)
                    if len(body) > self.most_bytes:
                        raise too_large
                    if self.waiting_bytes > WAITING_BYTES:
                        raise busy()
        except TimeoutError as error:
            raise RefusedError(408, "too_slow", f"the body took more than {BODY_SECONDS} seconds") from error
        except ClientDisconnect as error:
            raise RefusedError(400, "disconnected", "the client has gone") from error
        if not body:
            raise RefusedError(400, "empty", "the body is empty; an image file is expected")

    async def health(self, _: Request) -> Response:
        """Say that the server runs, and what it serves."""
        return JSONResponse(
            {"status": "ok", "model": self.classifier.name, "classes": len(self.classifier.labels)}
        )

    async def figures(self, _: Request) -> Response:
        """The metrics."""
        media_type = "text/plain; version=0.0.4; charset=utf-8"
        return PlainTextResponse(self.metrics.text(self.waiting_bytes), media_type=media_type)

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer an error with one JSON object."""
        if isinstance(error, HTTPException):
            status, headers, message = error.status_code, error.headers, error.detail
            kind = KINDS.get(status, "bad_request")
            if status == 404:
                message = "only POST /predict, GET /health and GET /metrics exist"
            elif status == 405 and headers:
                message = f"{request.url.path} takes {headers.get('Allow', 'another method')}"
        elif isinstance(error, RefusedError):
            status, kind, message, headers = error.status, error.kind, str(error), error.headers
        else:
            status, kind, message, headers = 500, "internal", "the server failed at this request", None
        self.metrics.errors[kind] += 1
        content = {"error": {"kind": kind, "message": message}}
        return JSONResponse(content, status, dict(headers or {}))


class Reception:
    """Counts all answers, and lets clients read an answer that comes before they have sent everything."""

    def __init__(self, app: Callable[[Event, Receive, Send], Awaitable[None]], metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI, https://asgi.readthedocs.io)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

        async def watch() -> Event:
            nonlocal unread
            event = await receive()
            unread = unread and bool(event.get("more_body"))
            return event

        async def answer(event: Event) -> None:
            if event["type"] == "http.response.start":
                self.metrics.answers[event["status"]] += 1
                own = [
                    (b"x-content-type-options", b"nosniff"),
                    *([(b"connection", b"close")] if unread else []),
                ]
                event = {**event, "headers": [*event["headers"], *own]}
            elif unread and not event.get("more_body"):
                # To close the connection now would throw away the answer on its way.
                await send({**event, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(HANG_UP_SECONDS):
                        while unread:
                            await watch()
                event = {**event, "body": b""}
            await send(event)

        return await self.app(scope, watch, answer)


class Protocol(H11Protocol):
    """HTTP on a connection that is closed if no request begins in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a connection."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self.close_if_silent)

    def close_if_silent(self) -> None:
        """Close the connection unless a request has begun."""
        if self.cycle is None:
            self.transport.close()


def number(low: int, high: int) -> Callable[[str], int]:
    """Read a whole number within a range from the command line."""

    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low:,} to {high:,}")
        return value

    return read


def busy() -> RefusedError:
    """The refusal of a request that would have to wait too long."""
    return RefusedError(503, "busy", "too many requests at once; try again later", {"Retry-After": "1"})


def number_of_classes(text: str) -> int:
    """The number in a request."""
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise RefusedError(400, "bad_request", "top must be a whole number of at least 1")
    return int(text[:9])


def file_in(body: bytes, content_type: str) -> bytes:
    """The file in a form (multipart/form-data, RFC 7578); any other body is the file itself."""
    header = Message()
    header["content-type"] = content_type
    if header.get_content_type() != "multipart/form-data":
        return body
    boundary = str(header.get_param("boundary") or "").encode("latin-1", "replace")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if not boundary or not any(part.startswith(b"--") for part in parts):
        raise RefusedError(400, "bad_request", "the form is incomplete")
    files = []
    for part in parts:
        if part.startswith(b"--"):
            break
        head, _, content = part.partition(b"\r\n\r\n")
        if b"filename" in head.lower():
            files.append(content)
    if len(files) != 1:
        raise RefusedError(400, "bad_request", f"the form must hold one file; it holds {len(files)}")
    if not files[0]:
        raise RefusedError(400, "empty", "the file in the form is empty")
    return files[0]


def application(folder: Path, most_bytes: int, most_pixels: int) -> Reception:
    """The server's ASGI application for a shipped folder."""
    service = Service(Classifier(folder, most_pixels), most_bytes)
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/health", service.health),
        Route("/metrics", service.figures),
    ]
    handlers: dict[Any, Any] = dict.fromkeys((RefusedError, HTTPException, Exception), service.refuse)
    return Reception(Starlette(routes=routes, exception_handlers=handlers), service.metrics)


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=number(0, 65535), default=8000, help="port (default: %(default)s)")
    parser.add_argument(
        "--megabytes",
        type=number(1, WAITING_BYTES // 2**20),
        default=16,
        help="largest body of a request (default: %(default)s)",
    )
    parser.add_argument(
        "--megapixels",
        type=number(1, 100),
        default=50,
        help="largest image, at most 100 (default: %(default)s)",
    )
    arguments = parser.parse_args()
    folder = Path(__file__).parent.resolve()
    try:
        app = application(folder, arguments.megabytes * 2**20, arguments.megapixels * 10**6)
    except Exception as error:  # ONNX Runtime has no class of its own for them
        reason = " ".join(str(error).split()) or type(error).__name__
        parser.exit(1, f"error: {folder} cannot be served: {reason}; copy the whole folder again\n")
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
