"""Faults of all kinds are planted into shipped files; verification finds each and names its layer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pipeline.models.storage import Model
from pipeline.parity.verification import VerificationError, verify
from teachers.contract import InputContract
from tests.tiny_students import SIZE, calibration, int8_student, quantized, ship, student

DEPTHWISE, POINTWISE, HEAD, STEM = "blocks.5.depthwise", "blocks.5.pointwise", "classifier", "stem"


@dataclass(frozen=True)
class File:
    """A shipped file whose tensors and attributes can be changed."""

    proto: onnx.ModelProto

    def change(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace an initialiser by a function of it."""
        tensor = next(each for each in self.proto.graph.initializer if each.name == name)
        values = numpy_helper.to_array(tensor)
        changed = np.asarray(change(values.copy())).astype(values.dtype)
        assert not np.array_equal(values, changed), "the fault must change something"
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    def value(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(t for t in self.proto.graph.initializer if t.name == name))

    def attributes(self, output: str, **changes: list[int]) -> None:
        """Replace attributes of the node with this output."""
        node = next(each for each in self.proto.graph.node if output in each.output)
        for attribute in node.attribute:
            if attribute.name in changes:
                attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, changes[attribute.name]))


def first(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Multiply the first channel."""

    def change(values: np.ndarray) -> np.ndarray:
        values[0] = values[0] * factor
        return values

    return change


def swapped(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    """Exchange the first two channels."""
    return lambda values: np.concatenate(
        [np.take(values, [1, 0], axis), np.take(values, range(2, values.shape[axis]), axis)], axis
    )


def edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[File], None]:
    """Change an initialiser."""
    return lambda file: file.change(name, change)


def attributes(output: str, **changes: list[int]) -> Callable[[File], None]:
    """Change attributes of the node with this output."""
    return lambda file: file.attributes(output, **changes)


def bias(layer: str, steps: float) -> Callable[[File], None]:
    """Move the biases of a layer by some steps of its output."""

    def plant(file: File) -> None:
        read = {POINTWISE: f"{DEPTHWISE}.sums.scale", DEPTHWISE: "blocks.4.pointwise.sums.scale"}[layer]
        product = file.value(read) * file.value(f"{layer}.weight.scale")
        moved = np.round(steps * file.value(f"{layer}.sums.scale") / product)
        file.change(f"{layer}.bias.integers", lambda values: values + moved)

    return plant


def plus_one(values: np.ndarray) -> np.ndarray:
    values.flat[0] += 1
    return values


def rolled_classes(values: np.ndarray) -> np.ndarray:
    return np.roll(values, 1, 0 if values.shape[0] == 4 else 1)


Fault = tuple[str, str, Callable[[File], None]]
INT8: list[Fault] = [
    (
        "the scale of all weights",
        POINTWISE,
        edit(f"{POINTWISE}.weight.scale", lambda v: v * 1.01),
    ),
    ("the scale of one channel", POINTWISE, edit(f"{POINTWISE}.weight.scale", first(1.01))),
    ("one weight by one", POINTWISE, edit(f"{POINTWISE}.weight.integers", plus_one)),
    ("one depthwise weight by one", DEPTHWISE, edit(f"{DEPTHWISE}.weight.integers", plus_one)),
    ("the sign of a channel", POINTWISE, edit(f"{POINTWISE}.weight.integers", first(-1))),
    ("a channel without weights", DEPTHWISE, edit(f"{DEPTHWISE}.weight.integers", first(0))),
    ("two output channels", POINTWISE, edit(f"{POINTWISE}.weight.integers", swapped(0))),
    ("two input channels", POINTWISE, edit(f"{POINTWISE}.weight.integers", swapped(1))),
    ("two depthwise channels", DEPTHWISE, edit(f"{DEPTHWISE}.weight.integers", swapped(0))),
    (
        "all channels by one place",
        DEPTHWISE,
        edit(f"{DEPTHWISE}.weight.integers", lambda v: np.roll(v, 1, 0)),
    ),
    (
        "a mirrored kernel",
        DEPTHWISE,
        edit(f"{DEPTHWISE}.weight.integers", lambda v: v[..., ::-1]),
    ),
    (
        "a transposed kernel",
        DEPTHWISE,
        edit(f"{DEPTHWISE}.weight.integers", lambda v: v.swapaxes(2, 3)),
    ),
    (
        "weights cut to six bits",
        POINTWISE,
        edit(f"{POINTWISE}.weight.integers", lambda v: v.clip(-32, 31)),
    ),
    ("rounding down", POINTWISE, bias(POINTWISE, -0.5)),
    ("rounding up", DEPTHWISE, bias(DEPTHWISE, 0.5)),
    ("a bias by a fiftieth of a step", POINTWISE, bias(POINTWISE, 0.02)),
    ("no biases", POINTWISE, edit(f"{POINTWISE}.bias.integers", lambda v: v * 0)),
    ("biases of two channels", DEPTHWISE, edit(f"{DEPTHWISE}.bias.integers", swapped(0))),
    (
        "the scale of an activation",
        DEPTHWISE,
        edit(f"{DEPTHWISE}.sums.scale", lambda v: v * 1.001),
    ),
    ("the scale after the stem", STEM, edit("stem.sums.scale", lambda v: v * 1.001)),
    ("a zero point", POINTWISE, edit(f"{POINTWISE}.sums.zero_point", lambda v: v + 1)),
    ("padding on one side", DEPTHWISE, attributes(f"{DEPTHWISE}.sums", pads=[0, 0, 2, 2])),
    ("no padding", DEPTHWISE, attributes(f"{DEPTHWISE}.sums", pads=[0, 0, 0, 0])),
    (
        "a dilated kernel",
        DEPTHWISE,
        attributes(f"{DEPTHWISE}.sums", pads=[2, 2, 2, 2], dilations=[2, 2]),
    ),
    ("the scale of the pool", "pool", edit("pool.scale", lambda v: v * 1.001)),
    ("the scale of the head", HEAD, edit("classifier.weight.scale", lambda v: v * 1.001)),
    ("a weight of the head", HEAD, edit("classifier.weight.integers", plus_one)),
    ("the classes by one place", HEAD, edit("classifier.weight.integers", rolled_classes)),
    ("a bias of the head", HEAD, edit("classifier.bias.integers", lambda v: v + 1000)),
    ("blue for red", STEM, edit("stem.weight.integers", lambda v: v[:, ::-1])),
]
FLOAT_STEM: list[Fault] = [
    ("a float weight", STEM, edit("stem.weight", first(1.001))),
    ("a float bias", STEM, edit("stem.bias", lambda v: v + 0.01)),
    ("the mean of the normalisation", STEM, edit("stem.bias", first(1.01))),
    ("the scale of the float stem", STEM, edit("stem.sums.scale", lambda v: v * 1.001)),
]
NORMALISED: list[Fault] = [
    ("the zero point of the images", STEM, edit("images.planes.zero_point", lambda v: v - 1)),
    ("no zero point", STEM, edit("images.planes.zero_point", lambda v: v * 0)),
    ("the scale of the images", STEM, edit("images.planes.scale", lambda v: v * 1.001)),
    ("the bias without the mean", STEM, edit("stem.bias.integers", lambda v: v - v.mean().astype(int))),
    ("padding on the other side", STEM, attributes("stem.sums", pads=[0, 0, 1, 1])),
    ("blue for red", STEM, edit("stem.weight.integers", lambda v: v[:, ::-1])),
    ("the scale after the stem", STEM, edit("stem.sums.scale", lambda v: v * 1.001)),
    ("one weight by one", POINTWISE, edit(f"{POINTWISE}.weight.integers", plus_one)),
]
FLOAT_HEAD: list[Fault] = [
    ("a weight of the float head", HEAD, edit("classifier.weight", first(1.01))),
    ("a bias of the float head", HEAD, edit("classifier.bias", lambda v: v + 0.01)),
]
FLOAT: list[Fault] = [
    ("a channel's weights", POINTWISE, edit(f"{POINTWISE}.weight", first(1.1))),
    ("a bias", DEPTHWISE, edit(f"{DEPTHWISE}.bias", lambda v: v + 0.05)),
    ("two channels", POINTWISE, edit(f"{POINTWISE}.weight", swapped(0))),
    ("padding", DEPTHWISE, attributes(f"{DEPTHWISE}.sums", pads=[0, 0, 2, 2])),
    ("the classes", "logits", edit("classifier.weight", swapped(0))),
]


@cache
def sound(kind: str) -> Model:
    """A sound model of each kind, with images of 32 pixels."""
    match kind:
        case "float":
            return student()
        case "float stem":
            contract = InputContract(SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
            return quantized(student(contract), 63, (STEM,))
        case "normalised":
            contract = InputContract(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
            return quantized(student(contract), 63)
        case "float head":
            return int8_student(63, (HEAD,))
        case _:
            return int8_student(63)


@pytest.mark.parametrize(
    ("kind", "name", "layer", "plant"),
    [
        pytest.param(kind, *fault, id=f"{kind}: {fault[0]}")
        for kind, faults in (
            ("int8", INT8),
            ("float stem", FLOAT_STEM),
            ("normalised", NORMALISED),
            ("float head", FLOAT_HEAD),
            ("float", FLOAT),
        )
        for fault in faults
    ],
)
def test_a_planted_fault_is_found_and_its_layer_is_named(
    kind: str, name: str, layer: str, plant: Callable[[File], None], tmp_path: Path
) -> None:
    del name
    model = sound(kind)
    path = ship(model, tmp_path)
    images = next(iter(calibration(InputContract(SIZE)))).mul(255).round()
    images = images.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    verify(path, model, images)
    file = File(onnx.load(path))
    plant(file)
    onnx.save(file.proto, path)
    with pytest.raises(VerificationError, match=rf"first layer that diverges is {layer}\b"):
        verify(path, model, images)
