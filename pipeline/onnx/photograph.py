"""The form of a shipped file that takes a whole photograph: crop and resize are part of the graph.

Resizing is Pillow's antialiased filter as two products of matrices. An output pixel is a weighted sum of a
few neighbouring source pixels, so a block of outputs reads a short run of the source::

    source    |....................................................|
    block 0   |------------|
    block 1           |------------|                  (runs overlap by the width of the filter)
    block 2                   |------------|
    outputs   |  n  |  n  |  n  | ...

Per axis, ``Slice`` or ``Gather`` takes the run of each block, and one batched ``MatMul`` applies the weights,
which are computed from the size of the image when the file runs. As in Pillow, rows are resized first, every
pass rounds to whole values, and pixels outside the square but inside the image count
(https://github.com/python-pillow/Pillow/blob/13.0.0/src/libImaging/Resample.c).

ONNX's own ``Resize`` with ``antialias`` needs operators of version 18 and takes no box whose corners lie
between two pixels, as the centre of every other photograph does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.models.layers import IMAGES
from pipeline.onnx.graph import LOGITS
from teachers.contract import InputContract

IMAGE = "image"
"""Name of the input."""
PROBABILITIES = "probabilities"
"""Name of the output that the logits are not."""
RADIUS = {"bilinear": 1.0, "bicubic": 2.0}
"""Distance in output pixels from which the filter is 0."""
BICUBIC = -0.5
"""Pillow's coefficient of the bicubic filter."""
BLOCK = 8
"""Greatest number of outputs per block: fewer read less of the source in vain, and take more nodes."""


