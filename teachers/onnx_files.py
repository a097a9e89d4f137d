"""Any classifier that is an ONNX file, as a black box in ONNX Runtime."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from jaxtyping import Float
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from teachers.contract import InputContract
from teachers.errors import TeacherError, one_line
from teachers.outputs import INVERSES, Form
from teachers.teacher import Teacher

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
"""Types of input and output that are converted from and to float32."""
BYTES = "tensor(uint8)"
ENDINGS: dict[str, Form] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
"""Form of the outputs by the operator that computes them."""
SHAPING = (
    "Cast",
    "Clip",
    "Dropout",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that leave probabilities as they are."""
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
"""The constant with which an operator leaves values as they are."""
SIZES = (224, 192, 128, 96, 64, 256, 299, 384, 512, 32)
"""Sides in pixels with which a file is tried that declares none."""

Layout = Literal["planes", "pixels"]
"""Whether the channels come before height and width, or last."""


class Port(NamedTuple):
    """An input or output of a file."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class OnnxClassifier(nn.Module):
    """An ONNX file as a module without parameters, on the CPU.

    Of several outputs, the one that alone has `logit` in its name is taken, else the first. The file is tried
    at once: with two images, and if it fails, with one. If it ends in a softmax or a
    sigmoid, the module returns the logarithm or the log-odds of its probabilities.

    Raises:
        TeacherError: the file is missing or damaged, is not a classifier of square images, or fails when it
            is tried.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.session, model = _open(path)
        inputs = [_port(port) for port in self.session.get_inputs()]
        self.input = inputs[0] if len(inputs) == 1 else Port("", "", ())
        self.layouts = _layouts(self.input)
        if not self.layouts:
            raise TeacherError(
                f"{path}: one input of square images is expected, float or uint8, [batch, 3, height, width] "
                f"or [batch, height, width, 3]; found {[tuple(port) for port in inputs]}"
            )
        self.outputs = [_port(port) for port in self.session.get_outputs()]
        named = [port for port in self.outputs if "logit" in port.name.lower()]
        self.output = named[0] if len(named) == 1 else self.outputs[0]
        if self.output.type not in FLOATS:
            raise TeacherError(
                f"{path}: {self._which()} float [batch, classes] is expected; found {tuple(self.output)}"
            )
        self.form: Form = ENDINGS.get(_ending(model, self.output.name), "logits")
        self.layout: Layout = self.layouts[0]
        self.batch = self.input.shape[0] if isinstance(self.input.shape[0], int) else None
        self.classes = self._try_out()

    @property
    def bytes(self) -> bool:
        """Whether the file takes the values 0 to 255."""
        return self.input.type == BYTES

    @property
    def size(self) -> int | None:
        """Side of the image in pixels; None if the file takes any size."""
        sides = self.input.shape[2:] if self.layout == "planes" else self.input.shape[1:3]
        return next((side for side in sides if isinstance(side, int)), None)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        pixels = x.detach().cpu()
        if self.bytes:
            pixels = pixels.mul(255).round().to(torch.uint8)
        array = (pixels if self.layout == "planes" else pixels.permute(0, 2, 3, 1)).numpy()
        array = np.ascontiguousarray(array, FLOATS.get(self.input.type, np.uint8))
        step = self.batch or max(1, len(array))
        parts = [self._run(array[first : first + step]) for first in range(0, len(array), step)]
        return INVERSES[self.form](torch.from_numpy(np.concatenate(parts)).to(x.device))

    def _run(self, images: np.ndarray) -> np.ndarray:
        """The outputs for one batch, as float32 ``[batch, classes]``."""
        try:
            outputs = np.asarray(self.session.run([self.output.name], {self.input.name: images})[0])
        except Exception as error:  # the runtime's errors have no common base
            raise TeacherError(
                f"{self.path} fails for images of the shape {images.shape}: {one_line(error)}"
            ) from error
        # One axis may have the classes; any other one has a single value.
        if (
            outputs.shape[:1] != images.shape[:1]
            or outputs.ndim < 2
            or sum(side > 1 for side in outputs.shape[1:]) > 1
        ):
            raise TeacherError(
                f"{self.path}: {self._which()} float [batch, classes] is expected; images of the shape "
                f"{images.shape} give {self.output.name} of the shape {outputs.shape}"
            )
        return outputs.reshape(len(outputs), -1).astype(np.float32)

    def _which(self) -> str:
        if len(self.outputs) == 1:
            return "an output"
        names = ", ".join(repr(port.name) for port in self.outputs)
        return f"a first output, or one that alone is called like logits (of {names}),"

    def _try_out(self) -> int:
        """Find the layout and the number of images at once that the file takes; the number of its classes."""
        problems = []
        for layout in self.layouts:
            self.layout = layout
            for batch in (self.batch,) if self.batch else (None, 1):
                self.batch = batch
                for size in (self.size,) if self.size else SIZES:
                    try:
                        return self(torch.zeros(batch or 2, 3, size, size)).shape[1]
                    except TeacherError as error:
                        problems.append(error)
        raise problems[0]


