import random
from dataclasses import replace
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from pipeline.selection import budget
from pipeline.selection.budget import Preference, choose
from pipeline.selection.settings import BudgetSettings
from pipeline.selection.table import Row
from pipeline.statistics import intervals
from tests.rows import row

FP32 = 0.8920
"""Score of the reference, whose interval of the difference is 0.2 points wide to either side."""


def variant(name: str, parent: str, score: float, milliseconds: float, size_bytes: int) -> Row:
    """A variant whose difference from fp32 is shown if it is greater than 0.2 points."""
    difference = round(score - FP32, 6)
    return row(name, parent, score, milliseconds, size_bytes, reference_delta=difference)


TABLE = [
    variant("fp32", "teacher", FP32, 2.80, 7_280_000),
    variant("ptq", "fp32", 0.8840, 1.34, 1_990_000),
    variant("qat", "fp32", 0.8888, 1.33, 1_990_000),
    variant("pruned", "fp32", 0.8918, 1.59, 3_600_000),
    variant("pruned-int8", "pruned", 0.8862, 1.05, 1_030_000),
]


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ({}, "pruned-int8"),
        ({"max_drop": 0.0078}, "pruned-int8"),
        # Its loss is 0.58 points, and up to 0.78 are possible.
        ({"max_drop": 0.0077}, "qat"),
        ({"max_drop": 0.0052}, "qat"),
        ({"max_drop": 0.003}, "pruned"),
        ({"max_drop": 0.0}, "fp32"),
        ({"max_latency_ms": 1.5}, "pruned-int8"),
        ({"max_latency_ms": 100.0}, "pruned-int8"),
        ({"max_size_bytes": 1_990_000}, "pruned-int8"),
        ({"max_drop": 0.006, "max_size_bytes": 1_990_000}, "qat"),
        ({"max_drop": 0.003, "max_size_bytes": 5_000_000}, "pruned"),
        ({"prefer": "accuracy"}, "pruned"),
        ({"prefer": "accuracy", "max_latency_ms": 1.5}, "qat"),
        ({"prefer": "accuracy", "max_latency_ms": 1.2}, "pruned-int8"),
        ({"prefer": "accuracy", "max_latency_ms": 100.0}, "pruned"),
    ],
)
def test_a_budget_picks_the_variant(limits: dict[str, Any], chosen: str) -> None:
    assert choose(TABLE, **limits).variant == chosen
    assert choose(TABLE[::-1], **limits).variant == chosen


def random_table(numbers: random.Random) -> list[Row]:
    """A table with one or two students of the teacher, ties, and intervals of any width."""
    students = numbers.randint(1, 2)
    rows = []
    for index in range(numbers.randint(1, 9)):
        parent = "teacher" if index < students else rows[numbers.randrange(len(rows))].variant
        ratio, width = numbers.uniform(0.5, 5), numbers.choice((0.0, 0.02, 0.2))
        rows.append(
            row(
                f"v{index}",
                parent,
                numbers.choice((0.8, 0.85, numbers.uniform(0.7, 0.9))),
                2.8 / ratio,
                numbers.choice((2_000_000, numbers.randrange(1_000_000, 8_000_000))),
                numbers.choice(("accept", "accept", "accept", "reject")),
                latency_ratio_to_fp32=ratio,
                latency_ratio_lo=ratio * (1 - width),
                latency_ratio_hi=ratio * (1 + width),
            )
        )
    root = budget.reference(rows)
    width = numbers.choice((0.001, 0.01, 0.1))
    return [
        replace(
            one,
            reference_delta=one.score - root.score,
            reference_lo=one.score - root.score - (one is not root) * width,
            reference_hi=one.score - root.score + (one is not root) * width,
        )
        for one in rows
    ]


def with_limit(rows: list[Row], prefer: Preference, name: str, limit: Any) -> budget.Choice:
    limits: dict[str, Any] = {name: limit}
    return choose(rows, prefer=prefer, **limits)


@pytest.mark.parametrize("prefer", get_args(Preference))
def test_a_looser_limit_never_chooses_what_ranks_lower_and_one_that_all_meet_changes_nothing(
    prefer: Preference,
) -> None:
    numbers = random.Random(0)
    decided = 0
    for _ in range(60):
        rows = random_table(numbers)
        places = [one.variant for one in budget.rank(budget.accepted(rows), prefer)]
        free = choose(rows, prefer=prefer)
        assert free.variant == (places[0] if places else None)
        everything: dict[str, Any] = {"max_drop": 0.999, "max_latency_ms": 1e3, "max_size_bytes": 10**9}
        for name, loose in everything.items():
            assert with_limit(rows, prefer, name, loose).variant == free.variant
            drawn = numbers.choice(rows)
            value: Any = {
                "max_drop": max(0.0, -drawn.reference_lo),
                "max_latency_ms": drawn.latency_ms_p50,
                "max_size_bytes": drawn.size_bytes,
            }[name]
            answers = [with_limit(rows, prefer, name, type(value)(share * value)) for share in (0.5, 1, 2)]
            ranks = [places.index(a.variant) if a.variant else len(places) for a in answers]
            assert ranks == sorted(ranks, reverse=True)
            decided += ranks[0] != ranks[-1]
    assert decided > 20


