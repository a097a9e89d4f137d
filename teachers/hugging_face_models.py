"""Any image classifier of Hugging Face: a folder that ``save_pretrained`` wrote, or a hub id."""

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
)
from transformers.utils import logging

from teachers import hubs, teacher
from teachers.contract import InputContract
from teachers.errors import TeacherError, WeightsError, one_line
from teachers.hubs import HubError
from teachers.teacher import Teacher

logging.disable_progress_bar()

Colour = tuple[float, float, float]
"""One number each for red, green and blue."""

PLACEHOLDER = re.compile(r"LABEL_\d+")
"""Class names that Hugging Face makes up for a configuration without any."""
BICUBIC = 3
"""Number of Pillow's bicubic resampling filter."""
WARPED = 384
"""Side in pixels from which ConvNeXt's image processor, the one with ``crop_pct``, crops nothing."""
PLAIN_SIDE = 1024
"""Side in pixels of the images of one colour that an image processor is tried with; none pads those."""
EXACT = 1e-4
"""Greatest difference of a mean or a standard deviation that single precision explains."""


class Logits(nn.Module):
    """A Hugging Face classifier that returns its logits alone.

    Args:
        classifier: the network.
        blue_first: whether it takes blue, green and red, as MobileViT does, instead of red, green and blue.
    """

    def __init__(self, classifier: nn.Module, blue_first: bool = False) -> None:
        super().__init__()
        self.classifier = classifier
        self.blue_first = blue_first
        self.size = getattr(getattr(classifier, "config", None), "image_size", None)
        """Side of the images for which a vision transformer has positions, which it can interpolate."""
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(classifier.forward).parameters

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        if self.blue_first:
            x = x.flip(1)
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
            processor = AutoImageProcessor.from_pretrained(name)
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
    # The library keeps the type in which weights were published, and half precision cannot be trained.
    given, blue_first = measured(name, processor, contract(name, rule))
    loaded = teacher.describe(Logits(classifier.float(), blue_first), given, f"Hugging Face {name}", known)
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
            f"Hugging Face model {name!r}: its image processor must have a size of square images; found "
            f"{rule.get('size')}"
        )
    mean, std = scaling(rule)
    share = rule.get("crop_pct") if size < WARPED else None
    return InputContract(
        size=size,
        mean=mean,
        std=std,
        interpolation="bicubic" if rule.get("resample") == BICUBIC else "bilinear",
        crop=share or min(1.0, size / (resize_side or size)),
    )


def scaling(rule: Mapping[str, Any]) -> tuple[Colour, Colour]:
    """Mean and standard deviation of RGB values in [0, 1], by the configuration of an image processor.

    Raises:
        TeacherError: they are not three numbers each.
    """
    scale = 255 * rule.get("rescale_factor", 1 / 255) if rule.get("do_rescale", True) else 255.0
    normalises = rule.get("do_normalize", True)
    mean = rule.get("image_mean", (0.5,) * 3) if normalises else (0.0,) * 3
    std = rule.get("image_std", (0.5,) * 3) if normalises else (1.0,) * 3
    if min(deviations := _divide(std, scale)) <= 0:
        raise TeacherError(f"an image processor has a standard deviation of {std!r}; it must be above 0")
    return _divide(mean, scale), deviations


def measured(name: str, processor: Callable[..., Any], declared: InputContract) -> tuple[InputContract, bool]:
    """Correct a contract by what the image processor does with images of one colour.

    Its settings alone do not say all: some classes of processors do what no key names, or have keys of their
    own.

    Returns:
        The contract, and whether the network takes blue, green and red.

    Raises:
        TeacherError: the processor fails, gives images of another size, or mixes colours.
    """
    problem = f"Hugging Face model {name!r}: its image processor"
    try:
        black, white, red = (_processed(processor, colour) for colour in ("black", "white", "red"))
    except Exception as error:  # the library's processors have no common errors
        raise TeacherError(f"{problem} fails: {one_line(error)}") from error
    sides = black.shape[1:]
    if sides not in ((declared.size, declared.size), (PLAIN_SIDE, PLAIN_SIDE)):
        raise TeacherError(f"{problem} must give {declared.size} pixels as it declares; found {sides}")
    low, high, middle = (image[:, sides[0] // 2, sides[1] // 2] for image in (black, white, red))
    redness = (middle - low) / (high - low)
    blue_first = bool(np.allclose(redness, (0, 0, 1), atol=EXACT))
    if not (blue_first or np.allclose(redness, (1, 0, 0), atol=EXACT)) or not (high > low).all():
        raise TeacherError(
            f"{problem} must scale and shift each colour by itself; it makes {low.tolist()} of black, "
            f"{high.tolist()} of white, and {middle.tolist()} of red"
        )
    std = 1 / (high - low)
    mean = 0.0 - low * std
    if blue_first:
        mean, std = mean[::-1], std[::-1]
    if np.allclose(mean, declared.mean, atol=EXACT) and np.allclose(std, declared.std, atol=EXACT):
        return declared, blue_first
    return replace(declared, mean=_divide(mean.round(6), 1.0), std=_divide(std.round(6), 1.0)), blue_first


def _processed(processor: Callable[..., Any], colour: str) -> Float[np.ndarray, "3 height width"]:
    image = Image.new("RGB", (PLAIN_SIDE, PLAIN_SIDE), colour)
    pixels = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"][0], np.float64)
    if pixels.ndim != 3 or len(pixels) != 3:
        raise ValueError(f"3 x height x width values are expected; found {pixels.shape}")
    return pixels


def _divide(values: Any, scale: float) -> Colour:
    try:
        red, green, blue = (float(value) / scale for value in values)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise TeacherError(
            f"an image processor has a mean or standard deviation of {values!r}; three numbers are expected"
        ) from error
    return red, green, blue


def _side(size: Any) -> int | None:
    """Height and width of square images in pixels; None for others."""
    if isinstance(size, dict):
        size = [side for key in ("shortest_edge", "height", "width") if (side := size.get(key))]
    sides = {*size} if isinstance(size, list) else {size}
    return next(iter(sides)) if len(sides) == 1 else None
