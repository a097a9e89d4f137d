"""A shipped file behind `mlflow models serve`.

MLflow keeps a copy of this file beside each logged model and imports it alone, wherever the model is served:
it takes numpy, onnxruntime and pillow, and nothing of this package.
"""

import base64
import binascii
import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Served:
    """A classifier that takes photographs or pixels, and names what they show."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        about = self.session.get_modelmeta().custom_metadata_map
        self.labels, self.rule = json.loads(about["labels"]), json.loads(about["input"])
        self.several = about.get("task") == "multi-label-image-classification"

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Classes of each image with their probabilities, the most probable first.

        Args:
            model_input: image files' bytes, in base64 or as they are; or RGB pixels, uint8
                [batch, height, width, 3], in any size. As a list, an array, the first column of a data
                frame, or the only value of a mapping.
            params: ``top``, the number of classes to name; 0 names all.

        Raises:
            ValueError: an image cannot be read.
        """
        top = (params or {}).get("top") or len(self.labels)
        if top < 0:
            raise ValueError(f"top = {top}: must not be below 0")
        answers = []
        for number, given in enumerate(_items(model_input)):
            try:
                pixels = self._render(_image(given))
            except (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"image {number} cannot be read: {error}") from error
            logits = np.asarray(self.session.run(["logits"], {"images": pixels[None]})[0])[0]
            chances = 1 / (1 + np.exp(-logits)) if self.several else _softmax(logits)
            order = np.argsort(-chances, kind="stable")[:top]
            classes = [{"label": self.labels[i], "probability": float(chances[i])} for i in order]
            answers.append({"classes": classes})
        return answers

    def _render(self, image: Image.Image) -> np.ndarray:
        """The centred square at the size that the file takes, as its metadata say."""
        side = self.rule["crop"] * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        how = Image.Resampling[self.rule["interpolation"].upper()]
        size = (self.rule["size"], self.rule["size"])
        return np.asarray(image.resize(size, how, box=(left, top, left + side, top + side)))


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls, by this name."""
    return Served(path)


def _items(model_input: Any) -> Iterable[Any]:
    if isinstance(model_input, dict):
        [model_input] = model_input.values()
    if hasattr(model_input, "iloc"):
        return model_input.iloc[:, 0]
    return model_input


def _image(given: Any) -> Image.Image:
    if isinstance(given, str | np.str_):
        try:
            given = base64.b64decode(given.partition("base64,")[2] or given, validate=True)
        except binascii.Error as error:
            raise ValueError(f"no base64 ({error})") from error
    if isinstance(given, bytes):
        with Image.open(io.BytesIO(given)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    pixels = np.asarray(given)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"pixels are [height, width, 3] from 0 to 255; got {pixels.shape}")
    return Image.fromarray(pixels.astype(np.uint8))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