def load(name: str, weights: str | None) -> Teacher:
    """Load the ONNX file ``name``; ``weights`` must be ``default``, since the file holds them.

    Files of this pipeline hold their input contract and their class names; for other files the user must give
    the input contract.

    Raises:
        TeacherError: the file is missing or damaged, or is not an image classifier.
    """
    if weights != "default":
        raise TeacherError(
            f"teacher.weights (={weights!r}) must be `default` for onnx, since the file holds them"
        )
    module = OnnxClassifier(Path(name))
    if module.batch not in (1, None):
        raise TeacherError(f"{name}: a batch of any size or of 1 is expected; found {module.batch}")
    metadata = module.session.get_modelmeta().custom_metadata_map
    try:
        labels = _labels(metadata["labels"]) if "labels" in metadata else None
        rule = json.loads(metadata["input"]) if "input" in metadata and module.bytes else None
        contract = rule and InputContract(
            rule["size"], interpolation=rule["interpolation"], crop=rule["crop"]
        )
    except (ValueError, TypeError, KeyError) as error:
        raise TeacherError(
            f"{name}: its metadata `labels` or `input` do not have this pipeline's form: {error}"
        ) from error
    if labels is not None and len(labels) != module.classes:
        raise TeacherError(f"{name}: its metadata have {len(labels)} labels for {module.classes} logits")
    several = f", output {module.output.name!r} of {len(module.outputs)}" if len(module.outputs) > 1 else ""
    origin = f"ONNX file {Path(name).name}{several}"
    return Teacher(module, module.classes, contract, (), origin, labels)


def _open(path: Path) -> tuple[ort.InferenceSession, ModelProto]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    # Idle threads that spin would take the cores from a student that trains between two calls.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not path.is_file():
        raise TeacherError(f"{path}: no such file; an ONNX file is expected")
    try:
        model = onnx.load(path, load_external_data=False)
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise TeacherError(
                f"{path} keeps weights in other files; one file that holds them all is expected"
            )
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]), model
    except TeacherError:
        raise
    except Exception as error:  # the errors of the two libraries have no common base
        raise TeacherError(f"{path} is not an intact ONNX file: {one_line(error)}") from error


def _labels(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list):
        raise TypeError(f"`labels` must be a JSON list of names; found {text[:40]}")
    return tuple(map(str, names))


def _port(port: Any) -> Port:
    return Port(port.name, port.type, tuple(port.shape))


def _layouts(port: Port) -> list[Layout]:
    """The layouts in which the shape of an input can be that of square images."""
    if len(port.shape) != 4 or not (port.type in FLOATS or port.type == BYTES):
        return []
    sides: dict[Layout, tuple[int, int, int]] = {"planes": (1, 2, 3), "pixels": (3, 1, 2)}
    found: list[Layout] = []
    for layout, (channels, height, width) in sides.items():
        fixed = {port.shape[side] for side in (height, width) if isinstance(port.shape[side], int)}
        if (port.shape[channels] == 3 or not isinstance(port.shape[channels], int)) and len(fixed) < 2:
            found.append(layout)
    # A side that is declared as 3 is that of the channels.
    declared: list[Layout] = [layout for layout in found if port.shape[sides[layout][0]] == 3]
    return declared or found


def _ending(model: ModelProto, output: str) -> str:
    """Operator that computes the output, apart from nodes that leave probabilities as they are."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = dict(_constants(model))
    while output in makers and (source := _passed(makers[output], constants)):
        output = source
    return makers[output].op_type if output in makers else ""


def _passed(node: NodeProto, constants: dict[str, np.ndarray]) -> str | None:
    """The input whose values a node only passes on; None if it computes others."""
    if node.op_type in SHAPING:
        return node.input[0]
    neutral = NEUTRAL.get(node.op_type)
    if neutral is None or len(node.input) != 2:
        return None
    for index in (1,) if node.op_type in ("Sub", "Div") else (1, 0):
        constant = constants.get(node.input[index])
        if constant is not None and bool((constant == neutral).all()):
            return node.input[1 - index]
    return None


def _constants(model: ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """Small constants of a graph by name."""
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors += [
                (node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value"
            ]
    for name, tensor in tensors:
        if np.prod(tensor.dims) <= 65536:
            yield name, numpy_helper.to_array(tensor)
