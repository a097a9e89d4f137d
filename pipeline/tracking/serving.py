"""An ONNX file behind `mlflow models serve`.

MLflow keeps a copy of this module and of ``pixels`` with each logged model and imports them alone wherever
the model is served. They therefore need numpy, onnxruntime and pillow, besides MLflow itself, and nothing
from this package.
"""

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import Image

if TYPE_CHECKING or __package__:
    from pipeline import pixels
else:  # the copy beside this one
    import pixels

LARGEST_BODY = 32 * 2**20
"""Most bytes of a request."""
MOST_PIXELS = 10 * pixels.PIXELS
"""Most pixels of all images of a request together."""
LONGEST_MESSAGE = 500
"""Most characters of a message to a client."""
SECONDS_TO_HANG_UP = 5
"""Time for a client to read the refusal of its request while it is still sending."""
SERVER = "__pyfunc_model_path__"
"""Environment variable that MLflow sets in the processes of its scoring server alone."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class BadRequestError(MlflowException, ValueError):
    """The request is not valid: HTTP status 400 and one line that says what is expected."""

    def __init__(self, message: str) -> None:
        super().__init__(_line(message), error_code=INVALID_PARAMETER_VALUE)

    def serialize_as_json(self) -> str:
        """Leave out what the scoring server adds to the message: the whole request."""
        self.message = str(self)
        return super().serialize_as_json()


class ServedClassifier:
    """A classifier that accepts photographs as well as arrays of pixels."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.labels, self.contract = json.loads(metadata["labels"]), json.loads(metadata["input"])
        self.multi_label = metadata.get("task") == "multi-label-image-classification"

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the classes of each image with their probabilities, the most probable first.

        Args:
            model_input: images, each as the bytes of an image file, as such bytes in base64, or as RGB
                pixels, integers from 0 to 255 [height, width, 3], of any size; in a list, an array, the first
                column of a data frame, or the only value of a mapping.
            params: ``top`` is the number of classes per image; 0 returns all.

        Raises:
            BadRequestError: an image cannot be read, or the request has another form.
        """
        top = (params or {}).get("top") or len(self.labels)
        if top < 0:
            raise BadRequestError(f"params.top (={top}) must be at least 0")
        answers: list[dict[str, Any]] = []
        total = 0
        for number, item in enumerate(_items(model_input)):
            try:
                square, count = self._square(item)
            except ValueError as error:
                raise BadRequestError(f"image {number} cannot be read: {error}") from error
            total += count
            if total > MOST_PIXELS:
                raise BadRequestError(
                    f"the first {number + 1} images have {total:,} pixels; at most {MOST_PIXELS:,} are read"
                )
            logits = np.asarray(self.session.run(["logits"], {"images": square[None]})[0])[0]
            probabilities = 1 / (1 + np.exp(-logits)) if self.multi_label else _softmax(logits)
            order = np.argsort(-probabilities, kind="stable")[:top]
            classes = [{"label": self.labels[i], "probability": float(probabilities[i])} for i in order]
            answers.append({"classes": classes})
        if not answers:
            raise BadRequestError("the request holds no image")
        return answers

    def _square(self, item: Any) -> tuple[np.ndarray, int]:
        """The pixels that the model takes of an image, and how many pixels the image has."""
        if isinstance(item, str | np.str_):
            item = _decode_base64(item)
        if isinstance(item, bytes):
            with pixels.opened(item) as image:
                return self._render(image), image.width * image.height
        image = Image.fromarray(_check_pixels(item))
        return self._render(image), image.width * image.height

    def _render(self, image: Image.Image) -> np.ndarray:
        """The centred square, resized as the metadata of the file say."""
        side = self.contract["crop"] * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        resample = Image.Resampling[self.contract["interpolation"].upper()]
        size = (self.contract["size"], self.contract["size"])
        return np.asarray(image.resize(size, resample, box=(left, top, left + side, top + side)))


class Guard:
    """A layer around MLflow's scoring server, which has no limit of its own and shows stack traces.

    A body beyond ``LARGEST_BODY`` is refused with status 413, at once where its length is announced, and
    otherwise as soon as it gets there. An error is JSON with ``error_code`` and ``message``, one line.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI, https://asgi.readthedocs.io)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if int(headers.get(b"content-length", b"0")) > LARGEST_BODY:
            return await _hang_up(receive, send)
        if scope["method"] == "POST" and b"content-type" not in headers:
            return await _answer(send, 415, "BAD_REQUEST", "the request needs a header Content-Type")
        body = bytearray()
        while True:  # MLflow reads the whole body in any case
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > LARGEST_BODY:
                return await _hang_up(receive, send)
            if not message.get("more_body"):
                break
        whole = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])
        del body

        async def replay() -> Message:
            return next(whole, None) or await receive()

        response: list[Message] = []

        async def collect(message: Message) -> None:
            response.append(message)

        try:
            await self.app(scope, replay, collect)
        except Exception as error:
            # Deeply nested JSON, for one, exhausts the parser's stack.
            if isinstance(error, RecursionError):
                return await _answer(send, 400, "BAD_REQUEST", "the request is nested too deeply")
            return await _answer(send, 500, "INTERNAL_ERROR", f"the request ended in {type(error).__name__}")
        start, content = response[0], b"".join(message.get("body", b"") for message in response[1:])
        if start["status"] < 400:
            for message in response:
                await send(message)
            return None
        try:
            fields = json.loads(content)
            code, words = str(fields["error_code"]), str(fields["message"])
        except (ValueError, KeyError, TypeError):
            code, words = "BAD_REQUEST", content.decode("utf-8", "replace")
        return await _answer(send, start["status"], code, words)