def test_latencies_whose_intervals_overlap_count_as_equal() -> None:
    slower = replace(TABLE[1], latency_ms_p50=1.36, latency_ratio_lo=2.06 - 0.04, latency_ratio_hi=2.06)
    assert budget.rank([slower, TABLE[2]])[0].variant == "qat"
    better = replace(slower, score=0.8890)
    assert budget.rank([better, TABLE[2]])[0].variant == "qat"
    vague = replace(better, latency_ratio_hi=2.2)
    assert budget.rank([vague, TABLE[2]])[0].variant == "ptq"


@pytest.mark.parametrize(
    ("limits", "hints"),
    [
        ({"max_drop": 1}, ("100 percentage points", "0.01")),
        ({"max_drop": 2.5}, ("250 percentage points", "0.025")),
        ({"max_drop": 1000}, ("less than 1",)),
        ({"max_drop": -0.01}, ("greater than or equal to 0",)),
        ({"max_latency_ms": 0}, ("greater than 0",)),
        ({"max_latency_ms": -1}, ("greater than 0",)),
        ({"max_latency_ms": float("inf")}, ("finite",)),
        ({"max_size_bytes": 2}, ("2000000",)),
        ({"max_size_bytes": -5}, ("greater than or equal to 1",)),
    ],
)
def test_an_absurd_limit_is_an_error_with_the_likely_meaning(
    limits: dict[str, Any], hints: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as caught:
        BudgetSettings(**limits)
    (problem,) = caught.value.errors()
    assert problem["loc"] == tuple(limits)
    assert all(hint in problem["msg"] for hint in hints)


def test_a_busy_machine_is_one_short_sentence_at_the_end_of_the_reason() -> None:
    out_of_reach: dict[str, Any] = {"max_latency_ms": 0.1}
    for limits in ({}, out_of_reach):
        assert choose(TABLE, **limits, noisy=True).reason == f"{choose(TABLE, **limits).reason} {budget.BUSY}"


def undecided(name: str, parent: str = "fp32", **changes: Any) -> Row:
    """A variant that loses nothing, as 120 test images show it."""
    lo, _ = intervals.paired_interval(0, 0, 120)
    values: dict[str, Any] = {"score_delta": 0.0, "delta_lo": lo, "max_drop": 0.01, "test_images": 120}
    return replace(
        variant(name, parent, FP32, 1.3, 1_900_000),
        verdict="reject",
        images_needed=381,
        **{**values, **changes},
    )


def test_the_only_accepted_variant_is_called_so_with_what_more_test_images_could_bring() -> None:
    lost = replace(TABLE[3], verdict="reject", score_delta=-0.05, delta_lo=-0.1)
    reason = choose([TABLE[0], undecided("int8"), lost]).reason
    assert reason.startswith("fp32 is the only accepted variant (no limit is set): ")
    assert "2 are rejected" in reason
    for part in ("int8 (1.30 ms", "120 test images", "3.1 points", "1 allowed", "381"):
        assert part in reason
    assert "only accepted" not in choose(TABLE).reason
    assert "only accepted" not in choose(TABLE[:1]).reason


def test_a_faster_variant_that_only_lacks_test_images_is_named_beside_the_chosen_one() -> None:
    faster = replace(undecided("int8"), latency_ms_p50=0.2, latency_ratio_lo=13.9, latency_ratio_hi=14.1)
    assert "int8 (0.20 ms" in choose([*TABLE, faster]).reason
    slower = replace(faster, latency_ms_p50=2.9, latency_ratio_lo=0.95, latency_ratio_hi=0.97)
    assert "int8" not in choose([*TABLE[:4], slower]).reason


def test_where_nothing_fits_the_rejected_ones_that_would_are_named_with_the_reason() -> None:
    pruned = replace(TABLE[3], verdict="reject", score_delta=-0.05, delta_lo=-0.1, max_drop=0.02)
    table = [TABLE[0], pruned, replace(TABLE[4], verdict="reject"), undecided("int8")]
    choice = choose(table, max_size_bytes=2_000_000)
    assert (choice.variant, choice.closest) == (None, "fp32")
    assert choice.reason.index("int8 (1.30 ms") < choice.reason.index("pruned-int8 (1.05 ms")
    assert "made from pruned, which is rejected: 5.00 points below fp32 (2 allowed)" in choice.reason
    assert "381" in choice.reason
    assert "pruned (" not in choice.reason


def test_why_a_variant_is_rejected_names_its_oldest_rejected_ancestor() -> None:
    table = [TABLE[0], undecided("int8"), undecided("smaller", "int8")]
    assert budget.why_rejected(table, "fp32") == ""
    assert "120 test images" in budget.why_rejected(table, "int8")
    assert budget.why_rejected(table, "smaller").startswith("made from int8, ")
    assert [row.variant for row in budget.undecided(table)] == ["int8", "smaller"]
    lost = replace(TABLE[3], verdict="reject")
    assert budget.undecided([TABLE[0], lost, undecided("pruned-int8", "pruned")]) == []


def test_what_is_shown_to_lose_something_is_named_beside_what_is_not() -> None:
    assert "pruned (1.59 ms)" in choose(TABLE).reason
    assert "budget.prefer" not in choose(TABLE, max_drop=0.003).reason
    doubtful = choose(TABLE, max_drop=0.0065)
    assert doubtful.variant == "qat"
    assert "pruned-int8 (1.05 ms)" in doubtful.reason


def test_of_equally_fast_and_accurate_variants_the_smallest_is_chosen() -> None:
    small = replace(TABLE[2], variant="small", size_bytes=1_500_000)
    assert choose([*TABLE, small], max_drop=0.006).variant == "small"


@pytest.mark.parametrize("rejected", ["pruned-int8", "pruned"])
def test_what_the_gate_rejects_or_descends_from_it_is_never_chosen(rejected: str) -> None:
    table = [replace(one, verdict="reject") if one.variant == rejected else one for one in TABLE]
    assert choose(table).variant == "qat"
    assert choose(table, max_size_bytes=1_100_000).variant is None


def test_the_drop_is_against_the_most_accurate_student_of_the_teacher() -> None:
    narrow = variant("narrow", "teacher", 0.80, 0.5, 400_000)
    assert budget.reference([narrow, *TABLE]).variant == "fp32"
    assert choose([narrow, *TABLE]).variant == "narrow"
    assert choose([narrow, *TABLE], max_drop=0.01).variant == "pruned-int8"


def test_a_choice_gives_the_reason() -> None:
    assert choose(TABLE, max_drop=0.006, max_size_bytes=2_000_000).reason.startswith(
        "qat is the fastest accepted variant within 0.6 points of fp32 and 2,000,000 bytes: "
        "88.88 % (0.32 points below fp32, 95 % CI -0.52 to -0.12), 1.33 ms, 1.99 MB."
    )
    assert choose(TABLE, max_drop=0.01).reason.startswith(
        "pruned-int8 is the fastest accepted variant within 1 point of fp32: "
    )
    assert choose(TABLE, prefer="accuracy", max_latency_ms=5.0).reason.startswith(
        "pruned is the fastest accepted variant that is not shown to be worse than fp32 within 5 ms: "
    )
    assert choose(TABLE, prefer="accuracy", max_latency_ms=1.5).reason.startswith(
        "qat is the most accurate accepted variant within 1.5 ms: "
    )
    assert choose(TABLE[:1]).reason == (
        "fp32 is the fastest accepted variant (no limit is set): 89.20 %, 2.80 ms, 7.28 MB."
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
        "The closest is qat with a score 0.32 points below fp32, 95 % CI -0.52 to -0.12."
    )


def test_without_an_accepted_variant_the_loss_and_the_remedies_are_named() -> None:
    rejected = replace(TABLE[0], verdict="reject", score_delta=-0.231234, delta_lo=-0.24)
    choice = choose([rejected, *TABLE[1:]])
    assert (choice.variant, choice.closest) == (None, choose(TABLE).variant)
    assert choice.reason.startswith(
        "Nothing passed. fp32 is 23.12 points below its teacher (4 allowed); all others are made from it. "
        "Train longer (`distill.epochs`), start from pretrained weights (`student.init`), "
        "or raise `gate.distill`. If its 89.2 % are enough for you, take "
        f"{choice.closest}, which compression did not harm: "
    )
    harmed = [replace(row, verdict="reject") for row in TABLE[1:]]
    choice = choose([rejected, *harmed])
    assert (choice.variant, choice.closest) == (None, "fp32")
    assert choice.reason.endswith("or raise `gate.distill`.")
    assert "all others" not in choose([rejected]).reason
    assert "a class" not in choice.reason
    assert "a class" in choose([replace(rejected, score_delta=-0.01, delta_lo=-0.02)]).reason
    other = row("narrow", score=0.5, verdict="reject")
    assert "no other variant made from the teacher" in choose([rejected, other]).reason


def test_a_student_that_only_lacks_test_images_needs_more_of_them_and_no_longer_training() -> None:
    unproven = {"score_delta": -0.01, "delta_lo": -0.06, "test_images": 60, "images_needed": 150}
    reason = choose([replace(TABLE[0], verdict="reject", **unproven)]).reason
    for part in ("60 test images", "6.0 points", "about 150", "`data.test`"):
        assert part in reason
    assert "distill.epochs" not in reason


def test_accepted_variants_have_accepted_ancestors_only() -> None:
    table = [replace(one, verdict="reject") if one.variant == "pruned" else one for one in TABLE]
    assert [one.variant for one in budget.accepted(table)] == ["fp32", "ptq", "qat"]
    assert budget.accepted(TABLE) == TABLE
