"""Any classifier of torchvision with any of its weights."""

from pathlib import Path

from torchvision import models
from torchvision.transforms import InterpolationMode

from teachers import state_dicts
from teachers.contract import InputContract
from teachers.errors import TeacherError
from teachers.teacher import Teacher, last_linear


def load(name: str, weights: str | None) -> Teacher:
    """Load a torchvision model.

    ``weights`` is ``default``, a name of the model's enum (``IMAGENET1K_V2``), a local file, or null for
    random weights.

    Raises:
        TeacherError: model or weights are unknown, or the weights cannot be downloaded.
        WeightsError: the local file is damaged, contains code, or belongs to another model.
    """
    local = state_dicts.is_file(weights)
    try:
        enum = models.get_model_weights(name)
    except ValueError as error:
        raise TeacherError(f"torchvision model {name!r}: {' '.join(str(error).split())}") from error
    try:
        pretrained = None if weights is None or local else enum[weights.upper()]
        module = models.get_model(name, weights=pretrained)
    except KeyError as error:
        allowed = ", ".join(["default", *enum.__members__])
        raise TeacherError(
            f"teacher.weights (={weights!r}) must be one of {allowed}, or a {state_dicts.KINDS} file, "
            f"for {name}"
        ) from error
    except (ValueError, OSError) as error:
        raise TeacherError(f"torchvision model {name!r}: {' '.join(str(error).split())}") from error
    head = last_linear(module)
    if local:
        module = state_dicts.build(
            lambda classes: models.get_model(name, num_classes=classes), head, Path(str(weights))
        )
    preset = (pretrained or enum["DEFAULT"]).transforms()
    contract = InputContract(
        size=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation="bicubic" if preset.interpolation == InterpolationMode.BICUBIC else "bilinear",
        crop=preset.crop_size[0] / preset.resize_size[0],
    )
    labels = tuple(pretrained.meta["categories"]) if pretrained else None
    outputs = len(module.get_parameter(f"{head}.weight"))
    origin = f"torchvision {name} ({Path(weights).name if local and weights else weights})"
    return Teacher(module, outputs, contract, head, origin, labels)
