"""Any model of timm (https://github.com/huggingface/pytorch-image-models)."""

import timm
from timm.data.config import resolve_model_data_config
from torch import nn

from teachers.contract import InputContract
from teachers.teacher import Teacher, TeacherError


def load(name: str, weights: str | None) -> Teacher:
    """A timm model; ``weights`` is ``default`` for the pretrained ones or null for random ones.

    Raises:
        TeacherError: the name is unknown, or the weights cannot be fetched.
    """
    if weights not in ("default", None):
        raise TeacherError(f"teacher.weights: {weights!r}: timm takes `default` or null")
    try:
        module = timm.create_model(name, pretrained=weights is not None)
    except (RuntimeError, OSError, ValueError) as error:
        raise TeacherError(f"timm model {name!r}: {' '.join(str(error).split())}") from error
    return describe(module, f"timm {name}")


def describe(module: nn.Module, origin: str) -> Teacher:
    """The teacher that a timm module is, its input contract read from timm's own configuration."""
    config = resolve_model_data_config(module)
    interpolation = config["interpolation"]
    classifier = module.default_cfg["classifier"]  # pyright: ignore[reportIndexIssue, reportArgumentType] - a dict
    contract = InputContract(
        size=config["input_size"][-1],
        mean=config["mean"],
        std=config["std"],
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        crop=config["crop_pct"],
    )
    return Teacher(module, contract, head=str(classifier), origin=origin)
