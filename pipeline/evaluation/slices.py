"""Results by what an image is like: its light, shape, scale, or any column of a table."""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int, UInt8

from pipeline.data.store import ImageSet
from pipeline.errors import DistilleryError
from pipeline.evaluation.comparison import paired
from pipeline.statistics.intervals import gap_interval, wilson
from teachers.contract import InputContract

FILE_NAME = "file_name"
"""Column of the table that names an image as the data set does (``source``)."""

PARTS = 3
"""Numbers are cut into tertiles."""
CATEGORIES = 10
"""A column of more distinct numbers than this is cut."""
FEWEST = 20
"""Images of a group that may be the best or the worst."""

THUMBNAIL = 64
"""Pixels at which light and scale are measured."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""
TOLERANCE = 16
"""Of 255, on any channel, up to which a pixel is like the background."""
PLAIN = 0.8
"""Share of the border that must be alike for a plain background."""


class MetadataError(DistilleryError):
    """The table of image properties is not usable. The message names it and what is wrong."""


@dataclass(frozen=True)
class Column:
    """One way to part the images."""

    name: str
    source: Literal["built-in", "metadata"]
    groups: Mapping[str, np.ndarray]
    """Group to a mask of its images, in order; none where the column says nothing."""
    note: str


def built_in(images: ImageSet, contract: InputContract) -> list[Column]:
    """Brightness, aspect ratio, and the object's scale where the background is plain."""
    light, shape, scale = [], [], []
    small = InputContract(THUMBNAIL, interpolation=contract.interpolation, crop=contract.crop)
    for index in range(len(images)):
        image = images.image(index)
        square = np.asarray(small.render(image, small.centre_box(*image.size)))
        light.append(float(square.mean(axis=(0, 1)) @ LUMA) / 255)
        shape.append(image.width / image.height)
        scale.append(object_scale(square))
    scales = np.array(scale)
    plain = int((~np.isnan(scales)).sum())
    return [
        _cut("brightness", "built-in", np.array(light), "mean luma of the evaluated square, 0 to 1"),
        _cut("aspect_ratio", "built-in", np.array(shape), "width over height of the whole image"),
        _cut(
            "object_scale",
            "built-in",
            scales,
            f"share of the square unlike its background; known for the {plain} of {len(images)} images whose "
            "border is plain",
        ),
    ]


def object_scale(square: UInt8[np.ndarray, "side side 3"]) -> float:
    """Share of the pixels that are unlike a plain background; NaN where the border is not plain."""
    border = np.concatenate([square[0], square[-1], square[1:-1, 0], square[1:-1, -1]]).astype(int)
    background = np.median(border, axis=0)
    if (np.abs(border - background).max(axis=1) <= TOLERANCE).mean() < PLAIN:
        return math.nan
    return float((np.abs(square - background).max(axis=2) > TOLERANCE).mean())


