"""Placement of the labels of a chart: each at its own mark, covering neither marks nor other labels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

Point = tuple[float, float]


class Box(NamedTuple):
    """A rectangle along the axes, in any unit."""

    x0: int | float
    y0: int | float
    x1: int | float
    y1: int | float

    def padded(self, by: int | float) -> "Box":
        return Box(self.x0 - by, self.y0 - by, self.x1 + by, self.y1 + by)

    def nearest(self, point: Point) -> Point:
        """The point of the box that is nearest to another point."""
        return min(max(point[0], self.x0), self.x1), min(max(point[1], self.y0), self.y1)

    def distance(self, point: Point) -> float:
        """Distance of a point from the box; 0 for points within it."""
        return math.dist(point, self.nearest(point))


@dataclass(frozen=True)
class Label:
    """Where one label stands."""

    box: Box
    leader: bool
    """Whether a line must join the label to its mark: it is far away, or another mark is about as near."""


LABEL_LIMIT = 12
"""Greatest number of labels that are placed beside their marks; more are placed in a column."""

DIRECTIONS = (
    *((0.8, 0.6), (-0.8, 0.6), (0.8, -0.6), (-0.8, -0.6), (1.0, 0.0), (-1.0, 0.0)),
    *((0.95, 0.3), (-0.95, 0.3), (0.95, -0.3), (-0.95, -0.3)),
)
"""Directions from a mark to the nearest corner, or to the middle of the nearest edge, of its label."""

SHARES = (0.5, 0.3, 0.7, 0.15, 0.85)
"""Shares of a label that lie to the left of its mark, for labels above and below it."""

GAPS = (3, 8, 15, 24, 36, 50, 66, 84, 104, 130)
"""Distances between the edge of a mark and its label that are tried, in units of the chart."""

NEAR = 12.0
"""Distance between the edge of a mark and its label up to which no line has to join them."""

CLEARLY = 1.3
"""Multiple of a label's distance from its own mark at which another mark is clearly farther away."""

SOFT, LEADER, CROSSED, CLOSER = 0.3, 60.0, 40.0, 15.0
"""Costs of a label: per unit of area of lines that it covers, for a line that joins it to its mark, for each
mark or line that this line crosses, and where another mark is nearer than its own."""

SLANT = 10.0
"""Sideways extent of a line that joins a label to a mark above or below it."""

SHUFFLES = 4
"""Number of orders in which labels are placed if the first one leaves lines."""


def settle(
    points: Sequence[Point],
    sizes: Sequence[tuple[float, float]],
    *,
    radii: Sequence[float],
    soft: Sequence[Box],
    frame: Box,
) -> list[Label] | None:
    """Place one label beside each mark; None where that is not possible without covering anything.

    Args:
        points: the centres of the marks.
        sizes: width and height of each label.
        radii: half the width of each mark.
        soft: boxes that labels should not cover: lines.
        frame: the box that labels may not leave.
    """
    if len(points) > LABEL_LIMIT:
        return None
    marks = [Box(x - r, y - r, x + r, y + r) for (x, y), r in zip(points, radii, strict=True)]
    candidates = [
        sorted(_candidates(number, points, sizes[number], marks, soft, frame), key=lambda item: item[0])
        for number in range(len(points))
    ]
    if not all(candidates):
        return None
    best: tuple[float, list[Label]] | None = None
    random = np.random.default_rng(0)
    order = sorted(range(len(points)), key=lambda number: len(candidates[number]))
    for _ in range(SHUFFLES):
        placed = _placed(order, points, candidates)
        if placed is not None and (best is None or placed[0] < best[0]):
            best = placed
        if best is not None and not any(label.leader for label in best[1]):
            break
        order = random.permutation(len(points)).tolist()
    return best and best[1]


def column(
    points: Sequence[Point], sizes: Sequence[tuple[float, float]], *, left: float, top: float, bottom: float
) -> list[Label]:
    """Place one label per mark in a column, joined to their marks by lines that do not cross.

    Lines of the least total length never cross: two that did could be exchanged for two shorter ones.

    Args:
        points: the centres of the marks, all to the left of the column.
        sizes: width and height of each label.
        left: left edge of the labels.
        top: upper end of the column.
        bottom: lower end of the column.
    """
    step = (bottom - top) / len(points)
    places = [top + step * (number + 0.5) for number in range(len(points))]
    lengths = [[math.dist(point, (left, place)) for place in places] for point in points]
    _, chosen = linear_sum_assignment(np.array(lengths))
    return [
        Label(Box(left, places[place] - height / 2, left + width, places[place] + height / 2), leader=True)
        for place, (width, height) in zip(chosen.tolist(), sizes, strict=True)
    ]


