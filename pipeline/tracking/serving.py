"""An ONNX file behind `mlflow models serve`.

MLflow keeps a copy of this module with each logged model and imports it alone wherever the model is served.
It therefore needs numpy, onnxruntime and pillow, and nothing from this package.
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
                pixels, uint8 [height, width, 3], of any size; in a list, an array, the first column of a data
                frame, or the only value of a mapping.
            params: ``top`` is the number of classes per image; 0 returns all.

        Raises:
            ValueError: an image cannot be read.
        """
        top = (params or {}).get("top") or len(self.labels)
        if top < 0:
            raise ValueError(f"`top` (={top}) must be at least 0")
        answers = []
        for number, item in enumerate(_items(model_input)):
            try:
                pixels = self._render(_image(item))
            except (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"image {number} cannot be read: {error}") from error
            logits = np.asarray(self.session.run(["logits"], {"images": pixels[None]})[0])[0]
            probabilities = 1 / (1 + np.exp(-logits)) if self.multi_label else _softmax(logits)
            order = np.argsort(-probabilities, kind="stable")[:top]
            classes = [{"label": self.labels[i], "probability": float(probabilities[i])} for i in order]
            answers.append({"classes": classes})
        return answers

    def _render(self, image: Image.Image) -> np.ndarray:
        """The centred square, resized as the metadata of the file say."""
        side = self.contract["crop"] * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        resample = Image.Resampling[self.contract["interpolation"].upper()]
        size = (self.contract["size"], self.contract["size"])
        return np.asarray(image.resize(size, resample, box=(left, top, left + side, top + side)))


def _load_pyfunc(path: str) -> ServedClassifier:
    """MLflow calls this function by its name."""
    return ServedClassifier(path)


def _items(model_input: Any) -> Iterable[Any]:
    if isinstance(model_input, dict):
        [model_input] = model_input.values()
    if hasattr(model_input, "iloc"):
        return model_input.iloc[:, 0]
    return model_input


def _image(item: Any) -> Image.Image:
    if isinstance(item, str | np.str_):
        try:
            item = base64.b64decode(item.partition("base64,")[2] or item, validate=True)
        except binascii.Error as error:
            raise ValueError(f"it is not valid base64 ({error})") from error
    if isinstance(item, bytes):
        with Image.open(io.BytesIO(item)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    pixels = np.asarray(item)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(
            f"pixels must have the shape [height, width, 3] and lie in 0..255; got {pixels.shape}"
        )
    return Image.fromarray(pixels.astype(np.uint8))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