def _load_pyfunc(path: str) -> ServedClassifier:
    """MLflow calls this function by its name."""
    if SERVER in os.environ:
        _guard_server()
    return ServedClassifier(path)


def _guard_server() -> None:
    """Put the guard around the application that the scoring server creates right after it loaded the model.

    The scoring server has no hook for it.
    """
    import fastapi

    class GuardedFastAPI(fastapi.FastAPI):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.add_middleware(Guard)

    fastapi.FastAPI = GuardedFastAPI


async def _answer(send: Send, status: int, code: str, words: str, *, close: bool = False) -> None:
    """Send an error; with ``close``, the connection closes after the response, which stays open."""
    content = json.dumps({"error_code": code, "message": _line(words)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *([(b"connection", b"close")] if close else []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": close})


async def _hang_up(receive: Receive, send: Send) -> None:
    """Refuse a body, and throw away for a while what the client is still sending, so that it can read why."""
    limit = f"the request has more than {LARGEST_BODY:,} bytes"
    await _answer(send, 413, "BAD_REQUEST", limit, close=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(SECONDS_TO_HANG_UP):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _line(words: str) -> str:
    """The last part of a message on one line: MLflow puts the whole request in front of it."""
    words = " ".join(words.rpartition("\nError: ")[2].split())
    return words if len(words) <= LONGEST_MESSAGE else f"{words[:LONGEST_MESSAGE]} ..."


def _items(model_input: Any) -> Iterable[Any]:
    if isinstance(model_input, dict):
        if len(model_input) != 1:
            raise BadRequestError(f"the images must be one value; the mapping has {len(model_input)}")
        [model_input] = model_input.values()
    if hasattr(model_input, "iloc"):
        if not model_input.shape[-1]:
            raise BadRequestError("the data frame has no column")
        return model_input.iloc[:, 0] if model_input.ndim > 1 else model_input
    if isinstance(model_input, np.ndarray) and model_input.ndim == 0:
        model_input = model_input.item()
    if isinstance(model_input, str | bytes):
        return [model_input]
    if not isinstance(model_input, Iterable):
        raise BadRequestError(f"a list of images is expected; got {type(model_input).__name__}")
    return model_input


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join((text.partition("base64,")[2] or text).split()), validate=True)
    except ValueError as error:
        raise ValueError(f"it is not valid base64 ({error})") from error


def _check_pixels(item: Any) -> np.ndarray:
    """RGB pixels as uint8 [height, width, 3]."""
    try:
        values = np.asarray(item)
    except (OverflowError, ValueError) as error:
        raise ValueError("it is neither an image file in base64 nor an array of pixels") from error
    if values.ndim == 0:
        raise ValueError("it is neither an image file in base64 nor an array of pixels")
    if values.ndim != 3 or values.shape[2] != 3 or not values.size:
        raise ValueError(f"pixels must have the shape [height, width, 3]; got {list(values.shape)}")
    if not np.issubdtype(values.dtype, np.integer):
        hint = "; multiply values from 0 to 1 by 255 and round them" if values.dtype.kind == "f" else ""
        raise ValueError(f"pixels must be integers from 0 to 255; got {values.dtype}{hint}")
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f"pixels must lie in 0..255; got {values.min()}..{values.max()}")
    if values.shape[0] * values.shape[1] > pixels.PIXELS:
        raise ValueError(f"it has more than {pixels.PIXELS:,} pixels")
    return values.astype(np.uint8)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
