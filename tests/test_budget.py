from dataclasses import replace
from typing import Any

import pytest

from pipeline.selection import budget
from pipeline.selection.budget import choose
from tests.rows import row

TABLE = [
    row("fp32", "teacher", 0.8920, 2.80, 7_280_000),
    row("ptq", "fp32", 0.8840, 1.34, 1_990_000),
    row("qat", "fp32", 0.8888, 1.33, 1_990_000),
    row("pruned", "fp32", 0.8918, 1.59, 3_600_000),
    row("pruned-int8", "pruned", 0.8862, 1.05, 1_030_000),
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
    table = [replace(one, verdict="reject") if one.variant == rejected else one for one in TABLE]
    assert choose(table).variant == "qat"
    assert choose(table, max_size_bytes=1_100_000).variant is None


def test_the_drop_is_against_the_most_accurate_student_of_the_teacher() -> None:
    narrow = row("narrow", "teacher", 0.80, 0.5, 400_000)
    assert choose([narrow, *TABLE]).variant == "narrow"
    assert choose([narrow, *TABLE], max_drop=0.01).variant == "pruned-int8"


def test_a_choice_gives_the_reason() -> None:
    assert choose(TABLE, max_latency_ms=1.5, max_size_bytes=2_000_000).reason == (
        "qat is the most accurate accepted variant within 1.5 ms and 2,000,000 bytes: "
        "88.88 % (0.32 points below fp32), 1.33 ms, 1,990,000 bytes."
    )
    assert choose(TABLE, max_latency_ms=5.0).reason.startswith(
        "pruned is the fastest of the most accurate accepted variants within 5 ms: "
    )
    assert choose(TABLE, max_drop=0.01).reason.startswith(
        "pruned-int8 is the fastest accepted variant within 1 points of fp32: "
    )
    assert choose(TABLE[:1]).reason == (
        "fp32 is the fastest accepted variant (no limit is set): 89.20 %, 2.80 ms, 7,280,000 bytes."
    )


def test_a_limit_that_nothing_meets_is_named_with_what_comes_closest() -> None:
    choice = choose(TABLE, max_latency_ms=1.0, max_size_bytes=2_000_000)
    assert (choice.variant, choice.closest) == (None, "pruned-int8")
    assert choice.reason == "No accepted variant is within 1 ms. The closest is pruned-int8 with 1.05 ms."


def test_limits_that_are_only_met_apart_are_named_together() -> None:
    choice = choose(TABLE, max_drop=0.001, max_size_bytes=2_000_000)
    assert (choice.variant, choice.closest) == (None, "qat")
    assert choice.reason == (
        "No accepted variant is within 0.1 points of fp32 and 2,000,000 bytes together. "
        "The closest is qat with a score 0.32 points below fp32."
    )


def test_without_an_accepted_variant_the_loss_and_the_remedies_are_named() -> None:
    rejected = replace(TABLE[0], verdict="reject", score_delta=-0.231234)
    choice = choose([rejected, *TABLE[1:]], gate_max_drop=0.04)
    assert (choice.variant, choice.closest) == (None, "fp32")
    assert choice.reason == (
        "Nothing passed. fp32 is 23.1 points below its teacher (4 allowed), and all others are made from it. "
        "Train longer (`distill.epochs`), start from pretrained weights (`student.init`), "
        "or raise `gate.distill`."
    )
    assert "all others" not in choose([rejected], gate_max_drop=0.04).reason
    other = row("narrow", score=0.5, verdict="reject")
    assert "no other variant made from the teacher" in choose([rejected, other]).reason


def test_accepted_variants_have_accepted_ancestors_only() -> None:
    table = [replace(one, verdict="reject") if one.variant == "pruned" else one for one in TABLE]
    assert [one.variant for one in budget.accepted(table)] == ["fp32", "ptq", "qat"]
    assert budget.accepted(TABLE) == TABLE
