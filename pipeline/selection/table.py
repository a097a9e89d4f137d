"""The table of variants, ``variants.csv``: one typed row per variant, written and read here only."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pipeline import files
from pipeline.errors import DistilleryError
from pipeline.escaping import for_csv, from_csv

TEACHER = "teacher"
"""Parent of the variants that are made from the teacher itself."""

DECIMALS = 6
"""Digits after the decimal point of fractions, milliseconds and ratios in the file."""


class TableError(DistilleryError):
    """The table of variants is missing, incomplete or damaged. The message says how to write it again."""


@dataclass(frozen=True)
class Row:
    """One row of ``variants.csv``: the fields are its columns, in order, except for ``metric``.

    In the file, ``score`` is replaced by the name of the metric: ``top1``, ``top1_lo``, ``top1_delta``, or
    ``map``, ``map_lo``, ``map_delta``. The ends of intervals (``_lo``, ``_hi``) are those of 95 % intervals.
    """

    variant: str
    """Name of the variant, which is unique in the table."""
    parent: str
    """Name of the variant that it was made from, or ``teacher``."""
    op: str
    """Operation that made it: ``load``, ``distill``, ``prune`` or ``quantize``."""
    score: float
    """Score of the ONNX file on the test split, as a fraction of 1."""
    score_lo: float
    score_hi: float
    score_delta: float
    """Score minus the parent's score on the same images, as a fraction of 1."""
    delta_lo: float
    delta_hi: float
    mcnemar_p: float | None
    """P value of McNemar's exact test against the parent; None for attributes."""
    verdict: Literal["accept", "reject"]
    """Whether the gate tolerates the loss against the parent."""
    max_drop: float
    """Loss against the parent that the gate allows, as a fraction of 1."""
    test_images: int
    """Number of test images."""
    images_needed: int | None
    """Number of test images on which the gate would accept the variant if as great a share of its answers
    changed; None where more images do not help."""
    size_bytes: int
    """Size of the ONNX file."""
    parameters: int
    """Number of parameters of the network."""
    macs: int
    """Number of multiply-accumulates per image."""
    latency_ms_p50: float
    """Median latency in milliseconds."""
    latency_ratio_to_fp32: float | None
    """Latency of fp32 divided by the latency of this variant in the same run; None where fp32 is missing."""
    latency_ratio_lo: float | None
    latency_ratio_hi: float | None
    sha256: str
    """SHA-256 of the ONNX file."""
    val_score: float
    """Score on the validation split, by which variants of many experiments are compared."""
    reference_delta: float
    """Score minus the score of the most accurate variant that is made from the teacher, on the same
    images, as a fraction of 1."""
    reference_lo: float
    reference_hi: float
    metric: Literal["top1", "map"]
    """Name of the score."""


COLUMNS = tuple(field.name for field in fields(Row) if field.name != "metric")
"""Fields of ``Row`` that are columns of the file, in its order."""


def column(field: str, metric: str) -> str:
    """The name of a field in files: ``score_lo`` becomes ``top1_lo``."""
    return field.replace("score", metric)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write ``variants.csv``; fractions are rounded to 6 decimals, p values keep 6 significant digits.

    Text that a spreadsheet would take for a formula begins with an apostrophe, which ``read`` removes.
    """
    lines = [[column(name, rows[0].metric) for name in COLUMNS]]
    lines += [[_cell(name, getattr(row, name)) for name in COLUMNS] for row in rows]
    files.write(path, "".join(map(_line, lines)))


def read(path: Path) -> list[Row]:
    """Read ``variants.csv``.

    Raises:
        TableError: the file is missing, damaged, lacks a column, or has no variant of the teacher.
    """
    again = "run `dvc repro report` to write it again"
    if not path.is_file():
        raise TableError(f"{path} does not exist; run `dvc repro report` to write it")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        metric = "map" if "map" in (reader.fieldnames or ()) else "top1"
        try:
            rows = [_row(cells, metric) for cells in reader]
        except KeyError as error:
            raise TableError(f"{path} has no column {error}; {again}") from error
        except (TypeError, ValueError) as error:
            raise TableError(f"{path} is damaged ({error}); {again}") from error
    if not any(row.parent == TEACHER for row in rows):
        raise TableError(f"{path} has no variant of the teacher; {again}")
    return rows


def is_noisy(benchmark: Path) -> bool:
    """Whether other work disturbed the measurement of the latencies in the table.

    Args:
        benchmark: what the stage `benchmark` wrote.
    """
    try:
        return bool(json.loads(benchmark.read_text())["noise"]["noisy"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _line(cells: Sequence[Any]) -> str:
    # Only with its default end of line does the writer put quotes around every line break within a cell.
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _row(cells: dict[str, str], metric: Literal["top1", "map"]) -> Row:
    verdict = cells["verdict"]
    if verdict not in ("accept", "reject"):
        raise ValueError(f"verdict is {verdict!r}; allowed: accept, reject")
    return Row(
        variant=from_csv(cells["variant"]),
        parent=from_csv(cells["parent"]),
        op=from_csv(cells["op"]),
        score=float(cells[metric]),
        score_lo=float(cells[f"{metric}_lo"]),
        score_hi=float(cells[f"{metric}_hi"]),
        score_delta=float(cells[f"{metric}_delta"]),
        delta_lo=float(cells["delta_lo"]),
        delta_hi=float(cells["delta_hi"]),
        mcnemar_p=_optional(cells["mcnemar_p"]),
        verdict=verdict,
        max_drop=float(cells["max_drop"]),
        test_images=int(cells["test_images"]),
        images_needed=int(cells["images_needed"]) if cells["images_needed"] else None,
        size_bytes=int(cells["size_bytes"]),
        parameters=int(cells["parameters"]),
        macs=int(cells["macs"]),
        latency_ms_p50=float(cells["latency_ms_p50"]),
        latency_ratio_to_fp32=_optional(cells["latency_ratio_to_fp32"]),
        latency_ratio_lo=_optional(cells["latency_ratio_lo"]),
        latency_ratio_hi=_optional(cells["latency_ratio_hi"]),
        sha256=from_csv(cells["sha256"]),
        val_score=float(cells[f"val_{metric}"]),
        reference_delta=float(cells["reference_delta"]),
        reference_lo=float(cells["reference_lo"]),
        reference_hi=float(cells["reference_hi"]),
        metric=metric,
    )


def _optional(cell: str) -> float | None:
    return float(cell) if cell else None


def _cell(name: str, value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str):
        return for_csv(value)
    if name == "mcnemar_p":
        return f"{value:.6g}"
    return round(value, DECIMALS) if isinstance(value, float) else value
