from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.selection import budget, table
from pipeline.selection.budget import Line, TableError, choose
from tests import results


def line(
    variant: str, parent: str, score: float, milliseconds: float, size: int, verdict: str = "accept"
) -> Line:
    return Line(
        variant=variant,
        parent=parent,
        metric="top1",
        score=score,
        score_lo=score - 0.006,
        score_hi=score + 0.006,
        score_delta=-0.01,
        verdict=verdict,
        size_bytes=size,
        latency_ms_p50=milliseconds,
        sha256="0" * 64,
    )


TABLE = [
    line("fp32", "teacher", 0.8920, 2.80, 7_280_000),
    line("ptq", "fp32", 0.8840, 1.34, 1_990_000),
    line("qat", "fp32", 0.8888, 1.33, 1_990_000),
    line("pruned", "fp32", 0.8918, 1.59, 3_600_000),
    line("pruned-int8", "pruned", 0.8862, 1.05, 1_030_000),
]


@pytest.mark.parametrize(
    ("limits", "variant"),
    [
        ({}, "pruned-int8"),
        ({"max_drop": 0.004}, "qat"),
        ({"max_drop": 0.0032}, "qat"),
        ({"max_drop": 0.003}, "pruned"),
        ({"max_drop": 0.0}, "fp32"),
        ({"max_latency_ms": 1.5}, "qat"),
        ({"max_size_bytes": 2_000_000}, "qat"),
        ({"max_size_bytes": 1_990_000}, "qat"),
        ({"max_latency_ms": 1.2, "max_size_bytes": 2_000_000}, "pruned-int8"),
        ({"max_drop": 0.01, "max_size_bytes": 5_000_000}, "pruned"),
        # fp32 is better by 0.02 points, which nobody can tell from chance, and takes nearly twice the time.
        ({"max_latency_ms": 100.0}, "pruned"),
    ],
)
def test_a_budget_picks_the_variant(limits: dict[str, Any], variant: str) -> None:
    assert choose(TABLE, **limits).variant == variant
    assert choose(TABLE[::-1], **limits).variant == variant


def test_of_equally_fast_and_accurate_variants_the_smallest_is_chosen() -> None:
    small = replace(TABLE[2], variant="small", size_bytes=1_500_000)
    assert choose([*TABLE, small], max_latency_ms=1.5).variant == "small"


@pytest.mark.parametrize("rejected", ["pruned-int8", "pruned"])
def test_what_the_gate_rejects_or_descends_from_it_is_never_chosen(rejected: str) -> None:
    table = [replace(row, verdict="reject") if row.variant == rejected else row for row in TABLE]
    assert choose(table).variant == "qat"
    assert choose(table, max_size_bytes=1_100_000).variant is None


def test_the_drop_is_against_the_most_accurate_student_of_the_teacher() -> None:
    narrow = line("narrow", "teacher", 0.80, 0.5, 400_000)
    assert choose([narrow, *TABLE]).variant == "narrow"
    assert choose([narrow, *TABLE], max_drop=0.01).variant == "pruned-int8"


def test_a_choice_says_why() -> None:
    assert choose(TABLE, max_latency_ms=1.5, max_size_bytes=2_000_000).reason == (
        "qat is the most accurate accepted variant within 1.5 ms and 2,000,000 bytes: "
        "88.88% (-0.32 points against fp32), 1.33 ms, 1,990,000 bytes"
    )
    assert choose(TABLE, max_latency_ms=5.0).reason.startswith(
        "pruned is the fastest of the most accurate accepted variants within 5 ms: "
    )
    assert choose(TABLE, max_drop=0.01).reason.startswith(
        "pruned-int8 is the fastest accepted variant within 1.00 points of fp32: "
    )


def test_a_limit_that_nothing_meets_is_named_with_what_comes_closest() -> None:
    choice = choose(TABLE, max_latency_ms=1.0, max_size_bytes=2_000_000)
    assert (choice.variant, choice.closest) == (None, "pruned-int8")
    assert choice.reason == ("no accepted variant is within 1 ms; closest is pruned-int8 with 1.05 ms")


def test_limits_that_are_only_met_apart_are_named_together() -> None:
    choice = choose(TABLE, max_drop=0.001, max_size_bytes=2_000_000)
    assert (choice.variant, choice.closest) == (None, "qat")
    assert choice.reason == (
        "no accepted variant is within 0.10 points of fp32 and 2,000,000 bytes together; "
        "closest is qat with -0.32 points against fp32"
    )


def test_without_an_accepted_variant_the_gate_is_named() -> None:
    choice = choose([replace(row, verdict="reject") for row in TABLE[:1]] + TABLE[1:])
    assert (choice.variant, choice.closest) == (None, "fp32")
    assert choice.reason == (
        "the gate accepts no variant together with all its ancestors; "
        "closest is fp32, -1.00 points against teacher"
    )


def test_the_table_that_report_writes_reads_back_and_chooses_alike(tmp_path: Path) -> None:
    entries, teacher, _ = results.results()
    rows = results.table(entries, teacher)
    table.write(tmp_path / "variants.csv", rows)
    lines = budget.read(tmp_path / "variants.csv")
    assert [read.variant for read in lines] == [row.variant for row in rows]
    assert choose(lines, max_drop=0.1) == choose(rows, max_drop=0.1)
    assert choose(lines).variant == "int8"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist; `dvc repro report` makes it"),
        ("", "has no variant of the teacher"),
        ("variant,parent\na,b\n", "has no column 'top1'"),
        ("variant,parent,top1,top1_lo\na,teacher,much,0\n", "is damaged"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "variants.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(TableError, match=rf"variants\.csv {reason}") as caught:
        budget.read(file)
    assert len(str(caught.value).splitlines()) == 1
