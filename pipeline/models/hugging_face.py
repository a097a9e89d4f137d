"""A float student as the `MobileNetV1ForImageClassification` of the library transformers.

That network has one multiplier for all widths, so a student with free widths cannot be written as one.
"""

from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import MobileNetV1Config, MobileNetV1ForImageClassification, MobileNetV1ImageProcessor

from pipeline.errors import DistilleryError
from pipeline.models.storage import Card, Model
from students import published
from students.mobilenet_v1 import BASE_CHANNELS
from teachers.contract import RESAMPLING

MINIMUM_CHANNELS = 8
"""Least number of channels of a layer by default in transformers."""
MOST_DIGITS = 17
"""Decimals that tell every two multipliers apart."""


class NotExpressibleError(DistilleryError):
    """The network of transformers cannot compute what this student computes; the message says why."""


def write(model: Model, folder: Path) -> list[Path]:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

    ``from_pretrained`` of transformers loads them.

    Args:
        model: a float student.
        folder: an existing folder.

    Returns:
        The files that were written.

    Raises:
        NotExpressibleError: the student is quantised, has free widths or no batch norms.
    """
    network = MobileNetV1ForImageClassification(MobileNetV1Config(**configuration(model)))
    network.load_state_dict(_tensors(model.module.state_dict()))
    before = set(folder.iterdir())
    transformers.utils.logging.disable_progress_bar()
    network.eval().save_pretrained(folder)
    MobileNetV1ImageProcessor(**preparation(model.card)).save_pretrained(folder)
    return sorted(set(folder.iterdir()) - before)


def _tensors(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under transformers' names: the reverse of ``published.translate``."""
    layout = published.LAYOUTS["hugging_face"]
    theirs = {name: ours[name] for name in layout.classifier}
    for path, unit in published.units():
        theirs[layout.convolution(unit)] = ours[f"{path}.conv.weight"]
        for name, below in layout.norm_tensors.items():
            theirs[layout.norm(unit) + below] = ours[f"{path}.norm.{name}"]
    return theirs


def configuration(model: Model) -> dict[str, Any]:
    """Arguments of transformers' configuration.

    Raises:
        NotExpressibleError: the student is quantised, has free widths or no batch norms.
    """
    card = model.card
    name, arguments = card.variant, card.arguments
    if model.quantization is not None:
        raise NotExpressibleError(f"{name} is quantised, and transformers has MobileNetV1 in float only")
    if not arguments.get("norm", True):
        raise NotExpressibleError(
            f"{name} has its batch norms folded into its convolutions, and MobileNetV1 of transformers has "
            "batch norms"
        )
    channels = published.channels(model.module.state_dict())
    assert channels is not None  # every student is a MobileNetV1
    found = multiplier(channels)
    if found is None:
        raise NotExpressibleError(
            f"{name} has widths of its own ({', '.join(map(str, channels))}), and MobileNetV1 of "
            "transformers has one multiplier for all layers (depth_multiplier)"
        )
    width, minimum = found
    labels = dict(enumerate(card.labels))
    several = card.task == "multi_label"
    return {
        "depth_multiplier": width,
        "min_depth": minimum,
        "image_size": card.input.size,
        "hidden_act": arguments.get("activation", "relu"),
        "tf_padding": arguments.get("padding", "symmetric") == "same",
        "layer_norm_eps": arguments.get("norm_eps", 1e-3),
        "classifier_dropout_prob": arguments.get("dropout", 0.0),
        "id2label": labels,
        "label2id": {label: index for index, label in labels.items()},
        "problem_type": f"{'multi' if several else 'single'}_label_classification",
    }


def preparation(card: Card) -> dict[str, Any]:
    """Arguments of transformers' image processor.

    It resizes the whole image and crops then, where this pipeline resizes the centred square in one step, so
    the pixels are not quite the same. The crop takes the same number of pixels from both sides: with an odd
    number to take, the picture would be shifted by half a pixel.
    """
    contract = card.input
    margin = round((contract.size / contract.crop - contract.size) / 2)
    return {
        "size": {"shortest_edge": contract.size + 2 * margin},
        "crop_size": {"height": contract.size, "width": contract.size},
        "resample": int(RESAMPLING[contract.interpolation]),
        "image_mean": list(contract.mean),
        "image_std": list(contract.std),
        "do_convert_rgb": True,
    }


def multiplier(channels: tuple[int, ...]) -> tuple[float, int] | None:
    """Find the ``depth_multiplier`` and ``min_depth`` at which transformers has these channels.

    A layer has the integer part of its channels at width 1 times the multiplier, and at least the minimum.
    Of all such multipliers, the one with the fewest digits is taken.

    Args:
        channels: output channels of the stem and of each pointwise convolution.

    Returns:
        The two values, or None if there are none.
    """
    for minimum in dict.fromkeys((MINIMUM_CHANNELS, min(channels))):
        free = [(base, count) for base, count in zip(BASE_CHANNELS, channels, strict=True) if count > minimum]
        least = max((count / base for base, count in free), default=minimum / max(BASE_CHANNELS))
        for digits in range(1, MOST_DIGITS):
            # The next number of as many digits, and the one below it, which rounding may have skipped.
            for steps in (0, 1):
                width = (int(least * 10**digits) + steps) / 10**digits
                if tuple(max(int(base * width), minimum) for base in BASE_CHANNELS) == channels:
                    return width, minimum
    return None
