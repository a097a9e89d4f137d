"""The form of a shipped file that takes a whole photograph: crop and resize are part of the graph.

Resizing is Pillow's, byte for byte. An output pixel is a weighted sum of a few neighbouring source pixels, so
a block of outputs reads a short run of the source::

    source    |....................................................|
    block 0   |------------|
    block 1           |------------|                  (runs overlap by the width of the filter)
    block 2                   |------------|
    outputs   |  n  |  n  |  n  | ...

Per axis, ``Slice`` or ``Gather`` takes the run of each block, and a batched ``MatMul`` applies the weights,
which are computed from the size of the image when the file runs. As in Pillow, weights are multiples of
2 ** -22, every pass rounds to bytes, pixels outside the square but inside the image count, and tall images
are resized in the other order (https://github.com/python-pillow/Pillow/blob/13.0.0/src/libImaging/Resample.c).

ONNX's own ``Resize`` with ``antialias`` needs operators of version 18 and takes no box whose corners lie
between two pixels, as those of every other photograph do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.onnx.inference import INPUT, OUTPUT
from teachers.contract import InputContract

IMAGE = "image"
"""Name of the input."""
PROBABILITIES = "probabilities"
"""Name of the output that the logits are not."""
RADIUS = {"bilinear": 1, "bicubic": 2}
"""Distance in output pixels from which the filter is 0."""
COLOURS = 3
UNIT, FINE = 2**22, 2**11
"""Whole number of a weight of 1, and that of a unit of its upper half. Sums of either half times bytes need
at most 24 bits, which 32-bit floats hold exactly, up to 32 source pixels per output pixel."""
BICUBIC = -0.5
"""Pillow's coefficient of the bicubic filter."""
BLOCK = 8
"""Greatest number of outputs per block: fewer read less of the source in vain, and take more nodes."""


