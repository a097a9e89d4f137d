"""A small student with random weights whose batch norms have statistics that matter."""

from typing import Any

import torch
from torch import nn

import students

CHANNELS = (16, 16, 24, 24, 32, 32, 40, 40, 40, 40, 40, 40, 48, 48)
ARGUMENTS: dict[str, Any] = {"classes": 5, "channels": CHANNELS}
SIZE = 32
"""Side of its images in pixels."""


def build(arguments: dict[str, Any] = ARGUMENTS, seed: int = 0) -> nn.Module:
    """Build a MobileNetV1 in evaluation mode from the seed alone."""
    torch.manual_seed(seed)
    module = students.build("mobilenet_v1", arguments)
    for name, norm in module.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.5)
            nn.init.normal_(module.get_buffer(f"{name}.running_mean"), std=0.2)
            nn.init.uniform_(module.get_buffer(f"{name}.running_var"), 0.5, 2.0)
    nn.init.normal_(module.get_parameter("classifier.weight"), std=0.5)
    return module.eval()
