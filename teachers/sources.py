"""Sources of teachers. A new one is one file and one line here."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from teachers import efficientnet_lite, hugging_face_models, onnx_files, timm_models, torchvision_models
from teachers.teacher import Teacher

SOURCES: dict[str, Callable[[str, str | None], Teacher]] = {
    "efficientnet_lite": efficientnet_lite.load,
    "hugging_face": hugging_face_models.load,
    "onnx": onnx_files.load,
    "timm": timm_models.load,
    "torchvision": torchvision_models.load,
}
"""Loader by the name of the source; it takes the name of a model and the name of its weights."""

HUBS: dict[str, Callable[[str, str | None], AbstractContextManager[None]]] = {
    "hugging_face": hugging_face_models.hub,
    "timm": timm_models.hub,
    "torchvision": torchvision_models.hub,
}
"""Where the weights of a model come from, as ``hubs.download``, for the sources that download them."""
