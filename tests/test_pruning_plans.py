"""Widths towards a budget, and the choice among candidates, with a cost table that is known."""

import itertools

import pytest
import torch
from torch import nn

import students
from pipeline.models.costs import count_macs
from pipeline.pruning import candidates, widths
from pipeline.pruning.candidates import Evidence
from pipeline.pruning.masks import Loss
from pipeline.tasks import SINGLE_LABEL
from tests.test_pruning import CHANNELS, SIZE, lively

ARGUMENTS = {"classes": 5, "channels": CHANNELS}


def milliseconds(module: nn.Module) -> float:
    """A runtime that works through sixteen channels at a time, and is slow where maps are large."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return sum(
        -(-part.out_channels // 16) * -(-part.in_channels // part.groups // 16) / (number + 1)
        for number, part in enumerate(convolutions)
    )


def evidence(parent: nn.Module) -> Evidence:
    """Random images that the parent always gets right."""
    images = torch.rand(6, 32, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = torch.cat([parent(batch) for batch in images])

    def loss(module: nn.Module) -> torch.Tensor:
        return SINGLE_LABEL.kl(module(images[0]), answers[:32], 1.0)

    asked: tuple[Loss, ...] = (loss, loss)
    return Evidence(tuple(images[:2]), asked, tuple(images[2:]), answers[64:].argmax(1), SINGLE_LABEL)


@pytest.mark.parametrize("shape", [widths.uniform, widths.by_worth([1.0, 5.0] * 7, [1.0] * 14)])
@pytest.mark.parametrize("speedup", [1.5, 3.0])
def test_a_speedup_is_reached_and_the_budget_used(shape: widths.Shape, speedup: float) -> None:
    arguments = {"classes": 10}
    parent = students.build("mobilenet_v1", arguments)
    kept = widths.channels_within(
        "mobilenet_v1",
        arguments,
        widths.output_channels(parent),
        cost=widths.time_within(milliseconds, milliseconds(parent) / speedup),
        multiple=8,
        shape=shape,
    )
    reached = milliseconds(parent) / milliseconds(
        students.build("mobilenet_v1", {**arguments, "channels": kept})
    )
    assert speedup <= reached < 1.05 * speedup


def test_layers_that_hurt_little_for_what_they_save_lose_more() -> None:
    shape = widths.by_worth([4.0, 1.0, 1.0, 0.0], [1.0, 1.0, 4.0, 1.0])
    shares = shape(0.05)
    assert shares[0] == pytest.approx(2 * shares[1])
    assert shares[1] == pytest.approx(2 * shares[2])
    assert 0 < shares[3] < shares[1]
    assert list(shape(1.0)) == [1.0] * 4
    rising = [shape(step / 100) for step in range(101)]
    assert all(a <= b for low, high in itertools.pairwise(rising) for a, b in zip(low, high, strict=True))


def test_pruning_in_steps_ends_with_the_counts_of_one_step() -> None:
    parent, target = (24, 48, 96, 192, 8), (16, 48, 32, 112, 8)
    way = widths.on_the_way(parent, target, steps=4, multiple=8)
    assert len(way) == 4
    assert way[-1] == target == widths.on_the_way(parent, target, steps=1, multiple=8)[0]
    for before, after in itertools.pairwise([parent, *way]):
        assert all(a >= b for a, b in zip(before, after, strict=True))
    assert all(count % 8 == 0 for counts in way for count in counts)
    assert len({counts[2] for counts in way}) == 4


@pytest.mark.parametrize("target", [{"macs": 0.5, "speedup": None}, {"macs": None, "speedup": 2.0}])
def test_candidates_cost_alike_and_the_best_on_val_is_first(target: dict[str, float | None]) -> None:
    parent = lively(ARGUMENTS)
    with torch.no_grad():
        for name in ("conv.weight", "norm.weight", "norm.bias"):
            parent.get_parameter(f"blocks.8.pointwise.{name}")[:32] = 0.0  # nobody misses these
    ranked = candidates.rank(
        parent,
        ARGUMENTS,
        evidence(parent),
        architecture="mobilenet_v1",
        size=SIZE,
        criteria=("l1", "taylor"),
        shapes=("uniform", "sensitivity"),
        multiple=8,
        milliseconds=milliseconds,
        speed=lambda before, after: milliseconds(before) / milliseconds(after),
        **target,
    )
    assert {(c.criterion, c.shape) for c in ranked} == set(
        itertools.product(("l1", "taylor"), ("uniform", "sensitivity"))
    )
    assert [c.score for c in ranked] == sorted((c.score for c in ranked), reverse=True)
    assert all(c.images == 128 for c in ranked)
    even, shaped = (next(c for c in ranked if c.shape == shape) for shape in ("uniform", "sensitivity"))
    if target["macs"]:
        assert all(c.macs <= 0.5 * count_macs(parent, SIZE) for c in ranked)
        assert shaped.milliseconds <= even.milliseconds
    else:
        assert all(c.milliseconds <= milliseconds(parent) / 2 for c in ranked)
    alike = shaped.channels[8:12]  # blocks 7 to 10, which are as wide in the parent
    assert alike[1] == min(alike) < alike[0]
    assert shaped.channels != even.channels
    assert candidates.table(ranked).count("\n") == len(ranked)
    assert ranked[0].to_dict()["channels"] == list(ranked[0].channels)


def uniform(parent: torch.nn.Module, speedup: float, factor: float = 1.0) -> list[candidates.Candidate]:
    """The uniform candidate; networks are ``factor`` times as fast as their layers say."""
    return candidates.rank(
        parent,
        ARGUMENTS,
        evidence(parent),
        architecture="mobilenet_v1",
        size=SIZE,
        criteria=("l1",),
        shapes=("uniform",),
        macs=None,
        speedup=speedup,
        multiple=8,
        milliseconds=milliseconds,
        speed=lambda before, after: factor * milliseconds(before) / milliseconds(after),
    )


def test_a_speedup_out_of_reach_is_said_with_its_key() -> None:
    with pytest.raises(
        widths.BudgetError, match=r"speedup = 90\.0: the narrowest network with multiples of 8"
    ):
        uniform(lively(ARGUMENTS), 90.0)


def test_a_speedup_is_what_is_measured_where_layers_do_not_add_up_to_it() -> None:
    parent = lively(ARGUMENTS)
    [found] = uniform(parent, 2.0, factor=0.85)
    assert 0.85 * milliseconds(parent) / found.milliseconds == pytest.approx(2, rel=0.05)
