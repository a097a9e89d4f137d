"""Views on the device: images lie there decoded, and all that makes a view of them is computed there.

Pixels are those of ``views.render`` and ``views.mix``, byte for byte. As in Pillow, weights are multiples of
2 ** -22, every pass rounds to bytes, pixels outside the box but inside the image count, and tall images are
resized in the other order (see ``pipeline.onnx.photograph``, which does the same for one image). Both passes
are batched matrix products::

    pixels [3 rows, columns] @ weights [columns, size]  ->  bytes [3 rows, size]
    weights [size, rows] @ bytes [rows, 3 size]         ->  bytes [size, 3 size]

A weight is split into two halves of 12 bits, whose products with bytes and their sums are whole numbers below
2 ** 24. 32-bit floats hold them exactly, in whatever order they are added, and so does TF32.

Nothing here waits for the device: shapes follow from numbers that the host knows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from pipeline.data.rendering.drawing import Mixtures, Views
from teachers.contract import InputContract

P = ParamSpec("P")
Result = TypeVar("Result")

RADIUS = {"bilinear": 1, "bicubic": 2}
"""Distance in output pixels from which the filter is 0."""
BICUBIC = -0.5
"""Pillow's coefficient of the bicubic filter."""
UNIT, HALF = 2**22, 2**12
"""Whole number of a weight of 1, and that of a unit of its upper half."""
CHUNK = 2**23
"""Most source pixels that are resized at once; each takes some 40 bytes meanwhile."""
MULTIPLE = 8
"""What heights and widths are multiples of: matrices of few different sizes use the same memory again."""
GREY = (19595, 38470, 7471)
"""Weights of red, green and blue in grey, of 2 ** 16."""


class Pictures(NamedTuple):
    """Decoded images on a device, one behind the other."""

    pixels: UInt8[Tensor, "pixels 3"]
    starts: Int64[np.ndarray, " images"]
    """Place of the first pixel of each image."""
    widths: Int64[np.ndarray, " images"]
    heights: Int64[np.ndarray, " images"]


class _Axis(NamedTuple):
    """How one axis of each of some views is resized, as Pillow computes it."""

    begin: Float64[np.ndarray, " views"]
    """Beginning of the box in source pixels."""
    scale: Float64[np.ndarray, " views"]
    """Number of source pixels per output pixel."""
    support: Float64[np.ndarray, " views"]
    """Number of source pixels from which the filter is 0."""
    inverse: Float64[np.ndarray, " views"]
    """Unit of the filter per source pixel."""
    length: Int64[np.ndarray, " views"]
    """Number of pixels of the image."""
    first: Int64[np.ndarray, " views"]
    """First source pixel that is read."""
    window: Int64[np.ndarray, " views"]
    """Number of source pixels that are read."""


class _Chunk(NamedTuple):
    """Views that are resized together."""

    rows: Int64[np.ndarray, " views"]
    tall: bool
    """Whether they are resized vertically first."""
    height: int
    width: int
    """Number of source pixels that are read per view at least."""


@dataclass(frozen=True)
class Plan:
    """What the device needs to render views for one contract; computed on the host, without the device."""

    contract: InputContract
    table: Float64[np.ndarray, "views values"]
    """Numbers per view in the order of the chunks, as ``_Columns`` names them."""
    place: Int64[np.ndarray, " views"] | None
    """Row of the table of each view; None if the order is the same."""
    chunks: Sequence[_Chunk]
    taps: int
    """Most source pixels per output pixel and axis."""
    coloured: bool


class _Columns(NamedTuple):
    """The columns of a table, on the device."""

    start: Tensor
    width: Tensor
    flip: Tensor
    colours: Tensor
    axes: Float64[Tensor, "2 views 5"]
    """Begin, scale, support, inverse and length of the horizontal and of the vertical axis."""
    firsts: Float64[Tensor, "2 views"]