def read_metadata(file: Path, sources: Sequence[str]) -> list[Column]:
    """Every column of a CSV table, for the images that ``sources`` names.

    Raises:
        MetadataError: the file cannot be read, lacks ``file_name`` or another column, or names no image.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            header = list(reader.fieldnames or ())
            table = {row[FILE_NAME]: row for row in reader} if FILE_NAME in header else {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MetadataError(f"evaluation.metadata = '{file}' cannot be read: {error}") from error
    if FILE_NAME not in header or len(header) < 2:
        raise MetadataError(
            f"evaluation.metadata = '{file}': columns {FILE_NAME} and another one are needed; "
            f"found {', '.join(header) or 'none'}"
        )
    known = np.array([source in table for source in sources])
    if not known.any():
        raise MetadataError(
            f"evaluation.metadata = '{file}': {FILE_NAME} names none of the test images, "
            f"such as '{sources[0]}'"
        )
    return [
        _column(name, [(table[s][name] or "") if s in table else "" for s in sources])
        for name in header
        if name != FILE_NAME
    ]


def measure(
    column: Column,
    answers: Mapping[str, Int[np.ndarray, " images"]],
    parents: Mapping[str, str],
    labels: Int[np.ndarray, " images"],
) -> dict[str, Any]:
    """Score every classifier on each group of images, and every variant against its parent.

    Args:
        column: how the images are parted.
        answers: classifier to the classes that it answered; all parents are among them.
        parents: variant to its parent; a classifier that is none's child is scored alone.
        labels: the true classes.
    """
    return {
        "column": column.name,
        "source": column.source,
        "note": column.note,
        "groups": [{"group": name, "n": int(inside.sum())} for name, inside in column.groups.items()],
        "variants": {
            name: _variant(column, predictions, answers.get(parents.get(name, "")), labels)
            for name, predictions in answers.items()
            if column.groups
        },
    }


def _variant(
    column: Column,
    own: Int[np.ndarray, " images"],
    parent: Int[np.ndarray, " images"] | None,
    labels: Int[np.ndarray, " images"],
) -> dict[str, Any]:
    counts = {
        name: (int((own == labels)[inside].sum()), int(inside.sum()))
        for name, inside in column.groups.items()
    }
    damage = {} if parent is None else paired(own, parent, labels, column.groups)
    groups = []
    for name, (correct, images) in counts.items():
        lo, hi = wilson(correct, images)
        line = {"group": name, "n": images, "score": correct / images, "lo": lo, "hi": hi}
        if name in damage:
            figures = damage[name]
            line |= {"delta": figures["delta"], "delta_lo": figures["lo"], "delta_hi": figures["hi"]}
            line |= {key: figures[key] for key in ("p_holm", "worse")}
        groups.append(line)
    return {"groups": groups, **_gap(counts)}


def _gap(counts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The best group against the worst."""
    shares = {name: correct / images for name, (correct, images) in counts.items() if images >= FEWEST}
    if len(shares) < 2:
        return dict.fromkeys(("best", "worst", "gap", "gap_lo", "gap_hi", "distinguishable"))
    best, worst = max(shares, key=lambda name: shares[name]), min(shares, key=lambda name: shares[name])
    (first, n), (second, m) = counts[best], counts[worst]
    lo, hi = gap_interval((first, second), (n, m), pairs=math.comb(len(shares), 2))
    gap = shares[best] - shares[worst]
    return {
        "best": best,
        "worst": worst,
        "gap": gap,
        "gap_lo": lo,
        "gap_hi": hi,
        "distinguishable": lo > 0,
    }


def _column(name: str, cells: Sequence[str]) -> Column:
    missing = sum(not cell.strip() for cell in cells)
    note = f"from the metadata file; {missing} of {len(cells)} test images have no value"
    try:
        numbers = np.array([float(cell) if cell.strip() else math.nan for cell in cells])
    except ValueError:
        numbers = None
    if numbers is not None and len(np.unique(numbers[~np.isnan(numbers)])) > CATEGORIES:
        return _cut(name, "metadata", numbers, note)
    stripped = np.array([cell.strip() for cell in cells])
    groups = {str(value): stripped == value for value in np.unique(stripped) if value}
    return Column(name, "metadata", groups, note)


def _cut(
    name: str, source: Literal["built-in", "metadata"], values: Float[np.ndarray, " images"], note: str
) -> Column:
    """Tertiles of numbers; NaN belongs to none."""
    known = values[~np.isnan(values)]
    if len(known) < PARTS * FEWEST:
        return Column(name, source, {}, f"{note}; too few to compare: {len(known)}")
    if known.min() == known.max():
        return Column(name, source, {}, f"{note}; the same for all images: {known[0]:.3g}")
    edges = _edges(known)
    groups = {}
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (values >= low if number == 0 else values > low) & (values <= high)
        if inside.any():
            groups[f"{low:.4g} to {high:.4g}"] = inside
    return Column(name, source, groups, note)


def _edges(known: Float[np.ndarray, " images"]) -> Float64[np.ndarray, " edges"]:
    return np.unique(np.quantile(known, np.linspace(0, 1, PARTS + 1)))
