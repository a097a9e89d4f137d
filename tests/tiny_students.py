"""Small students for the tests. Every call returns a copy of its own, which a test may change."""

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

import students
from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import Network, trace
from pipeline.models.storage import Card, Model, Quantization
from pipeline.onnx import export
from pipeline.quantization import half_precision, stem
from pipeline.quantization.grid import PIXEL_SCALE, int8_activations
from pipeline.quantization.post_training import Workbench
from pipeline.quantization.settings import Step
from pipeline.quantization.simulator import simulate
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract

SIZE = 64
"""Side of the images in pixels, unless a test asks for another."""
FLOAT_LAYERS = ("stem", "blocks.0.depthwise")
"""Layers that may stay in float in an int8 file."""
NARROW = (8, 8, 16, 24, 40, 56, 64, 88, 96, 104, 104, 120, 200, 248)
"""Channels that pruning may leave of ``student``."""
CHANNELS = (16, 16, 24, 24, 32, 32, 40, 40, 40, 40, 40, 40, 48, 48)
"""Channels of a network that is narrow enough to be pruned many times."""
ARGUMENTS: dict[str, Any] = {"classes": 5, "channels": CHANNELS}
"""Arguments of ``random_network``, unless a test asks for others."""
UNEVEN = (8, 24, 32, 40, 40, 48, 48, 48, 56, 48, 48, 48, 64, 72)
"""Channels that are not multiples of 16."""


def photographs(count: int, size: int = SIZE) -> UInt8[Tensor, "count size size 3"]:
    """Smooth random images as bytes, from PyTorch's global random state."""
    smooth = nn.functional.interpolate(torch.rand(count, 3, 4, 4), size=(size, size), mode="bicubic")
    return smooth.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def card(arguments: dict[str, Any], contract: InputContract, **changes: Any) -> Card:
    """The card of a MobileNetV1 with four classes."""
    values: dict[str, Any] = {
        "variant": "tiny",
        "parent": "teacher",
        "op": "distill",
        "architecture": "mobilenet_v1",
        "arguments": arguments,
        "input": contract,
        "labels": ("a", "b", "c", "d"),
        "teacher": "none",
        "data_sha256": "00ff",
        "license": "CC0-1.0",
        "settings": {},
    }
    return Card(**{**values, **changes})


def student(
    contract: InputContract | None = None,
    activation: str = "relu",
    seed: int = 0,
    padding: str = "symmetric",
) -> Model:
    """A small MobileNetV1 whose batch norms have seen data, so that its activations are alive."""
    return copy.deepcopy(_student(contract or InputContract(SIZE), activation, seed, padding))


@functools.cache
def _student(contract: InputContract, activation: str, seed: int, padding: str) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        arguments = {
            "classes": 4,
            "channels": list(scaled_channels(0.25)),
            "activation": activation,
            "padding": padding,
            "size": contract.size,
        }
        module = students.build("mobilenet_v1", arguments)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, mean=1.0, std=0.3)
        assert isinstance(module.classifier, nn.Linear)
        nn.init.normal_(module.classifier.weight, std=0.3)
        with torch.no_grad():
            module.train()(contract.normalise(photographs(32, contract.size)))
    return Model(module.eval(), card(arguments, contract))


def random_network(arguments: dict[str, Any] = ARGUMENTS, seed: int = 0) -> nn.Module:
    """A MobileNetV1 with random weights whose batch norms have statistics that matter.

    Seeds PyTorch's global random state, from which the test draws its images.
    """
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


def folded(model: Model) -> Network:
    """The model without batch norms, whose weights may be changed."""
    network = fold_batch_norm(model)
    network.module.requires_grad_(False)
    return network


def calibration(contract: InputContract) -> Iterator[Tensor]:
    """Normalised images in batches, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield from contract.normalise(photographs(32, contract.size)).split(8)


def quantized(
    model: Model,
    limit: int = 63,
    float_layers: tuple[str, ...] = (),
    steps: tuple[Step, ...] = ("bias_correction",),
) -> Model:
    """The model after post-training quantisation by the given steps; an int8 stem reads bytes."""
    if "stem" not in float_layers:
        model = stem.read_bytes(model)
    bench = Workbench(
        model, lambda: calibration(model.card.input), weight_limit=limit, float_layers=float_layers
    )
    network, quantization = bench.make(steps)
    arguments = {**model.card.arguments, "norm": False}
    return Model(
        network.module,
        replace(model.card, arguments=arguments, variant=f"{model.card.variant}-int8"),
        quantization,
    )


def in_half(model: Model) -> Model:
    """The model in half precision."""
    network = half_precision.round_weights(fold_batch_norm(model))
    arguments = {**model.card.arguments, "norm": False}
    return Model(
        network.module,
        replace(model.card, arguments=arguments, variant=f"{model.card.variant}-fp16"),
        half=True,
    )


def int8_student(
    limit: int = 63, float_layers: tuple[str, ...] = (), activation: str = "relu", size: int = SIZE
) -> Model:
    """The small student after post-training quantisation."""
    return copy.deepcopy(_int8_student(limit, float_layers, activation, size))


@functools.cache
def _int8_student(limit: int, float_layers: tuple[str, ...], activation: str, size: int) -> Model:
    return quantized(student(InputContract(size), activation), limit, float_layers)


def uneven_student(
    size: int = SIZE, float_layers: tuple[str, ...] = (), **arguments: Any
) -> tuple[Network, Quantization]:
    """A folded network with random weights and uneven channels, and some quantisation of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"classes": 3, "channels": UNEVEN, "size": size, "norm": False, **arguments}
        network = trace(students.build("mobilenet_v1", settings).eval())
        for part in network.parts.values():
            if isinstance(part, nn.Conv2d):
                assert part.bias is not None
                nn.init.normal_(part.bias)
    steps = {
        name: part.weight.detach().flatten(1).abs().amax(dim=1) / 127
        for name, part in network.parts.items()
        if name not in float_layers
    }
    names = int8_activations(network, float_layers)
    scales = {name: PIXEL_SCALE if name == "images" else 0.02 for name in names}
    return network, Quantization(steps, 127, scales, float_layers)


def simulated(model: Model) -> nn.Module:
    """The simulator of an int8 model."""
    assert model.quantization is not None
    return simulate(trace(model.module), model.quantization)


def ship(model: Model, folder: Path) -> Path:
    """The model's ONNX file, written to a folder."""
    path = folder / f"{model.card.variant}.onnx"
    export.export(model, path, export.metadata_for(model.card, model.quantization, "abc"))
    return path


def relative_error(answers: Tensor, expected: Tensor) -> float:
    """Root mean squared error as a share of the standard deviation."""
    return ((answers - expected).square().mean().sqrt() / expected.std()).item()
