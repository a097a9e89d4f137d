"""Channel counts within a budget, and the choice among plans, with a known table of costs."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import students
from pipeline.models.costs import count_macs
from pipeline.pruning import plans, surgery, widths
from pipeline.pruning.masks import Loss
from pipeline.pruning.plans import PruningPlan, TrialData
from pipeline.tasks import SINGLE_LABEL
from tests.tiny_students import ARGUMENTS, random_network

SIZE = 32
"""Side of the images in pixels."""


def milliseconds(module: nn.Module) -> float:
    """Latency in a runtime that computes sixteen channels at a time and is slow on large maps."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return sum(
        -(-part.out_channels // 16) * -(-part.in_channels // part.groups // 16) / (number + 1)
        for number, part in enumerate(convolutions)
    )


def trial_data(parent: nn.Module) -> TrialData:
    """Random images whose labels are the parent's own answers."""
    images = torch.rand(6, 32, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = torch.cat([parent(batch) for batch in images])

    def loss(module: nn.Module) -> torch.Tensor:
        return SINGLE_LABEL.kl(module(images[0]), answers[:32], 1.0)

    losses: tuple[Loss, ...] = (loss, loss)
    return TrialData(tuple(images[:2]), losses, tuple(images[2:]), answers[64:].argmax(1), SINGLE_LABEL)


@pytest.mark.parametrize("shape", [widths.uniform, widths.worth_shape([1.0, 5.0] * 7, [1.0] * 14)])
@pytest.mark.parametrize("speedup", [1.5, 3.0])
def test_a_speedup_is_reached_and_the_budget_used_up(shape: widths.Shape, speedup: float) -> None:
    arguments = {"classes": 10}
    parent = students.build("mobilenet_v1", arguments)
    channels = widths.largest_within(
        "mobilenet_v1",
        arguments,
        widths.output_channels(parent),
        cost=widths.latency_cost(milliseconds, milliseconds(parent) / speedup),
        multiple=8,
        shape=shape,
    )
    reached = milliseconds(parent) / milliseconds(
        students.build("mobilenet_v1", {**arguments, "channels": channels})
    )
    assert speedup <= reached < 1.05 * speedup


def test_layers_that_do_little_damage_for_what_they_save_lose_more() -> None:
    shape = widths.worth_shape([4.0, 1.0, 1.0, 0.0], [1.0, 1.0, 4.0, 1.0])
    shares = shape(0.05)
    assert shares[0] == pytest.approx(2 * shares[1])
    assert shares[1] == pytest.approx(2 * shares[2])
    assert 0 < shares[3] < shares[1]
    assert list(shape(1.0)) == [1.0] * 4
    rising = [shape(step / 100) for step in range(101)]
    assert all(a <= b for low, high in itertools.pairwise(rising) for a, b in zip(low, high, strict=True))


def test_pruning_in_steps_ends_with_the_counts_of_one_step() -> None:
    parent, target = (24, 48, 96, 192, 8), (16, 48, 32, 112, 8)
    steps = widths.interpolate(parent, target, steps=4, multiple=8)
    assert len(steps) == 4
    assert steps[-1] == target == widths.interpolate(parent, target, steps=1, multiple=8)[0]
    for before, after in itertools.pairwise([parent, *steps]):
        assert all(a >= b for a, b in zip(before, after, strict=True))
    assert all(count % 8 == 0 for counts in steps for count in counts)
    assert len({counts[2] for counts in steps}) == 4


@pytest.mark.parametrize("target", [{"macs": 0.5, "speedup": None}, {"macs": None, "speedup": 2.0}])
def test_plans_cost_the_same_and_the_best_on_val_is_first(target: dict[str, float | None]) -> None:
    parent = random_network()
    with torch.no_grad():
        for name in ("conv.weight", "norm.weight", "norm.bias"):
            parent.get_parameter(f"blocks.8.pointwise.{name}")[:32] = 0.0  # no influence
    ranked = plans.rank(
        parent,
        ARGUMENTS,
        trial_data(parent),
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
    uniform, shaped = (next(c for c in ranked if c.shape == shape) for shape in ("uniform", "sensitivity"))
    if target["macs"]:
        assert all(c.macs <= 0.5 * count_macs(parent, SIZE) for c in ranked)
        assert shaped.milliseconds <= uniform.milliseconds
    else:
        assert all(c.milliseconds <= milliseconds(parent) / 2 for c in ranked)
    equal = shaped.channels[8:12]  # blocks 7 to 10, which have the same width in the parent
    assert equal[1] == min(equal) < equal[0]
    assert shaped.channels != uniform.channels
    assert plans.format_table(ranked).count("\n") == len(ranked)
    assert ranked[0].to_dict()["channels"] == list(ranked[0].channels)


@pytest.mark.parametrize("broken", [("l1",), ("l1", "l2")])
def test_a_plan_that_cannot_be_carried_out_is_left_out(
    broken: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when NNI removes a channel more than was masked."""
    channel_masks, remove_masked = surgery.masks.channel_masks, surgery.masks.remove_masked
    criteria: list[str] = []

    def masks_of(module: Any, channels: Any, criterion: Any, *arguments: Any) -> Any:
        criteria.append(criterion)
        return channel_masks(module, channels, criterion, *arguments)

    def one_too_many(module: Any, masks: Any, size: int) -> dict[str, torch.Tensor]:
        tensors = remove_masked(module, masks, size)
        if criteria[-1] in broken:
            tensors["classifier.weight"] = tensors["classifier.weight"][:, 1:]
        return tensors

    monkeypatch.setattr(surgery.masks, "channel_masks", masks_of)
    monkeypatch.setattr(surgery.masks, "remove_masked", one_too_many)
    parent = random_network()
    rank = partial(
        plans.rank,
        parent,
        ARGUMENTS,
        trial_data(parent),
        architecture="mobilenet_v1",
        size=SIZE,
        criteria=("l1", "l2"),
        shapes=("uniform",),
        macs=0.5,
        speedup=None,
        multiple=8,
        milliseconds=milliseconds,
        speed=lambda before, after: milliseconds(before) / milliseconds(after),
    )
    if len(broken) == 2:
        with pytest.raises(surgery.PruningError, match=r"classifier\.weight"):
            rank()
    else:
        assert [plan.criterion for plan in rank()] == ["l2"]
        assert "l1" in capsys.readouterr().err


def rank_uniform(parent: torch.nn.Module, speedup: float, factor: float = 1.0) -> list[PruningPlan]:
    """The uniform plan; networks are ``factor`` times as fast as their layers say."""
    return plans.rank(
        parent,
        ARGUMENTS,
        trial_data(parent),
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


def test_a_speedup_that_no_network_reaches_is_rejected_with_its_key() -> None:
    with pytest.raises(widths.BudgetError, match=r"`speedup` \(=90\.0\): .* multiples of 8"):
        rank_uniform(random_network(), 90.0)


def test_the_speedup_is_that_of_the_measured_network_if_its_layers_do_not_add_up() -> None:
    parent = random_network()
    [plan] = rank_uniform(parent, 2.0, factor=0.85)
    assert 0.85 * milliseconds(parent) / plan.milliseconds == pytest.approx(2, rel=0.05)
