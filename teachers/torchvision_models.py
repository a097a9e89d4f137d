"""Any classifier of torchvision with any of its weights."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from teachers import hubs, local_files, state_dicts, teacher
from teachers.contract import InputContract
from teachers.errors import TeacherError, one_line
from teachers.hubs import HubError
from teachers.teacher import Teacher

AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""Classifiers of GoogLeNet and Inception that stand in the middle of the network and only help to train
it."""
HALF = (0.5, 0.5, 0.5)


def load(name: str, weights: str | None) -> Teacher:
    """Load a torchvision model.

    ``weights`` is ``default``, a name of the model's enum (``IMAGENET1K_V2``), a local file, or null for
    random weights. Auxiliary classifiers are left out.

    Raises:
        TeacherError: model or weights are unknown, or the weights cannot be downloaded.
        WeightsError: the local file is damaged, contains code, or belongs to another model.
    """
    local = local_files.is_weights(weights)
    try:
        enum = models.get_model_weights(name)
    except ValueError as error:
        raise TeacherError(f"torchvision model {name!r}: {one_line(error)}") from error
    try:
        pretrained = None if weights is None or local else enum[weights.upper()]
        with hub(name, weights):
            module = create(name, weights=pretrained)
    except HubError:
        raise
    except KeyError as error:
        allowed = ", ".join(["default", *enum.__members__])
        raise TeacherError(
            f"teacher.weights (={weights!r}) must be one of {allowed}, or a {local_files.KINDS} file, "
            f"for {name}"
        ) from error
    except Exception as error:  # downloads and the file system fail in many ways
        raise TeacherError(f"torchvision model {name!r}: {one_line(error)}") from error
    preset = (pretrained or enum["DEFAULT"]).transforms()
    if not hasattr(preset, "crop_size"):
        raise TeacherError(f"torchvision model {name!r} is not an image classifier")
    transforms_itself = hasattr(module, "transform_input")
    contract = InputContract(
        size=preset.crop_size[0],
        mean=HALF if transforms_itself else tuple(preset.mean),
        std=HALF if transforms_itself else tuple(preset.std),
        interpolation="bicubic" if preset.interpolation == InterpolationMode.BICUBIC else "bilinear",
        crop=preset.crop_size[0] / preset.resize_size[0],
    )
    names = tuple(pretrained.meta["categories"]) if pretrained else None
    origin = f"torchvision {name} ({Path(weights).name if local and weights else weights})"
    loaded = teacher.describe(module, contract, origin, names)
    if not local:
        return loaded
    module = state_dicts.build(
        lambda classes: create(name, num_classes=classes), loaded.heads, Path(str(weights)), AUXILIARY
    )
    return teacher.describe(module, contract, origin)


def hub(name: str, weights: str | None) -> AbstractContextManager[None]:
    """Where the weights of a model come from, as ``hubs.download``; what is unknown is left to ``load``."""
    try:
        pretrained = models.get_model_weights(name)[str(weights).upper()]
    except (KeyError, ValueError):
        return nullcontext()
    is_local = hubs.in_torch_cache(pretrained.url)
    return hubs.download(hubs.TORCHVISION, f"torchvision model {name!r}", hubs.OWN_WEIGHTS, is_local=is_local)


def create(name: str, **arguments: Any) -> nn.Module:
    """Create a model without auxiliary classifiers, which takes its input as its contract says.

    GoogLeNet and Inception with published weights rescale their input from ImageNet's mean and standard
    deviation to [-1, 1]. Here they get [-1, 1] at once, whatever their weights.
    """
    if any(part in name for part in ("googlenet", "inception")):
        arguments |= {"init_weights": False}
    module = models.get_model(name, **arguments)
    if hasattr(module, "transform_input"):
        setattr(module, "transform_input", False)  # noqa: B010 - typed as a tensor or a module
    for part in AUXILIARY:
        if hasattr(module, part):
            setattr(module, part, None)
    if hasattr(module, "aux_logits"):
        setattr(module, "aux_logits", False)  # noqa: B010 - typed as a tensor or a module
    return module
