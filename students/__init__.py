"""Student architectures. A new one is one file here and one line in ``ARCHITECTURES``."""

from collections.abc import Callable
from typing import Any

from torch import nn

from students.mobilenet_v1 import MobileNetV1

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"mobilenet_v1": MobileNetV1}
"""Constructor by the name of the architecture; it takes plain keyword arguments."""


def build(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a student with fresh weights from the plain values that its card records."""
    return ARCHITECTURES[architecture](**arguments)
