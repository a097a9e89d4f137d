"""Any image classifier of Hugging Face: a folder that ``save_pretrained`` wrote, or a hub id."""

import inspect
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, BaseImageProcessor
from transformers.utils import logging

from teachers import hubs, teacher
from teachers.contract import InputContract
from teachers.errors import TeacherError, WeightsError, one_line
from teachers.hubs import HubError
from teachers.teacher import Teacher

logging.disable_progress_bar()

PLACEHOLDER = re.compile(r"LABEL_\d+")
"""Class names that Hugging Face makes up for a configuration without any."""
BICUBIC = 3
"""Number of Pillow's bicubic resampling filter."""


class Logits(nn.Module):
    """A Hugging Face classifier that returns its logits alone."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.size = getattr(getattr(classifier, "config", None), "image_size", None)
        """Side of the images for which a vision transformer has positions, which it can interpolate."""
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(classifier.forward).parameters

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        if self.interpolates and x.shape[-1] != self.size:
            return self.classifier(pixel_values=x, interpolate_pos_encoding=True).logits
        return self.classifier(pixel_values=x).logits


def load(name: str, weights: str | None) -> Teacher:
    """Load the classifier ``name``; ``weights`` is ``default`` for its own weights or null for random ones.

    Raises:
        TeacherError: the model does not exist, is not an image classifier, or has unknown preprocessing.
        WeightsError: some of its tensors are missing.
    """
    if weights not in ("default", None):
        raise TeacherError(f"teacher.weights (={weights!r}) must be `default` or null for hugging_face")
    try:
        with hub(name, weights):
            config = AutoConfig.from_pretrained(name)
            if weights is None:
                classifier, missing = AutoModelForImageClassification.from_config(config), []
            else:
                classifier, loading = AutoModelForImageClassification.from_pretrained(
                    name, use_safetensors=None, output_loading_info=True
                )
                missing = sorted(loading["missing_keys"])
            rule, _ = BaseImageProcessor.get_image_processor_dict(name)
    except HubError:
        raise
    except Exception as error:  # the library, its hub and the file system fail in many ways
        raise TeacherError(f"Hugging Face model {name!r}: {one_line(error)}") from error
    if missing:
        raise WeightsError(
            f"Hugging Face model {name!r}: {len(missing)} tensors are missing ({', '.join(missing[:2])}); "
            "they would be random"
        )
    names = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
    known = None if all(PLACEHOLDER.fullmatch(label) for label in names) else names
    loaded = teacher.describe(Logits(classifier), contract(name, rule), f"Hugging Face {name}", known)
    if known and len(known) != loaded.outputs:
        raise TeacherError(f"Hugging Face model {name!r}: {len(known)} names for {loaded.outputs} logits")
    return loaded


def hub(name: str, weights: str | None) -> AbstractContextManager[None]:
    """Where a model comes from, as ``hubs.download``."""
    needed = [
        ("config.json",),
        ("preprocessor_config.json",),
        *([hubs.HUGGING_FACE_FILES] if weights else []),
    ]
    if not Path(name).is_dir():
        hubs.check_id(name)
    is_local = Path(name).is_dir() or all(hubs.in_hugging_face_cache(name, *names) for names in needed)
    return hubs.download(
        hubs.HUGGING_FACE, f"Hugging Face model {name!r}", hubs.OWN_FOLDER, is_local=is_local
    )


def contract(name: str, rule: dict[str, Any]) -> InputContract:
    """Read the input contract from an image processor's configuration.

    Raises:
        TeacherError: the configuration shifts pixels after rescaling, or has no size.
    """
    if rule.get("rescale_offset"):
        raise TeacherError(
            f"Hugging Face model {name!r}: an image processor with rescale_offset is not supported"
        )
    resize_side = _side(rule.get("size"))
    crop_side = _side(rule.get("crop_size")) if rule.get("do_center_crop") else None
    size = crop_side or resize_side
    if size is None:
        raise TeacherError(
            f"Hugging Face model {name!r}: its image processor must have a size; found {rule.get('size')}"
        )
    scale = 255 * rule.get("rescale_factor", 1 / 255) if rule.get("do_rescale", True) else 255.0
    normalises = rule.get("do_normalize", True)
    mean = rule.get("image_mean", (0.5,) * 3) if normalises else (0.0,) * 3
    std = rule.get("image_std", (0.5,) * 3) if normalises else (1.0,) * 3
    return InputContract(
        size=size,
        mean=_divide(mean, scale),
        std=_divide(std, scale),
        interpolation="bicubic" if rule.get("resample") == BICUBIC else "bilinear",
        crop=rule.get("crop_pct") or min(1.0, size / (resize_side or size)),
    )


def _divide(values: Sequence[float], scale: float) -> tuple[float, float, float]:
    red, green, blue = (value / scale for value in values)
    return red, green, blue


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        return size.get("shortest_edge") or size.get("height")
    return size