def plan(
    pictures: Pictures, indices: Int64[np.ndarray, " views"], views: Views, contract: InputContract
) -> Plan:
    """Prepare the rendering of one view of each of some images.

    Args:
        pictures: the images.
        indices: index of the image of each view.
        views: the views.
        contract: size and interpolation.
    """
    size = contract.size
    widths, heights = pictures.widths[indices], pictures.heights[indices]
    across = _axis(views.boxes[:, 0], views.boxes[:, 2], widths, contract)
    down = _axis(views.boxes[:, 1], views.boxes[:, 3], heights, contract)
    tall = heights - size > np.maximum(0, 2 * (widths - size))
    chunks = _chunks(down.window, across.window, tall)
    order = np.concatenate([chunk.rows for chunk in chunks])
    table = np.concatenate(
        [
            np.stack([pictures.starts[indices], widths, views.flips], axis=1),
            views.colours,
            *(
                np.stack(
                    [axis.begin, axis.scale, axis.support, axis.inverse, axis.length, axis.first], axis=1
                )
                for axis in (across, down)
            ),
        ],
        axis=1,
    )
    ordered = bool((order[1:] > order[:-1]).all())
    support = max(across.support.max(), down.support.max())
    return Plan(
        contract,
        np.ascontiguousarray(table if ordered else table[order]),
        None if ordered else np.argsort(order),
        chunks,
        math.ceil(support) * 2 + 1,
        bool((views.colours != 1).any()),
    )


def _exactly(function: Callable[P, Result]) -> Callable[P, Result]:
    """The function without gradients, and without the half precision of whoever reads batches."""

    @functools.wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Result:
        with torch.no_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return computed


@_exactly
def render(pictures: Pictures, plan: Plan) -> UInt8[Tensor, "views size size 3"]:
    """Render the views of a plan on the device of the pictures."""
    table = upload(plan.table, pictures.pixels.device)
    rendered, first = [], 0
    for chunk in plan.chunks:
        columns = _columns(table[first : first + len(chunk.rows)])
        values = _resize(pictures, columns, chunk, plan)
        if plan.coloured:
            values = _colour(values, columns.colours)
        # Rows of one colour each become pixels of three.
        rendered.append(values.permute(0, 1, 3, 2).to(torch.uint8, memory_format=torch.contiguous_format))
        first += len(chunk.rows)
    views = rendered[0] if len(rendered) == 1 else torch.cat(rendered)
    if plan.place is None:
        return views
    return views.index_select(0, upload(plan.place, views.device))


@_exactly
def mix(
    views: UInt8[Tensor, "views size size 3"],
    partners: UInt8[Tensor, "views size size 3"],
    mixtures: Mixtures,
) -> UInt8[Tensor, "views size size 3"]:
    """Mix rendered views with those of their partners, as ``views.mix`` does.

    Args:
        views: the views.
        partners: the partner of each view; any pixels for a view that is not mixed.
        mixtures: how each view is mixed.
    """
    size = views.shape[1]
    patched = ~np.isnan(mixtures.patches[:, :1])
    weights = np.where(patched, 1.0, mixtures.weights[:, None])
    edges = np.rint(np.where(patched, mixtures.patches, 0.0) * size)
    table = upload(np.concatenate([weights, edges], axis=1), views.device)
    weight, left, top, right, bottom = table[:, :, None, None].unbind(1)
    places = torch.arange(size, device=views.device)
    across, down = places[None, None, :], places[None, :, None]
    inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
    shown, other = views.float(), partners.float()
    blended = _blend(other, shown, weight[..., None].float())
    return torch.where(inside[..., None], other, blended).to(torch.uint8)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device, without waiting for it."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _axis(
    begin: Float64[np.ndarray, " views"],
    end: Float64[np.ndarray, " views"],
    length: Int64[np.ndarray, " views"],
    contract: InputContract,
) -> _Axis:
    # Pillow keeps the corners of a box in 32-bit floats.
    left, right = begin.astype(np.float32), end.astype(np.float32)
    low, scale = left.astype(np.float64), (right - left).astype(np.float64) / contract.size
    stretch = np.maximum(scale, 1.0)
    support = RADIUS[contract.interpolation] * stretch
    first = np.maximum(np.floor(low + 0.5 * scale - support + 0.5), 0).astype(np.int64)
    last = np.floor(low + (contract.size - 0.5) * scale + support + 0.5).astype(np.int64)
    window = np.minimum(last, length) - first
    return _Axis(low, scale, support, 1.0 / stretch, length, first, window)


