"""Sources of teachers. A new one is one file, and one function here.

The file of a source is imported when it is used: timm, torchvision and transformers take up to a second each,
which every stage would wait for.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from teachers.teacher import Teacher


def _efficientnet_lite(name: str, weights: str | None) -> Teacher:
    from teachers import efficientnet_lite

    return efficientnet_lite.load(name, weights)


def _hugging_face(name: str, weights: str | None) -> Teacher:
    from teachers import hugging_face_models

    return hugging_face_models.load(name, weights)


def _hugging_face_hub(name: str, weights: str | None) -> AbstractContextManager[None]:
    from teachers import hugging_face_models

    return hugging_face_models.hub(name, weights)


def _onnx(name: str, weights: str | None) -> Teacher:
    from teachers import onnx_files

    return onnx_files.load(name, weights)


def _timm(name: str, weights: str | None) -> Teacher:
    from teachers import timm_models

    return timm_models.load(name, weights)


def _timm_hub(name: str, weights: str | None) -> AbstractContextManager[None]:
    from teachers import timm_models

    return timm_models.hub(name, weights)


def _torchvision(name: str, weights: str | None) -> Teacher:
    from teachers import torchvision_models

    return torchvision_models.load(name, weights)


def _torchvision_hub(name: str, weights: str | None) -> AbstractContextManager[None]:
    from teachers import torchvision_models

    return torchvision_models.hub(name, weights)


SOURCES: dict[str, Callable[[str, str | None], Teacher]] = {
    "efficientnet_lite": _efficientnet_lite,
    "hugging_face": _hugging_face,
    "onnx": _onnx,
    "timm": _timm,
    "torchvision": _torchvision,
}
"""Loader by the name of the source; it takes the name of a model and the name of its weights."""

HUBS: dict[str, Callable[[str, str | None], AbstractContextManager[None]]] = {
    "hugging_face": _hugging_face_hub,
    "timm": _timm_hub,
    "torchvision": _torchvision_hub,
}
"""Where the weights of a model come from, as ``hubs.download``, for the sources that download them."""
