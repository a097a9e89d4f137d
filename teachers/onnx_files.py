"""Any classifier that is an ONNX file, as a black box in ONNX Runtime."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from jaxtyping import Float
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    NotImplemented,
)
from torch import Tensor, nn

from teachers.contract import InputContract
from teachers.errors import TeacherError
from teachers.teacher import Teacher

DAMAGED = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented)
LEAST_PROBABILITY = 1e-12
"""Least probability of a class whose logarithm is taken."""
LEAST_DOUBT = 1e-7
"""Least distance of an attribute's probability from 0 and 1; float32 rounds what is nearer to 1 to 1."""
FLOAT, BYTES = "tensor(float)", "tensor(uint8)"


class OnnxClassifier(nn.Module):
    """An ONNX file as a module without parameters, on the CPU.

    If the file ends in a softmax or a sigmoid, the module returns the logarithm or the log-odds of its
    probabilities.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Idle threads that spin would take the cores from a student that trains between two calls.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except NoSuchFile as error:
            raise TeacherError(f"{path}: no such file; an ONNX file is expected") from error
        except DAMAGED as error:
            raise TeacherError(
                f"{path} is not an intact ONNX file: {' '.join(str(error).split())}"
            ) from error
        self.path = path
        self.input = self.session.get_inputs()[0]
        self.output = self.session.get_outputs()[0]
        self.ending = _ending(path, self.output.name)
        shape = self.input.shape
        self.bytes = self.input.type == BYTES and len(shape) == 4 and shape[3] == 3
        planes = self.input.type == FLOAT and len(shape) == 4 and shape[1] == 3
        if len(self.session.get_inputs()) != 1 or not (self.bytes or planes):
            inputs = [(port.name, port.type, port.shape) for port in self.session.get_inputs()]
            raise TeacherError(
                f"{path}: one input is expected, float [batch, 3, height, width] or uint8 [batch, height, "
                f"width, 3]; found {inputs}"
            )
        if (
            self.output.type != FLOAT
            or len(self.output.shape) != 2
            or not isinstance(self.output.shape[1], int)
        ):
            raise TeacherError(
                f"{path}: a first output float [batch, classes] is expected; found {self.output.name} "
                f"{self.output.type} {self.output.shape}"
            )

    @property
    def size(self) -> int | None:
        """Side of the image in pixels; None if the file takes any size."""
        side = self.input.shape[1 if self.bytes else 2]
        return side if isinstance(side, int) else None

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        pixels = x.detach().cpu()
        if self.bytes:
            pixels = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
        array = np.ascontiguousarray(pixels.numpy())
        batch = self.input.shape[0]
        step = batch if isinstance(batch, int) else len(array)
        parts = [
            np.asarray(
                self.session.run([self.output.name], {self.input.name: array[first : first + step]})[0]
            )
            for first in range(0, len(array), step)
        ]
        answers = torch.from_numpy(np.concatenate(parts)).to(x.device)
        if self.ending == "Softmax":
            return answers.clamp_min(LEAST_PROBABILITY).log()
        if self.ending == "Sigmoid":
            return torch.logit(answers, eps=LEAST_DOUBT)
        return answers


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
    if module.input.shape[0] not in (1, None) and isinstance(module.input.shape[0], int):
        raise TeacherError(f"{name}: a batch of any size or of 1 is expected; found {module.input.shape[0]}")
    metadata = module.session.get_modelmeta().custom_metadata_map
    try:
        labels = tuple(json.loads(metadata["labels"])) if "labels" in metadata else None
        rule = json.loads(metadata["input"]) if "input" in metadata and module.bytes else None
        contract = rule and InputContract(
            rule["size"], interpolation=rule["interpolation"], crop=rule["crop"]
        )
    except (ValueError, TypeError, KeyError) as error:
        raise TeacherError(
            f"{name}: its metadata `labels` or `input` do not have this pipeline's form: {error}"
        ) from error
    return Teacher(module, module.output.shape[1], contract, None, f"ONNX file {Path(name).name}", labels)


def _ending(path: Path, output: str) -> str:
    """Operator that computes the output, apart from nodes that leave values as they are."""
    graph = onnx.load(path, load_external_data=False).graph
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise TeacherError(f"{path} keeps weights in other files; one file that holds them all is expected")
    makers = {name: node for node in graph.node for name in node.output}
    while output in makers and makers[output].op_type in (
        "Identity",
        "Squeeze",
        "Reshape",
        "Flatten",
        "Cast",
    ):
        output = makers[output].input[0]
    return makers[output].op_type if output in makers else ""