@dataclass
class _Graph:
    """The nodes before and after the network while they are written."""

    prefix: str = IMAGE
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def reals(self, values: Any) -> str:
        return self._constant(np.asarray(values, np.float64))

    def singles(self, values: Any) -> str:
        return self._constant(np.asarray(values, np.float32))

    def wholes(self, values: Any) -> str:
        return self._constant(np.asarray(values, np.int64))

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{self.prefix}.{len(self.nodes)}.{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def split(self, tensor: str, count: int) -> list[str]:
        """The elements of a vector, as vectors of one."""
        outputs = [f"{self.prefix}.{len(self.nodes)}.Split.{number}" for number in range(count)]
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
class _Runs:
    """What the blocks of one axis read."""

    blocks: int
    starts: str
    """int64 [blocks]: the first source pixel of each run."""
    length: str
    """int64 [1]: the number of pixels of every run."""
    upper: str
    lower: str
    """float [blocks, length, outputs]: both halves of the weight of each pixel of a run for each output; the
    weight is ``upper + lower / FINE``."""


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
        back.add("Sigmoid", OUTPUT, name=PROBABILITIES)
    else:
        back.add("Softmax", OUTPUT, name=PROBABILITIES, axis=1)
    classes = network.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    graph = helper.make_graph(
        [*front.nodes, *network.graph.node, *back.nodes],
        network.graph.name,
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [1, "height", "width", 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, classes])
            for name in (PROBABILITIES, OUTPUT)
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
    blocks = min(size // number for number in range(1, BLOCK + 1) if size % number == 0)
    shape = graph.add("Cast", graph.add("Shape", IMAGE), to=TensorProto.DOUBLE)
    _, height, width, _ = graph.split(shape, 4)
    side = graph.add("Mul", graph.add("Min", height, width), graph.reals([contract.crop]))
    # Each output of a row stands there once per colour, since the colours of a pixel lie side by side.
    across = _runs(graph, width, side, contract, blocks, np.arange(size).repeat(COLOURS))
    down = _runs(graph, height, side, contract, blocks, np.arange(size))

    tall = graph.add("Sub", height, graph.reals([size]))
    twice = graph.add("Mul", graph.add("Sub", width, graph.reals([size])), graph.reals([2]))
    least = graph.add("Max", twice, graph.reals([0]))
    branches = {}
    for name, order in {"then_branch": (_down, _across), "else_branch": (_across, _down)}.items():
        branch = _Graph(constants=graph.constants, prefix=f"{IMAGE}.{name}")
        pixels, rows = IMAGE, down
        if order[0] is _across:
            # Only the rows that the second pass reads are resized.
            first = branch.add("Slice", down.starts, branch.wholes([0]), branch.wholes([1]))
            last = branch.add("Slice", down.starts, branch.wholes([-1]), branch.wholes([blocks]))
            end = branch.add("Add", last, down.length)
            pixels = branch.add("Slice", IMAGE, first, end, branch.wholes([1]))
            rows = replace(down, starts=branch.add("Sub", down.starts, first))
        for resized in order:
            pixels = resized(branch, pixels, across if resized is _across else rows, contract)
        square = helper.make_tensor_value_info(pixels, TensorProto.FLOAT, None)
        branches[name] = helper.make_graph(branch.nodes, name, [], [square])
    squares = graph.add("If", graph.add("Greater", tall, least), **branches)
    squares = graph.add("Reshape", squares, graph.wholes([1, size, size, 3]))
    graph.add("Cast", squares, name=INPUT, to=TensorProto.UINT8)


def _across(graph: _Graph, pixels: str, runs: _Runs, contract: InputContract) -> str:
    """Resize every row: [1, rows, columns, 3] to float [1, rows, size, 3], of whole values."""
    ends = graph.add("Add", runs.starts, runs.length)
    parts = [
        graph.add("Slice", pixels, start, end, graph.wholes([2]))
        for start, end in zip(
            graph.split(runs.starts, runs.blocks), graph.split(ends, runs.blocks), strict=True
        )
    ]
    taken = graph.add("Cast", graph.add("Concat", *parts, axis=0), to=TensorProto.FLOAT)
    values = graph.add("Mul", runs.length, graph.wholes([COLOURS]))
    lines = graph.add("Reshape", taken, graph.shape(runs.blocks, -1, values))
    outputs = contract.size // runs.blocks
    own = graph.singles(np.tile(np.eye(COLOURS), outputs))  # every colour reads its own
    sums = []
    for half in (runs.upper, runs.lower):
        coloured = graph.add("Mul", graph.add("Unsqueeze", half, graph.wholes([2])), own)
        shape = graph.shape(runs.blocks, values, COLOURS * outputs)
        sums.append(graph.add("MatMul", lines, graph.add("Reshape", coloured, shape)))
    narrow = graph.add("Transpose", _bytes(graph, sums, contract), perm=(1, 0, 2))
    return graph.add("Reshape", narrow, graph.wholes([1, -1, contract.size, 3]))


def _down(graph: _Graph, pixels: str, runs: _Runs, contract: InputContract) -> str:
    """Resize every column: [1, rows, columns, 3] to float [1, size, columns, 3], of whole values."""
    steps = graph.add("Range", graph.wholes(0), graph.add("Squeeze", runs.length), graph.wholes(1))
    rows = graph.add("Add", graph.add("Unsqueeze", runs.starts, graph.wholes([1])), steps)
    taken = graph.add("Cast", graph.add("Gather", pixels, rows, axis=1), to=TensorProto.FLOAT)
    columns = graph.add("Reshape", taken, graph.shape(runs.blocks, runs.length, -1))
    sums = [
        graph.add("MatMul", graph.add("Transpose", half, perm=(0, 2, 1)), columns)
        for half in (runs.upper, runs.lower)
    ]
    return graph.add("Reshape", _bytes(graph, sums, contract), graph.wholes([1, contract.size, -1, 3]))


def _bytes(graph: _Graph, halves: Sequence[str], contract: InputContract) -> str:
    """Weighted sums of bytes as bytes, halves upwards; a bicubic filter overshoots."""
    upper, lower = halves
    carried = graph.add("Floor", graph.add("Add", lower, graph.singles(FINE / 2)))
    total = graph.add("Add", upper, graph.add("Mul", carried, graph.singles(1 / FINE)))
    whole = graph.add("Floor", total)
    if contract.interpolation == "bilinear":
        return whole
    return graph.add("Clip", whole, graph.singles(0), graph.singles(255))


def _runs(
    graph: _Graph, length: str, side: str, contract: InputContract, blocks: int, places: np.ndarray
) -> _Runs:
    """What one axis reads.

    Args:
        length: the length of the axis in pixels, a double of one element.
        side: that of the square.
        places: the place of every output on the resized axis.
    """
    half = graph.reals([0.5])
    # Pillow keeps the corners of the square in 32-bit floats.
    begin = graph.add("Mul", graph.add("Sub", length, side), half)
    left, right = (
        graph.add("Cast", corner, to=TensorProto.FLOAT) for corner in (begin, graph.add("Add", begin, side))
    )
    extent = graph.add("Cast", graph.add("Sub", right, left), to=TensorProto.DOUBLE)
    left = graph.add("Cast", left, to=TensorProto.DOUBLE)
    # Source pixels per output pixel, and per unit of the filter, which does not shrink where images grow.
    scale = graph.add("Div", extent, graph.reals([contract.size]))
    stretch = graph.add("Max", scale, graph.reals([1]))
    support = graph.add("Mul", stretch, graph.reals([RADIUS[contract.interpolation]]))

    ahead = graph.reals(places.reshape(blocks, 1, -1) + 0.5)
    centres = graph.add("Add", left, graph.add("Mul", ahead, scale))
    firsts = graph.add("Slice", centres, graph.wholes([0]), graph.wholes([1]), graph.wholes([2]))
    # The first pixel whose centre is within the filter's reach, and how many there are at most.
    reach = graph.add("Floor", graph.add("Sub", graph.add("Sub", firsts, support), half))
    span = graph.add("Mul", scale, graph.reals([contract.size // blocks - 1]))
    span = graph.add("Add", span, graph.add("Mul", support, graph.reals([2])))
    count = graph.add("Min", length, graph.add("Add", graph.add("Floor", span), graph.reals([2])))
    starts = graph.add("Max", graph.add("Min", reach, graph.add("Sub", length, count)), graph.reals([0]))

    steps = graph.add("Range", graph.reals(0), graph.add("Squeeze", count), graph.reals(1))
    pixels = graph.add("Add", starts, graph.add("Unsqueeze", steps, graph.wholes([1])))
    distance = graph.add("Add", graph.add("Sub", pixels, centres), half)
    distance = graph.add("Abs", graph.add("Mul", distance, graph.add("Reciprocal", stretch)))
    shares = _bicubic(graph, distance) if contract.interpolation == "bicubic" else _bilinear(graph, distance)
    shares = graph.add("Div", shares, graph.add("ReduceSum", shares, graph.wholes([1]), keepdims=1))
    # Rounded to a multiple of 2 ** -22, halves away from 0.
    scaled = graph.add("Mul", shares, graph.reals(UNIT))
    weights = graph.add("Floor", graph.add("Add", graph.add("Abs", scaled), half))
    if contract.interpolation == "bicubic":
        weights = graph.add("Mul", weights, graph.add("Sign", scaled))
    exact = graph.add("Mul", weights, graph.reals(1 / FINE))
    upper = graph.add("Floor", exact)
    lower = graph.add("Sub", exact, upper)
    upper = graph.add("Mul", upper, graph.reals(1 / FINE))
    return _Runs(
        blocks,
        starts=graph.add("Cast", graph.add("Reshape", starts, graph.wholes([-1])), to=TensorProto.INT64),
        length=graph.add("Cast", count, to=TensorProto.INT64),
        upper=graph.add("Cast", upper, to=TensorProto.FLOAT),
        lower=graph.add("Cast", lower, to=TensorProto.FLOAT),
    )


def _bilinear(graph: _Graph, distance: str) -> str:
    return graph.add("Max", graph.add("Sub", graph.reals(1), distance), graph.reals(0))


def _bicubic(graph: _Graph, distance: str) -> str:
    near = _polynomial(graph, distance, (BICUBIC + 2, -BICUBIC - 3, 0.0, 1.0))
    far = _polynomial(graph, distance, (BICUBIC, -5 * BICUBIC, 8 * BICUBIC, -4 * BICUBIC))
    outer = graph.add("Where", graph.add("Less", distance, graph.reals(2)), far, graph.reals(0))
    return graph.add("Where", graph.add("Less", distance, graph.reals(1)), near, outer)


def _polynomial(graph: _Graph, variable: str, coefficients: tuple[float, ...]) -> str:
    """The polynomial with these coefficients, the one of the highest power first."""
    value = graph.reals(coefficients[0])
    for coefficient in coefficients[1:]:
        value = graph.add("Add", graph.add("Mul", value, variable), graph.reals(coefficient))
    return value