@dataclass
class _Graph:
    """The nodes before and after the network while they are written."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def reals(self, values: Any) -> str:
        return self._constant(np.asarray(values, np.float32))

    def wholes(self, values: Any) -> str:
        return self._constant(np.asarray(values, np.int64))

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{IMAGE}.{len(self.nodes)}.{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def split(self, tensor: str, count: int) -> list[str]:
        """The elements of a vector, as vectors of one."""
        outputs = [f"{tensor}.{number}" for number in range(count)]
        self.nodes.append(helper.make_node("Split", [tensor, self.wholes([1] * count)], outputs))
        return outputs

    def shape(self, *lengths: str | int) -> str:
        """A shape, some of whose lengths are known only when the file runs."""
        parts = [self.wholes([length]) if isinstance(length, int) else length for length in lengths]
        return self.add("Concat", *parts, axis=0)

    def _constant(self, array: np.ndarray) -> str:
        name = f"{IMAGE}.constant.{array.dtype}.{'x'.join(map(str, array.shape))}"
        name = f"{name}.{array.tobytes().hex()}" if array.nbytes <= 16 else f"{name}.{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name


@dataclass(frozen=True)
class _Square:
    """The square of the image that is resized, and the filter; tensors of one element, float."""

    side: str
    scale: str
    """Source pixels per output pixel."""
    stretch: str
    """Source pixels per unit of the filter: the scale, or 1 where the image is enlarged."""
    support: str
    """Distance in source pixels from which the filter is 0."""


@dataclass(frozen=True)
class _Runs:
    """What the blocks of one axis read."""

    starts: str
    """int64 [blocks]: the first source pixel of each run."""
    length: str
    """int64 [1]: the number of pixels of every run."""
    weights: str
    """float [blocks, length, outputs]: of each pixel of the run for each output; they add up to 1."""


def extend(
    network: onnx.ModelProto, contract: InputContract, *, independent: bool, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """A file whose input is a photograph of any size, around the same nodes and weights.

    Its input ``image`` is uint8 [1, height, width, 3], RGB and upright. Its outputs are ``probabilities`` and
    ``logits``, float32 [1, classes].

    Args:
        network: a shipped file, which is not changed.
        contract: size, crop and interpolation of the file's input.
        independent: whether each label has a probability of its own; otherwise they add up to 1.
        metadata: the metadata of the new file.
    """
    front, back = _Graph(), _Graph()
    _resize(front, contract)
    if independent:
        back.add("Sigmoid", LOGITS, name=PROBABILITIES)
    else:
        back.add("Softmax", LOGITS, name=PROBABILITIES, axis=1)
    classes = network.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    graph = helper.make_graph(
        [*front.nodes, *network.graph.node, *back.nodes],
        network.graph.name,
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [1, "height", "width", 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, classes])
            for name in (PROBABILITIES, LOGITS)
        ],
        [*front.constants.values(), *network.graph.initializer],
    )
    extended = onnx.ModelProto()
    extended.CopyFrom(network)
    extended.graph.CopyFrom(graph)
    helper.set_model_props(extended, dict(metadata))
    return extended


def _resize(graph: _Graph, contract: InputContract) -> None:
    """From ``image`` to the pixels ``images`` that the network reads."""
    size = contract.size
    outputs = max(number for number in range(1, BLOCK + 1) if size % number == 0)
    blocks = size // outputs
    shape = graph.add("Cast", graph.add("Shape", IMAGE), to=TensorProto.FLOAT)
    _, height, width, _ = graph.split(shape, 4)
    side = graph.add("Mul", graph.add("Min", height, width), graph.reals(contract.crop))
    scale = graph.add("Div", side, graph.reals(size))
    stretch = graph.add("Max", scale, graph.reals(1))
    support = graph.add("Mul", stretch, graph.reals(RADIUS[contract.interpolation]))
    square = _Square(side, scale, stretch, support)
    across = _runs(graph, width, square, contract, blocks, outputs)
    down = _runs(graph, height, square, contract, blocks, outputs)

    # Only the rows that the second pass reads are resized.
    tops = graph.split(down.starts, blocks)
    end = graph.add("Add", tops[-1], down.length)
    rows = graph.add("Slice", IMAGE, tops[0], end, graph.wholes([1]))
    ends = graph.add("Add", across.starts, across.length)
    runs = [
        graph.add("Slice", rows, start, end, graph.wholes([2]))
        for start, end in zip(graph.split(across.starts, blocks), graph.split(ends, blocks), strict=True)
    ]
    pixels = graph.add("Cast", graph.add("Concat", *runs, axis=0), to=TensorProto.FLOAT)
    # The three colours of a pixel lie side by side; each output reads its own.
    values = graph.add("Mul", across.length, graph.wholes([3]))
    lines = graph.add("Reshape", pixels, graph.shape(blocks, -1, values))
    apart = graph.add("Unsqueeze", across.weights, graph.wholes([2, 4]))
    coloured = graph.add("Mul", apart, graph.reals(np.eye(3).reshape(1, 1, 3, 1, 3)))
    weights = graph.add("Reshape", coloured, graph.shape(blocks, values, 3 * outputs))
    narrow = _whole(graph, graph.add("MatMul", lines, weights), contract)
    narrow = graph.add("Transpose", narrow, perm=(1, 0, 2))
    narrow = graph.add("Reshape", narrow, graph.wholes([-1, 3 * size]))

    steps = graph.add("Range", graph.wholes(0), _scalar(graph, down.length), graph.wholes(1))
    starts = graph.add("Unsqueeze", graph.add("Sub", down.starts, tops[0]), graph.wholes([1]))
    columns = graph.add("Gather", narrow, graph.add("Add", starts, steps), axis=0)
    weights = graph.add("Transpose", down.weights, perm=(0, 2, 1))
    small = _whole(graph, graph.add("MatMul", weights, columns), contract)
    small = graph.add("Reshape", small, graph.wholes([1, size, size, 3]))
    graph.add("Cast", small, name=IMAGES, to=TensorProto.UINT8)


def _runs(
    graph: _Graph, length: str, square: _Square, contract: InputContract, blocks: int, outputs: int
) -> _Runs:
    """What one axis reads, whose length is a float tensor of one element."""
    half = graph.reals(0.5)
    left = graph.add("Mul", graph.add("Sub", length, square.side), half)
    # Centre of the first output of each block, and the first pixel whose centre is within the filter's reach.
    ahead = graph.reals(np.arange(blocks) * outputs + 0.5)
    first = graph.add("Add", left, graph.add("Mul", ahead, square.scale))
    reach = graph.add("Sub", graph.add("Sub", first, square.support), half)
    span = graph.add(
        "Add",
        graph.add("Mul", square.scale, graph.reals(outputs - 1)),
        graph.add("Mul", square.support, graph.reals(2)),
    )
    count = graph.add("Min", length, graph.add("Add", graph.add("Floor", span), graph.reals(2)))
    start = graph.add("Min", graph.add("Floor", reach), graph.add("Sub", length, count))
    start = graph.add("Max", start, graph.reals(0))

    pixels = graph.add("Range", graph.reals(0.5), _scalar(graph, count), graph.reals(1))
    centres = graph.add(
        "Add",
        graph.add("Unsqueeze", graph.add("Sub", first, start), graph.wholes([1, 2])),
        graph.add("Mul", graph.reals(np.arange(outputs)[None, None]), square.scale),
    )
    distance = graph.add("Sub", graph.add("Unsqueeze", pixels, graph.wholes([1])), centres)
    distance = graph.add("Abs", graph.add("Div", distance, square.stretch))
    weights = _bicubic(graph, distance) if contract.interpolation == "bicubic" else _bilinear(graph, distance)
    total = graph.add("ReduceSum", weights, graph.wholes([1]), keepdims=1)
    return _Runs(
        starts=graph.add("Cast", start, to=TensorProto.INT64),
        length=graph.add("Cast", count, to=TensorProto.INT64),
        weights=graph.add("Div", weights, total),
    )


def _bilinear(graph: _Graph, distance: str) -> str:
    return graph.add("Relu", graph.add("Sub", graph.reals(1), distance))


def _bicubic(graph: _Graph, distance: str) -> str:
    near = _polynomial(graph, distance, (BICUBIC + 2, -BICUBIC - 3, 0, 1))
    far = _polynomial(graph, distance, (BICUBIC, -5 * BICUBIC, 8 * BICUBIC, -4 * BICUBIC))
    outer = graph.add("Where", graph.add("Less", distance, graph.reals(2)), far, graph.reals(0))
    return graph.add("Where", graph.add("Less", distance, graph.reals(1)), near, outer)


def _polynomial(graph: _Graph, variable: str, coefficients: tuple[float, ...]) -> str:
    """The polynomial with these coefficients, the one of the highest power first."""
    value = graph.reals(coefficients[0])
    for coefficient in coefficients[1:]:
        value = graph.add("Add", graph.add("Mul", value, variable), graph.reals(coefficient))
    return value


def _whole(graph: _Graph, values: str, contract: InputContract) -> str:
    """Values rounded to whole ones, halves upwards; a bicubic filter overshoots."""
    rounded = graph.add("Floor", graph.add("Add", values, graph.reals(0.5)))
    if contract.interpolation == "bilinear":
        return rounded
    return graph.add("Clip", rounded, graph.reals(0), graph.reals(255))


def _scalar(graph: _Graph, tensor: str) -> str:
    return graph.add("Squeeze", tensor)
