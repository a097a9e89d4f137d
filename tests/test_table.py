import csv
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.selection import table
from pipeline.selection.table import Row, TableError
from tests import hostile, results

HEADER = (
    "variant,parent,op,top1,top1_lo,top1_hi,top1_delta,delta_lo,delta_hi,mcnemar_p,verdict,"
    "max_drop,test_images,images_needed,size_bytes,parameters,macs,"
    "latency_ms_p50,latency_ratio_to_fp32,latency_ratio_lo,latency_ratio_hi,sha256,val_top1,reference_delta,reference_lo,reference_hi"
)


@pytest.fixture
def rows() -> list[Row]:
    entries, teacher, _ = results.results()
    return results.table(entries, teacher)


def test_the_file_has_the_promised_columns_and_reads_back(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "report" / "variants.csv"
    table.write(path, rows)
    with path.open() as file:
        assert file.readline().strip() == HEADER
    for read, row in zip(table.read(path), rows, strict=True):
        assert asdict(read) == {
            name: pytest.approx(value, abs=1e-6, rel=1e-5) if isinstance(value, float) else value
            for name, value in asdict(row).items()
        }


def test_a_hash_of_digits_alone_stays_text(rows: list[Row], tmp_path: Path) -> None:
    table.write(tmp_path / "v.csv", [replace(rows[0], sha256="0" * 63 + "7")])
    assert table.read(tmp_path / "v.csv")[0].sha256 == "0" * 63 + "7"


def test_scores_of_attributes_are_named_by_their_metric(rows: list[Row], tmp_path: Path) -> None:
    table.write(tmp_path / "v.csv", [replace(row, metric="map", mcnemar_p=None) for row in rows])
    with (tmp_path / "v.csv").open() as file:
        assert {"map", "map_lo", "map_delta", "val_map"} <= set(next(csv.reader(file)))
    read = table.read(tmp_path / "v.csv")
    assert {row.metric for row in read} == {"map"}
    assert {row.mcnemar_p for row in read} == {None}


def test_without_fp32_the_ratio_is_an_empty_cell(rows: list[Row], tmp_path: Path) -> None:
    table.write(tmp_path / "v.csv", [replace(rows[0], latency_ratio_to_fp32=None)])
    with (tmp_path / "v.csv").open() as file:
        assert next(csv.DictReader(file))["latency_ratio_to_fp32"] == ""
    assert table.read(tmp_path / "v.csv")[0].latency_ratio_to_fp32 is None


def test_a_verdict_that_does_not_exist_is_named(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    table.write(path, rows)
    path.write_text(path.read_text().replace("reject", "perhaps"))
    with pytest.raises(TableError, match=r"v\.csv .*'perhaps'.*accept, reject"):
        table.read(path)


FORMULAE = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "'=1",
    "''=1",
    "'",
    "'a",
    "\N{FULLWIDTH EQUALS SIGN}1",
)


@pytest.mark.parametrize("name", [*FORMULAE, *hostile.NAMES])
def test_no_cell_is_a_formula_and_every_name_reads_back(name: str, rows: list[Row], tmp_path: Path) -> None:
    table.write(tmp_path / "v.csv", [rows[0], replace(rows[1], variant=name, parent=name, op=name)])
    with (tmp_path / "v.csv").open(newline="") as file:
        cells = [
            cell for line in csv.DictReader(file) for cell in (line["variant"], line["parent"], line["op"])
        ]
    assert not any(
        cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\n", "\N{FULLWIDTH EQUALS SIGN}") for cell in cells
    )
    read = table.read(tmp_path / "v.csv")[1]
    assert (read.variant, read.parent, read.op) == (name, name, name)
