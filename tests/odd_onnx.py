"""ONNX classifiers by mean colour: of the usual form, of odd ones, and of broken ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

SIZE = 64
MATRIX = np.array([[0, 0, 12], [0, 12, 0], [12, 0, 0]], np.float32)
"""Red, green and blue to the logits of the classes blue, green and red."""
HEAD = [
    helper.make_node("GlobalAveragePool", ["planes"], ["means"]),
    helper.make_node("Flatten", ["means"], ["colours"]),
    helper.make_node("MatMul", ["colours", "matrix"], ["sums"]),
]


TEACHER: dict[str, Any] = {
    "source": "onnx",
    "name": "box.onnx",
    "size": None,
    "input": {"interpolation": "bilinear"},
    "head": None,
    "full": None,
}
"""Parameters of a teacher that is such a file, as it is."""


def write(
    path: Path,
    *nodes: NodeProto,
    shape: Sequence[int | str] = ("batch", 3, SIZE, SIZE),
    kind: int = TensorProto.FLOAT,
    before: Sequence[NodeProto] = (),
    head: Sequence[NodeProto] = HEAD,
    output: Sequence[int | str] | None = ("batch", 3),
    output_kind: int = TensorProto.FLOAT,
    matrix: np.ndarray = MATRIX,
    constants: dict[str, Any] | None = None,
    more_inputs: Sequence[onnx.ValueInfoProto] = (),
    labels: str | None = None,
) -> Path:
    """Write a file whose input is ``pixels`` and whose output is that of the last node.

    ``before`` makes ``planes`` from ``pixels``; ``nodes`` go on from ``sums``.
    """
    makers = [*(before or [helper.make_node("Identity", ["pixels"], ["planes"])]), *head, *nodes]
    tensors = {"matrix": matrix, **(constants or {})}
    graph = helper.make_graph(
        makers,
        "colours",
        [helper.make_tensor_value_info("pixels", kind, shape), *more_inputs],
        [helper.make_tensor_value_info(makers[-1].output[0], output_kind, output)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    if labels is not None:
        helper.set_model_props(model, {"labels": labels})
    onnx.save(model, path)
    return path


def node(operator: str, *inputs: str, output: str = "answers", **attributes: Any) -> NodeProto:
    return helper.make_node(operator, list(inputs), [output], **attributes)


def cast(source: str, output: str, kind: int = TensorProto.FLOAT) -> NodeProto:
    return node("Cast", source, output=output, to=kind)


WORKING: dict[str, Callable[[Path], Path]] = {
    "float16": lambda path: write(
        path,
        cast("sums", "answers", TensorProto.FLOAT16),
        kind=TensorProto.FLOAT16,
        before=[cast("pixels", "planes")],
        output_kind=TensorProto.FLOAT16,
    ),
    "double": lambda path: write(path, kind=TensorProto.DOUBLE, before=[cast("pixels", "planes")]),
    "channels last": lambda path: write(
        path,
        shape=("batch", SIZE, SIZE, 3),
        before=[node("Transpose", "pixels", output="planes", perm=[0, 3, 1, 2])],
    ),
    "channels last, nothing declared": lambda path: write(
        path,
        shape=("n", "h", "w", "c"),
        before=[
            node("Transpose", "pixels", output="turned", perm=[0, 3, 1, 2]),
            node("Split", "turned", "parts", output="red", axis=1),
            node("Identity", "turned", output="planes"),
        ],
        constants={"parts": np.array([3])},
    ),
    "planes, nothing declared": lambda path: write(path, shape=("n", "c", "h", "w"), output=("n", "k")),
    "bytes in planes": lambda path: write(
        path,
        kind=TensorProto.UINT8,
        before=[cast("pixels", "floats"), node("Div", "floats", "most", output="planes")],
        constants={"most": np.float32(255)},
    ),
    "a reshape to one image": lambda path: write(
        path, node("Reshape", "sums", "form"), constants={"form": np.array([1, 3])}
    ),
    "a flattening to one image": lambda path: write(
        path, node("Reshape", "sums", "form"), constants={"form": np.array([1, -1])}
    ),
    "one image": lambda path: write(path, shape=(1, 3, SIZE, SIZE), output=(1, 3)),
    "an axis of one before the classes": lambda path: write(
        path,
        node("Unsqueeze", "sums", "axes"),
        output=("batch", 1, 3),
        constants={"axes": np.array([1])},
    ),
    "axes of one on both sides": lambda path: write(
        path,
        node("Reshape", "sums", "form"),
        output=("batch", 1, 3, 1),
        constants={"form": np.array([0, 1, 3, 1])},
    ),
    "a map of one pixel": lambda path: write(
        path,
        node("Reshape", "sums", "form"),
        output=("batch", 3, 1, 1),
        constants={"form": np.array([0, 3, 1, 1])},
    ),
}
"""Files of odd forms that answer like the usual one."""

BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a rectangle": (lambda path: write(path, shape=("batch", 3, 64, 96)), "square images"),
    "grey": (
        lambda path: write(
            path,
            shape=("batch", 1, 64, 64),
            before=[node("Concat", "pixels", "pixels", "pixels", output="planes", axis=1)],
        ),
        "square images",
    ),
    "one image without a batch": (
        lambda path: write(
            path,
            shape=(3, 64, 64),
            before=[node("Unsqueeze", "pixels", "axes", output="planes")],
            constants={"axes": np.array([0])},
        ),
        "square images",
    ),
    "names that are a mapping": (
        lambda path: write(path, labels='{"0": "red", "1": "green", "2": "blue"}'),
        "a JSON list",
    ),
    "names that are one text": (lambda path: write(path, labels='"rgb"'), "a JSON list"),
    "integers": (
        lambda path: write(path, kind=TensorProto.INT64, before=[cast("pixels", "planes")]),
        "square images",
    ),
    "two inputs": (
        lambda path: write(
            path,
            node("Add", "sums", "bias"),
            more_inputs=[helper.make_tensor_value_info("bias", TensorProto.FLOAT, [3])],
        ),
        "one input",
    ),
    "class numbers": (
        lambda path: write(
            path,
            node("ArgMax", "sums", axis=1, keepdims=0),
            output=("batch",),
            output_kind=TensorProto.INT64,
        ),
        "float [batch, classes]",
    ),
    "one number per image": (
        lambda path: write(path, node("ReduceMax", "sums", axes=[1], keepdims=0), output=("batch",)),
        "float [batch, classes]",
    ),
    "a map of many pixels": (
        lambda path: write(path, head=[node("Identity", "planes", output="sums")], output=None),
        "float [batch, classes]",
    ),
    "an operation that fails": (
        lambda path: write(path, node("Reshape", "sums", "form"), constants={"form": np.array([7, 5])}),
        "fails for images of the shape",
    ),
    "too few labels": (lambda path: write(path, labels='["cat", "dog"]'), "2 labels for 3 logits"),
    "labels of another form": (lambda path: write(path, labels='{"a": '), "`labels`"),
    "eight at once": (lambda path: write(path, shape=(8, 3, 64, 64)), "found 8"),
    "an unknown operator": (lambda path: write(path, node("Imagine", "sums")), "not an intact ONNX file"),
}
"""Files that cannot be used, with a part of the line that says so."""

SOFTMAX = node("Softmax", "sums", output="shares", axis=1)
SHARES: dict[str, Callable[[Path], Path]] = {
    "softmax": lambda path: write(path, node("Softmax", "sums", axis=1)),
    "identity": lambda path: write(path, SOFTMAX, node("Identity", "shares")),
    "clip": lambda path: write(
        path,
        SOFTMAX,
        node("Clip", "shares", "low", "high"),
        constants={"low": np.float32(1e-6), "high": np.float32(1)},
    ),
    "squeeze": lambda path: write(
        path,
        SOFTMAX,
        node("Unsqueeze", "shares", "axes", output="more"),
        node("Squeeze", "more", "axes"),
        constants={"axes": np.array([2])},
    ),
    "add 0": lambda path: write(
        path, SOFTMAX, node("Add", "shares", "zero"), constants={"zero": np.float32(0)}
    ),
    "1 times": lambda path: write(
        path, SOFTMAX, node("Mul", "one", "shares"), constants={"one": np.float32(1)}
    ),
    "cast": lambda path: write(
        path, SOFTMAX, cast("shares", "half", TensorProto.FLOAT16), cast("half", "answers")
    ),
    "reshape": lambda path: write(
        path, SOFTMAX, node("Reshape", "shares", "form"), constants={"form": np.array([-1, 3])}
    ),
    "slice": lambda path: write(
        path,
        SOFTMAX,
        node("Slice", "shares", "first", "last", "axis"),
        constants={"first": np.array([0]), "last": np.array([3]), "axis": np.array([1])},
    ),
    "slice of four": lambda path: write(
        path,
        SOFTMAX,
        node("Slice", "shares", "first", "last", "axis"),
        matrix=np.concatenate([MATRIX, MATRIX[:, :1]], axis=1),
        constants={"first": np.array([0]), "last": np.array([3]), "axis": np.array([1])},
    ),
    "by hand": lambda path: write(
        path,
        node("Exp", "sums", output="powers"),
        node("ReduceSum", "powers", "axes", output="total", keepdims=1),
        node("Div", "powers", "total"),
        constants={"axes": np.array([1])},
    ),
    "twice from 1": lambda path: write(
        path,
        SOFTMAX,
        node("Sub", "one", "shares", output="rest"),
        node("Sub", "one", "rest"),
        constants={"one": np.float32(1)},
    ),
    "concatenated": lambda path: write(
        path,
        SOFTMAX,
        helper.make_node("Split", ["shares", "parts"], ["left", "right"], axis=1),
        node("Concat", "left", "right", axis=1),
        constants={"parts": np.array([1, 2])},
    ),
    "max with 0": lambda path: write(
        path, SOFTMAX, node("Max", "shares", "zero"), constants={"zero": np.float32(0)}
    ),
}
"""Files that return probabilities, most of them through operations after the softmax."""


def scaled(factor: float, offset: float, operator: str = "Softmax") -> Callable[[Path], Path]:
    """A file that returns probabilities times a factor plus an offset."""
    shares = node("Sigmoid", "sums", output="shares") if operator == "Sigmoid" else SOFTMAX
    return lambda path: write(
        path,
        shares,
        node("Mul", "shares", "factor", output="products"),
        node("Add", "products", "offset"),
        matrix=SHARP,
        constants={"factor": np.float32(factor), "offset": np.float32(offset)},
    )


SHARP = np.float32(5) * (MATRIX - np.float32(4))
"""A matrix that gives probabilities near 0 and 1."""
DISGUISED: dict[str, Callable[[Path], Path]] = {
    "less a third": scaled(1, -1 / 3),
    "less 0.333": scaled(1, -0.333),
    "from -1 to 1": scaled(2, -1),
    "negative": scaled(-1, 0),
    "1 less": scaled(-1, 1),
    "in per cent": scaled(100, 0),
    "ten times, sum 0": scaled(10, -10 / 3),
    "ten times, sum -2": scaled(10, -4),
    "sigmoid from -1 to 1": scaled(2, -1, "Sigmoid"),
    "sigmoid in per cent": scaled(100, 0, "Sigmoid"),
    "hyperbolic tangent": lambda path: write(path, node("Tanh", "sums"), matrix=SHARP),
}
"""Files that return probabilities that were shifted or scaled."""

UNSTEADY: dict[str, Callable[[Path], Path]] = {
    "softmax over the batch": lambda path: write(path, node("Softmax", "sums", axis=0)),
    "less the mean of the batch": lambda path: write(
        path,
        node("ReduceMean", "sums", output="means_of_all", axes=[0], keepdims=1),
        node("Sub", "sums", "means_of_all"),
    ),
    "batch norm of the batch": lambda path: write(
        path,
        helper.make_node(
            "BatchNormalization",
            ["sums", "ones", "zeros", "zeros", "ones"],
            ["answers", "mean", "variance"],
            training_mode=1,
        ),
        constants={"ones": np.ones(3, np.float32), "zeros": np.zeros(3, np.float32)},
    ),
    "noise": lambda path: write(
        path, node("RandomUniformLike", "sums", output="noise"), node("Add", "sums", "noise")
    ),
    "dropout": lambda path: write(
        path,
        node("Dropout", "sums", "ratio", "training"),
        constants={"ratio": np.float32(0.5), "training": np.array(True)},
    ),
}
"""Files whose answers depend on more than the image."""