def _chunks(
    heights: Int64[np.ndarray, " views"],
    widths: Int64[np.ndarray, " views"],
    tall: Bool[np.ndarray, " views"],
) -> list[_Chunk]:
    """Divide views into chunks in which the two passes have the same order, and sizes are alike if they are
    many."""
    chunks = []
    for vertical_first in (False, True):
        rows = np.flatnonzero(tall == vertical_first)
        if not len(rows):
            continue
        if len(rows) * heights[rows].max() * widths[rows].max() > CHUNK:
            rows = rows[np.argsort(heights[rows] * widths[rows], kind="stable")]
        first, height, width = 0, 0, 0
        for place, (h, w) in enumerate(zip(heights[rows].tolist(), widths[rows].tolist(), strict=True)):
            higher, wider = max(height, h), max(width, w)
            if place > first and (place + 1 - first) * higher * wider > CHUNK:
                chunks.append(_Chunk(rows[first:place], vertical_first, _above(height), _above(width)))
                first, higher, wider = place, h, w
            height, width = higher, wider
        chunks.append(_Chunk(rows[first:], vertical_first, _above(height), _above(width)))
    return chunks


def _above(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def _columns(table: Float64[Tensor, "views 18"]) -> _Columns:
    start, width, flip = table[:, 0], table[:, 1], table[:, 2]
    axes = table[:, 6:].unflatten(1, (2, 6)).transpose(0, 1)
    return _Columns(start, width, flip, table[:, 3:6], axes[..., :5], axes[..., 5])


def _resize(
    pictures: Pictures, columns: _Columns, chunk: _Chunk, plan: Plan
) -> Float32[Tensor, "views size 3 size"]:
    """Crop, resize and flip, as whole numbers."""
    views, size = len(chunk.rows), plan.contract.size
    weights, firsts = _weights(columns, plan)
    pixels = _gather(pictures, columns, chunk)
    across = _spread(weights[:views], firsts[:views], chunk.width)
    down = _spread(weights[views:], firsts[views:], chunk.height)

    def horizontally(values: Float32[Tensor, "views lines columns"]) -> Float32[Tensor, "views lines size"]:
        sums = torch.bmm(values, across.transpose(1, 2))
        return _bytes(sums[..., :size], sums[..., size:])

    def vertically(values: Float32[Tensor, "views rows values"]) -> Float32[Tensor, "views size values"]:
        sums = torch.bmm(down, values)
        return _bytes(sums[:, :size], sums[:, size:])

    if chunk.tall:
        rows = vertically(pixels.reshape(views, chunk.height, 3 * chunk.width))
        return horizontally(rows.reshape(views, 3 * size, chunk.width)).view(views, size, 3, size)
    lines = horizontally(pixels.reshape(views, 3 * chunk.height, chunk.width))
    return vertically(lines.view(views, chunk.height, 3 * size)).view(views, size, 3, size)


def _gather(pictures: Pictures, columns: _Columns, chunk: _Chunk) -> Float32[Tensor, "views height 3 width"]:
    """The source pixels that the views of a chunk read, every row as three lines of one colour each.

    Beyond the end of an image its last pixels are repeated; they have no weight.
    """
    device = pictures.pixels.device
    (first_column, first_row), (width, height) = columns.firsts, columns.axes[..., 4]
    x = torch.arange(chunk.width, device=device) + first_column[:, None]
    y = torch.arange(chunk.height, device=device) + first_row[:, None]
    x, y = torch.minimum(x, width[:, None] - 1), torch.minimum(y, height[:, None] - 1)
    lines = (columns.start[:, None] + y * columns.width[:, None]).long()
    places = lines[:, :, None] + x.long()[:, None, :]
    pixels = pictures.pixels.index_select(0, places.flatten()).view(*places.shape, 3)
    return pixels.permute(0, 1, 3, 2).to(torch.float32, memory_format=torch.contiguous_format)


def _weights(
    columns: _Columns, plan: Plan
) -> tuple[Float64[Tensor, "axes size taps"], Int64[Tensor, "axes size"]]:
    """The weights of the source pixels of each output pixel as whole numbers, and the place of the first one
    in what is read; for the horizontal axes, then for the vertical ones."""
    size, device = plan.contract.size, columns.axes.device
    begin, scale, support, inverse, length = columns.axes.reshape(-1, 5)[:, :, None].unbind(1)
    steps = torch.arange(size, dtype=torch.float64, device=device)
    # A flipped view has its columns in the other order.
    mirrored = torch.where(columns.flip[:, None] > 0, size - 1 - steps, steps)
    steps = torch.cat([mirrored, steps.expand_as(mirrored)])
    centres = begin + (steps + 0.5) * scale
    first = (centres - support + 0.5).floor_().clamp_(min=0)
    end = torch.minimum((centres + support + 0.5).floor_(), length)
    taps = first[:, :, None] + torch.arange(plan.taps, device=device)
    distance = ((taps - centres[:, :, None] + 0.5) * inverse[:, :, None]).abs_()
    shares = _bicubic(distance) if plan.contract.interpolation == "bicubic" else (1 - distance).clamp_(min=0)
    shares = shares * (taps < end[:, :, None])
    shares = shares / shares.sum(2, keepdim=True) * UNIT
    # Halves are rounded away from 0.
    whole = (shares.abs() + 0.5).floor_().copysign_(shares)
    return whole, (first - columns.firsts.reshape(-1, 1)).long()


def _bicubic(distance: Float64[Tensor, "axes size taps"]) -> Float64[Tensor, "axes size taps"]:
    near = ((BICUBIC + 2) * distance - (BICUBIC + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * BICUBIC
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _spread(
    weights: Float64[Tensor, "views size taps"], firsts: Int64[Tensor, "views size"], length: int
) -> Float32[Tensor, "views 2*size length"]:
    """Both halves of the weights, the upper ones first, as matrices that are multiplied with pixels.

    The product of the upper ones counts ``HALF`` times.
    """
    views, size, taps = weights.shape
    upper = ((weights + HALF // 2) / HALF).floor_()
    halves = torch.cat([upper, weights - upper * HALF], dim=1).float()
    places = firsts[:, :, None] + torch.arange(taps, device=weights.device)
    # Filters reach beyond what is read, with weights of 0.
    matrix = halves.new_zeros(views, 2 * size, _above(length + taps))
    return matrix.scatter_(2, places.repeat(1, 2, 1), halves)[..., :length]


def _bytes(
    upper: Float32[Tensor, "views _ _"], lower: Float32[Tensor, "views _ _"]
) -> Float32[Tensor, "views _ _"]:
    """Weighted sums of bytes as bytes, halves upwards; a bicubic filter overshoots."""
    carried = (lower * (1 / HALF)).floor_().add_(upper).add_(UNIT / 2 / HALF)
    return carried.mul_(HALF / UNIT).floor_().clamp_(0, 255)


def _colour(
    values: Float32[Tensor, "views size 3 size"], factors: Float64[Tensor, "views 3"]
) -> Float32[Tensor, "views size 3 size"]:
    """Change brightness, contrast and saturation in this order, as Pillow's enhancers do."""
    brightness, contrast, saturation = factors.float()[:, :, None, None, None].unbind(1)
    values = _blend(torch.zeros_like(values[:1, :1, :1, :1]), values, brightness)
    grey = _grey(values)
    total, count = grey.sum((1, 2, 3), keepdim=True, dtype=torch.float64).long(), grey[0].numel()
    mean = torch.div(2 * total + count, 2 * count, rounding_mode="floor")
    values = _blend(mean.float(), values, contrast)
    return _blend(_grey(values), values, saturation)


def _grey(values: Float32[Tensor, "views size 3 size"]) -> Float[Tensor, "views size 1 size"]:
    red, green, blue = values.to(torch.int32).unbind(2)
    total = red * GREY[0] + green * GREY[1] + blue * GREY[2] + 2**15
    return (total >> 16).unsqueeze(2).float()


def _blend(
    first: Float32[Tensor, "..."], second: Float32[Tensor, "..."], weight: Float32[Tensor, "..."]
) -> Float32[Tensor, "..."]:
    """Whole numbers from 0 to 255, as ``Image.blend`` of two images gives them; a weight above 1 or below 0
    goes beyond."""
    return ((second - first) * weight + first).clamp_(0, 255).trunc_()
