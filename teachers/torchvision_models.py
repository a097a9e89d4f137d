"""Any classifier of torchvision with any of its weights."""

from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from teachers.contract import InputContract
from teachers.teacher import Teacher, TeacherError


def load(name: str, weights: str | None) -> Teacher:
    """A torchvision model; ``weights`` is ``default``, a name of its enum (``IMAGENET1K_V2``) or null.

    Raises:
        TeacherError: model or weights are unknown, or the weights cannot be fetched.
    """
    try:
        enum = models.get_model_weights(name)
    except ValueError as error:
        raise TeacherError(f"torchvision model {name!r}: {' '.join(str(error).split())}") from error
    try:
        chosen = None if weights is None else enum[weights.upper()]
        module = models.get_model(name, weights=chosen)
    except KeyError as error:
        allowed = ", ".join(["default", *enum.__members__])
        raise TeacherError(f"teacher.weights: {weights!r}: {name} has {allowed}") from error
    except (ValueError, OSError) as error:
        raise TeacherError(f"torchvision model {name!r}: {' '.join(str(error).split())}") from error
    preset = (chosen or enum["DEFAULT"]).transforms()
    contract = InputContract(
        size=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation="bicubic" if preset.interpolation == InterpolationMode.BICUBIC else "bilinear",
        crop=preset.crop_size[0] / preset.resize_size[0],
    )
    head = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)][-1]
    return Teacher(module, contract, head=head, origin=f"torchvision {name} ({weights})")
