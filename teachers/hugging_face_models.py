"""Any image classifier of Hugging Face: a folder as ``save_pretrained`` writes it, or a hub id."""

import re
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, BaseImageProcessor
from transformers.utils import logging

from teachers.contract import InputContract
from teachers.errors import TeacherError
from teachers.teacher import Teacher, last_linear

logging.disable_progress_bar()

PLACEHOLDER = re.compile(r"LABEL_\d+")
"""What a configuration without class names names its classes."""
BICUBIC = 3
"""Of Pillow's resampling filters."""


class Logits(nn.Module):
    """A Hugging Face classifier that gives nothing but its logits."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(pixel_values=x).logits


def load(name: str, weights: str | None) -> Teacher:
    """The classifier ``name``; ``weights`` is ``default`` for its own or null for random ones.

    Raises:
        TeacherError: there is no such model, it is no image classifier, or its preprocessing is unknown.
    """
    if weights not in ("default", None):
        raise TeacherError(f"teacher.weights: {weights!r}: hugging_face takes `default` or null")
    try:
        config = AutoConfig.from_pretrained(name)
        classifier = (
            AutoModelForImageClassification.from_config(config)
            if weights is None
            else AutoModelForImageClassification.from_pretrained(name, use_safetensors=None)
        )
        rule, _ = BaseImageProcessor.get_image_processor_dict(name)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise TeacherError(f"Hugging Face model {name!r}: {' '.join(str(error).split())}") from error
    module = Logits(classifier)
    names = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
    return Teacher(
        module,
        len(names),
        contract(name, rule),
        last_linear(module),
        f"Hugging Face {name}",
        None if all(PLACEHOLDER.fullmatch(label) for label in names) else names,
    )


def contract(name: str, rule: dict[str, Any]) -> InputContract:
    """The input contract that an image processor's configuration describes.

    Raises:
        TeacherError: it shifts pixels by more than a mean, or names no size.
    """
    if rule.get("rescale_offset"):
        raise TeacherError(
            f"Hugging Face model {name!r}: an image processor with rescale_offset is not supported"
        )
    resized = _side(rule.get("size"))
    cropped = _side(rule.get("crop_size")) if rule.get("do_center_crop") else None
    size = cropped or resized
    if size is None:
        raise TeacherError(
            f"Hugging Face model {name!r}: its image processor names no size: {rule.get('size')}"
        )
    scale = 255 * rule.get("rescale_factor", 1 / 255) if rule.get("do_rescale", True) else 255.0
    normalised = rule.get("do_normalize", True)
    mean = rule.get("image_mean", (0.5,) * 3) if normalised else (0.0,) * 3
    std = rule.get("image_std", (0.5,) * 3) if normalised else (1.0,) * 3
    return InputContract(
        size=size,
        mean=_scaled(mean, scale),
        std=_scaled(std, scale),
        interpolation="bicubic" if rule.get("resample") == BICUBIC else "bilinear",
        crop=rule.get("crop_pct") or min(1.0, size / (resized or size)),
    )


def _scaled(values: Sequence[float], scale: float) -> tuple[float, float, float]:
    red, green, blue = (value / scale for value in values)
    return red, green, blue


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        return size.get("shortest_edge") or size.get("height")
    return size
