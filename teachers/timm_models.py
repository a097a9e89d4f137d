"""Any model of timm (https://github.com/huggingface/pytorch-image-models)."""

from pathlib import Path

import timm
from timm.data.config import resolve_model_data_config
from torch import nn

from teachers import state_dicts
from teachers.contract import InputContract
from teachers.errors import TeacherError
from teachers.teacher import Teacher


def load(name: str, weights: str | None) -> Teacher:
    """Load a timm model.

    ``weights`` is ``default`` for pretrained weights, a local file, or null for random ones.

    Raises:
        TeacherError: the name is unknown, or the weights cannot be downloaded.
        WeightsError: the local file is damaged, contains code, or belongs to another model.
    """
    local = state_dicts.is_file(weights)
    if not local and weights not in ("default", None):
        raise TeacherError(
            f"teacher.weights (={weights!r}) must be `default`, a {state_dicts.KINDS} file or null for timm"
        )
    try:
        module = timm.create_model(name, pretrained=weights == "default")
    except (RuntimeError, OSError, ValueError) as error:
        raise TeacherError(f"timm model {name!r}: {' '.join(str(error).split())}") from error
    teacher = describe(module, f"timm {name}")
    if not local:
        return teacher
    module = state_dicts.build(
        lambda classes: timm.create_model(name, num_classes=classes), teacher.head, Path(str(weights))
    )
    return describe(module, f"timm {name}, weights of {Path(str(weights)).name}")


def describe(module: nn.Module, origin: str) -> Teacher:
    """Make a teacher of a timm module, with the input contract from timm's configuration."""
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
    return Teacher(module, int(module.num_classes), contract, str(classifier), origin)  # pyright: ignore[reportArgumentType] - timm's
