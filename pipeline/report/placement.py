"""Placement of the labels of a chart, so that they cover neither points nor each other."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle along the axes, in any unit."""

    x0: int | float
    y0: int | float
    x1: int | float
    y1: int | float

    @property
    def area(self) -> int | float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def padded(self, by: int | float) -> "Box":
        return Box(self.x0 - by, self.y0 - by, self.x1 + by, self.y1 + by)


PLACES = tuple(
    (across * distance, up * distance)
    for distance in (12, 19, 27, 37, 50)
    for across, up in (
        (0.9, 0.7),
        (-0.9, 0.7),
        (0.9, -0.7),
        (-0.9, -0.7),
        (0.0, 1.2),
        (0.0, -1.2),
        (1.1, 0.0),
        (-1.1, 0.0),
    )
)
"""Offsets between a label and its point that are tried, in units of the chart."""

HARD, SOFT, FAR = 20.0, 1.0, 5.0
"""Cost of a label: per unit of area of points and text that it covers, per unit of area of lines that it
covers, and per unit of distance from its point."""


def settle(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    hard: Sequence[Box],
    soft: Sequence[Box],
    frame: Box,
) -> list[Box]:
    """Place one label beside each point, in the order given, where it covers least.

    Args:
        points: the points that the labels belong to.
        sizes: width and height of each label.
        hard: boxes that must stay free: points, other text.
        soft: boxes that should stay free: lines.
        frame: the box that labels should not leave.
    """
    taken = [(box, HARD) for box in hard] + [(box, SOFT) for box in soft]
    placed = []
    for point, size in zip(points, sizes, strict=True):
        boxes = [_beside(point, offset, size) for offset in PLACES]
        costs = [
            sum(weight * overlap(box, other) for other, weight in taken)
            + HARD * (box.area - overlap(box, frame))
            + FAR * math.hypot(*offset)
            for box, offset in zip(boxes, PLACES, strict=True)
        ]
        best = boxes[costs.index(min(costs))]
        placed.append(best)
        taken.append((best.padded(1), HARD))
    return placed


def overlap(a: Box, b: Box) -> int | float:
    """The area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _beside(point: tuple[float, float], offset: tuple[float, float], size: tuple[float, float]) -> Box:
    """The box of a label whose nearest corner, or middle of an edge, is ``offset`` from the point."""
    (x, y), (across, up), (width, height) = point, offset, size
    x0 = x + across - (width / 2 if across == 0 else width if across < 0 else 0)
    y0 = y + up - (height / 2 if up == 0 else height if up < 0 else 0)
    return Box(x0, y0, x0 + width, y0 + height)
