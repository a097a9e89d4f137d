"""Scores by image property: brightness, aspect ratio, scale of the object, or any column of a table."""

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from pipeline.data import tables
from pipeline.data.store import ImageSet
from pipeline.errors import DistilleryError
from pipeline.evaluation.comparison import compare_groups
from pipeline.statistics.intervals import gap_interval, wilson
from teachers.contract import InputContract

QUANTILES = 3
"""Number of groups of equal size that numbers are divided into."""

MOST_CATEGORIES = 10
"""A column with more distinct numbers than this is divided into quantiles; else each number is a group."""

LEAST_IMAGES = 20
"""Number of images that a group needs to be called the best or the worst."""

THUMBNAIL = 64
"""Side of the images in pixels at which brightness and scale are measured."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma (ITU-R BT.601)."""

TOLERANCE = 16
"""Greatest difference from the background, of 255 on any channel, at which a pixel counts as background."""

PLAIN = 0.8
"""Share of the border that must be background for the background to count as plain."""


class MetadataError(DistilleryError):
    """The table of image properties cannot be used. The message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Column:
    """One property by which the images are divided into groups."""

    name: str
    """Name of the property."""
    source: Literal["built-in", "metadata"]
    """Whether the property is measured on the images or read from the table."""
    groups: Mapping[str, np.ndarray]
    """Mask of the images of each group; empty where the images cannot be divided by this property."""
    note: str
    """What the property is, and why there are no groups if there are none."""


def built_in(images: ImageSet, contract: InputContract) -> list[Column]:
    """Divide the images by brightness, aspect ratio, and the scale of the object on a plain background."""
    brightness, aspect_ratio, scale = [], [], []
    small = InputContract(THUMBNAIL, interpolation=contract.interpolation, crop=contract.crop)
    for index in range(len(images)):
        image = images.image(index)
        square = np.asarray(small.render(image, small.centre_box(*image.size)))
        brightness.append(float(square.mean(axis=(0, 1)) @ LUMA) / 255)
        aspect_ratio.append(image.width / image.height)
        scale.append(object_scale(square))
    scales = np.array(scale)
    plain = int((~np.isnan(scales)).sum())
    return [
        _divide("brightness", "built-in", np.array(brightness), "mean luma of the evaluated square, 0 to 1"),
        _divide("aspect_ratio", "built-in", np.array(aspect_ratio), "width over height of the whole image"),
        _divide(
            "object_scale",
            "built-in",
            scales,
            f"share of the square that is not background; measured on the {plain:,} of {len(images):,} "
            "images with a plain border",
        ),
    ]


def object_scale(square: UInt8[np.ndarray, "side side 3"]) -> float:
    """Share of the pixels that are not background; NaN where the border is not plain."""
    border = np.concatenate([square[0], square[-1], square[1:-1, 0], square[1:-1, -1]]).astype(int)
    background = np.median(border, axis=0)
    if (np.abs(border - background).max(axis=1) <= TOLERANCE).mean() < PLAIN:
        return math.nan
    return float((np.abs(square - background).max(axis=2) > TOLERANCE).mean())


def read_metadata(file: Path, sources: Sequence[str]) -> list[Column]:
    """Divide the images by every column of a CSV table.

    Args:
        file: path of the table, whose column ``file_name`` holds the sources of images in the data set.
        sources: names of the images, in order.

    Raises:
        MetadataError: see ``read_table``.
    """
    names, table = read_table(file)
    if not any(source in table for source in sources):
        print(
            f"warning: evaluation.metadata = '{file}': the column {tables.FILE_NAME} names none of the test "
            f"images, such as '{sources[0]}'",
            file=sys.stderr,
        )
    return [_column(name, [table[s][name] if s in table else "" for s in sources]) for name in names]


def read_table(file: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The names of the columns of a CSV table, and its rows by the image that they describe.

    Raises:
        MetadataError: the file cannot be read, lacks ``file_name`` or any other column, or has two different
            rows for an image.
    """
    try:
        contents = tables.read(file)
    except tables.TableError as error:
        raise MetadataError(f"evaluation.metadata: {error}") from error
    table: dict[str, dict[str, str]] = {}
    for line, row in contents.rows:
        name = tables.plain_name(row[tables.FILE_NAME])
        if table.setdefault(name, row) != row:
            raise MetadataError(f"evaluation.metadata: {file}, line {line}: {name!r} has other values before")
    return list(contents.columns), table


def measure(
    column: Column,
    predictions: Mapping[str, Int[np.ndarray, " images"]],
    parents: Mapping[str, str],
    labels: Int[np.ndarray, " images"],
) -> dict[str, Any]:
    """Score every classifier on each group of images, and compare every variant with its parent.

    Args:
        column: the groups of images.
        predictions: class of each image according to each classifier, all parents included.
        parents: parent of each variant; a classifier without a parent is only scored.
        labels: true class of each image.
    """
    return {
        "column": column.name,
        "source": column.source,
        "note": column.note,
        "groups": [{"group": name, "n": int(mask.sum())} for name, mask in column.groups.items()],
        "variants": {
            name: _measure_variant(column, classes, predictions.get(parents.get(name, "")), labels)
            for name, classes in predictions.items()
            if column.groups
        },
    }


def _measure_variant(
    column: Column,
    variant: Int[np.ndarray, " images"],
    parent: Int[np.ndarray, " images"] | None,
    labels: Int[np.ndarray, " images"],
) -> dict[str, Any]:
    counts = {
        name: (int((variant == labels)[mask].sum()), int(mask.sum())) for name, mask in column.groups.items()
    }
    differences = {} if parent is None else compare_groups(variant, parent, labels, column.groups)
    groups = []
    for name, (correct, images) in counts.items():
        lo, hi = wilson(correct, images)
        line = {"group": name, "n": images, "score": correct / images, "lo": lo, "hi": hi}
        if name in differences:
            figures = differences[name]
            line |= {"delta": figures["delta"], "delta_lo": figures["lo"], "delta_hi": figures["hi"]}
            line |= {key: figures[key] for key in ("p_holm", "worse")}
        groups.append(line)
    return {"groups": groups, **_gap(counts)}


def _gap(counts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The difference between the best and the worst group; all None where fewer than two are large enough."""
    shares = {name: correct / images for name, (correct, images) in counts.items() if images >= LEAST_IMAGES}
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
    if numbers is not None and len(np.unique(numbers[~np.isnan(numbers)])) > MOST_CATEGORIES:
        return _divide(name, "metadata", numbers, note)
    stripped = np.array([cell.strip() for cell in cells])
    groups = {str(value): stripped == value for value in np.unique(stripped) if value}
    return Column(name, "metadata", groups, note)


def _divide(
    name: str, source: Literal["built-in", "metadata"], values: Float[np.ndarray, " images"], note: str
) -> Column:
    """Divide the images into quantiles of a number; an image with NaN belongs to none."""
    numbers = values[~np.isnan(values)]
    if len(numbers) < QUANTILES * LEAST_IMAGES:
        return Column(name, source, {}, f"{note}; too few images to compare: {len(numbers)}")
    if numbers.min() == numbers.max():
        return Column(name, source, {}, f"{note}; the same for all images: {numbers[0]:.3g}")
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, QUANTILES + 1)))
    groups = {}
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        mask = (values >= low if number == 0 else values > low) & (values <= high)
        if mask.any():
            groups[f"{low:.4g} to {high:.4g}"] = mask
    return Column(name, source, groups, note)