def leader(point: Point, box: Box) -> tuple[Point, Point]:
    """The ends of the line that joins a mark to its label; never upright, as intervals are."""
    x, y = box.nearest(point)
    if abs(x - point[0]) < SLANT:
        towards = 1 if (box.x0 + box.x1) / 2 >= point[0] else -1
        x = min(max(point[0] + towards * SLANT, box.x0), box.x1)
    return point, (x, y)


def overlap(a: Box, b: Box) -> int | float:
    """The area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def crosses(line: tuple[Point, Point], box: Box) -> bool:
    """Whether a line passes through the inside of a box (Liang and Barsky 1984)."""
    (x, y), (end_x, end_y) = line
    enter, leave = 0.0, 1.0
    for start, change, low, high in ((x, end_x - x, box.x0, box.x1), (y, end_y - y, box.y0, box.y1)):
        if change == 0:
            if not low < start < high:
                return False
            continue
        first, last = sorted(((low - start) / change, (high - start) / change))
        enter, leave = max(enter, first), min(leave, last)
    return enter < leave


def meet(a: tuple[Point, Point], b: tuple[Point, Point]) -> bool:
    """Whether two lines cross."""
    return _side(a, b[0]) * _side(a, b[1]) < 0 and _side(b, a[0]) * _side(b, a[1]) < 0


def _side(line: tuple[Point, Point], point: Point) -> float:
    (x, y), (end_x, end_y) = line
    return (end_x - x) * (point[1] - y) - (end_y - y) * (point[0] - x)


def _candidates(
    number: int,
    points: Sequence[Point],
    size: tuple[float, float],
    marks: Sequence[Box],
    soft: Sequence[Box],
    frame: Box,
) -> Iterator[tuple[float, Label]]:
    """The places of one label that cover no mark and lie within the frame, with their costs."""
    point = points[number]
    radius = (marks[number].x1 - marks[number].x0) / 2
    others = [other for place, other in enumerate(points) if place != number]
    for gap in GAPS:
        for box in _around(point, radius + gap, size, frame):
            x0, y0, x1, y1 = box
            # Compared in place, since this is done thousands of times.
            if x0 < frame.x0 or y0 < frame.y0 or x1 > frame.x1 or y1 > frame.y1:
                continue
            if any(
                x0 - 1 < mark.x1 and mark.x0 < x1 + 1 and y0 - 1 < mark.y1 and mark.y0 < y1 + 1
                for mark in marks
            ):
                continue
            distance = box.distance(point)
            joined = gap > NEAR or any(box.distance(other) < CLEARLY * distance for other in others)
            cost = gap + SOFT * sum(overlap(box, line) for line in soft)
            if joined:
                line = leader(point, box)
                crossed = sum(
                    crosses(line, mark) for other, mark in zip(points, marks, strict=True) if other != point
                )
                closer = any(box.distance(other) < distance for other in others)
                cost += LEADER + CROSSED * crossed + CLOSER * closer
            yield cost, Label(box, joined)


def _placed(
    order: Sequence[int], points: Sequence[Point], candidates: Sequence[Sequence[tuple[float, Label]]]
) -> tuple[float, list[Label]] | None:
    """The cost of the labels, each at its best place that is still free; None where one has none."""
    placed: dict[int, Label] = {}
    boxes: list[Box] = []
    lines: list[tuple[Point, Point]] = []
    total = 0.0
    for number in order:
        best: tuple[float, Label] | None = None
        for cost, label in candidates[number]:
            if best is not None and cost >= best[0]:
                break
            x0, y0, x1, y1 = label.box
            if any(
                x0 - 1 < box.x1 and box.x0 < x1 + 1 and y0 - 1 < box.y1 and box.y0 < y1 + 1 for box in boxes
            ):
                continue
            room = label.box.padded(1)
            if any(crosses(line, room) for line in lines):
                continue
            if label.leader:
                line = leader(points[number], label.box)
                if any(crosses(line, box) for box in boxes):
                    continue
                cost += CROSSED * sum(meet(line, other) for other in lines)
                if best is not None and cost >= best[0]:
                    continue
            best = cost, label
        if best is None:
            return None
        total += best[0]
        placed[number] = best[1]
        boxes.append(best[1].box)
        if best[1].leader:
            lines.append(leader(points[number], best[1].box))
    return total, [placed[number] for number in range(len(points))]


def _around(point: Point, distance: float, size: tuple[float, float], frame: Box) -> Iterator[Box]:
    """Boxes of a label at a distance from a point: beside it, above it and below it."""
    (x, y), (width, height) = point, size
    for across, down in DIRECTIONS:
        x0 = x + across * distance - (width if across < 0 else 0)
        slanted = abs(down) >= 0.6
        y0 = y + down * distance - (height / 2 if not slanted else height if down < 0 else 0)
        yield Box(x0, y0, x0 + width, y0 + height)
    for y0 in (y - distance - height, y + distance):
        for share in SHARES:
            x0 = max(frame.x0, min(x - share * width, frame.x1 - width))
            yield Box(x0, y0, x0 + width, y0 + height)
