"""Channel counts within a budget, and the choice among plans, with a known table of costs."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import students
from pipeline.models.costs import count_macs
from pipeline.pruning import plans, reconstruction, surgery, widths
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
    labels = answers[64:].argmax(1)
    return TrialData(tuple(images[:2]), losses, tuple(images[2:]), labels, SINGLE_LABEL, nullcontext)


@pytest.mark.parametrize("shape", [widths.uniform, widths.worth_shape([1.0, 5.0] * 7, [1.0] * 14)])
@pytest.mark.parametrize("speedup", [1.5, 3.0])
def test_a_speedup_is_reached_and_the_budget_used_up(shape: widths.Shape, speedup: float) -> None:
    arguments = {"classes": 10}
    parent = students.build("mobilenet_v1", arguments)
    channels = widths.largest_within(
        "mobilenet_v1",
        arguments,
        widths.output_channels(parent),
        cost=lambda network: milliseconds(network) * speedup / milliseconds(parent),
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


def test_a_layer_of_channels_without_influence_loses_more_than_its_neighbours() -> None:
    parent = random_network()
    with torch.no_grad():
        for name in ("conv.weight", "norm.weight", "norm.bias"):
            parent.get_parameter(f"blocks.8.pointwise.{name}")[:32] = 0.0
    shape = plans._sensitivity_shape(parent, ARGUMENTS, trial_data(parent), SIZE, "mobilenet_v1")
    shares = shape(0.01)[8:12]  # blocks 7 to 10, which have the same width in the parent
    assert shares[1] == min(shares) < shares[0]


def test_neighbours_of_a_ladder_are_clearly_apart() -> None:
    channels = (24, 48, 96, 192, 768)
    rungs = widths.ladder(channels, multiple=16)
    assert rungs[0] == (16, 48, 96, 192, 768)
    assert rungs[-1] == (16,) * 5
    for wide, narrow in itertools.pairwise(rungs):
        assert all(a >= b for a, b in zip(wide, narrow, strict=True))
        assert wide != narrow
    assert len(rungs) < 100


def chosen(
    parent: nn.Module,
    speed: Callable[[nn.Module, nn.Module], float] = lambda a, b: milliseconds(a) / milliseconds(b),
    **changes: Any,
) -> plans.PlanChoice:
    arguments = {
        "architecture": "mobilenet_v1",
        "size": SIZE,
        "criteria": ("l1", "taylor"),
        "shapes": ("uniform", "sensitivity"),
        "macs": None,
        "speedup": None,
        "multiple": 8,
        "milliseconds": milliseconds,
        **changes,
    }
    return plans.choose(parent, ARGUMENTS, trial_data(parent), speed=speed, **arguments)


@pytest.mark.parametrize("target", [{"macs": 0.5}, {"speedup": 2.0}])
def test_plans_cost_the_same_and_the_best_on_val_is_first(target: dict[str, float]) -> None:
    parent = random_network()
    speed = {"macs": lambda *_: 1.0, "speedup": lambda a, b: milliseconds(a) / milliseconds(b)}
    choice = chosen(parent, speed[next(iter(target))], **target)
    ranked = choice.plans
    assert {(c.criterion, c.shape) for c in ranked} == set(
        itertools.product(("l1", "taylor"), ("uniform", "sensitivity"))
    )
    losses = [c.cross_entropy for c in ranked[1:]]
    assert losses == sorted(losses)
    assert choice.best.cross_entropy < losses[0] or choice.best.shape == "uniform"
    assert all(c.images == 128 for c in ranked)
    uniform, shaped = (next(c for c in ranked if c.shape == shape) for shape in ("uniform", "sensitivity"))
    if "macs" in target:
        assert all(c.macs <= 0.5 * count_macs(parent, SIZE) for c in ranked)
    else:
        assert all(speed >= 2.0 for speed in choice.speeds.values())
        assert 2.0 <= milliseconds(parent) / uniform.milliseconds < 2.5
    assert shaped.channels != uniform.channels
    assert plans.format_table(ranked).count("\n") == len(ranked)
    card = choice.to_dict()
    assert card["candidates"][0]["channels"] == list(choice.best.channels)
    assert "milliseconds" not in card["candidates"][0]
    assert plans.PLAN_CHOICE.validate_json(plans.PLAN_CHOICE.dump_json(choice)) == choice


def plan(shape: plans.ShapeName, score: float, cross_entropy: float) -> PruningPlan:
    return PruningPlan("l1", shape, (8,), score, cross_entropy, 384, 1, 1.0)


@pytest.mark.parametrize(
    ("uniform", "shaped", "expected"),
    [(0.80, 0.79, "uniform"), (0.80, 0.815, "uniform"), (0.80, 0.825, "sensitivity")],
)
def test_a_near_tie_on_val_goes_to_the_uniform_shape(uniform: float, shaped: float, expected: str) -> None:
    better = plan("uniform", uniform, 0.5)
    choice = plans._choose([plan("sensitivity", shaped, 0.4), plan("uniform", 0.9, 0.6), better], {})
    assert choice.best.shape == expected
    assert choice.best.cross_entropy == (0.5 if expected == "uniform" else 0.4)
    assert len(choice.plans) == 3


def test_a_shape_that_is_slower_at_equal_work_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    choice = chosen(random_network(), speed=lambda *_: 0.9, macs=0.5, criteria=("l1",))
    assert [plan.shape for plan in choice.plans] == ["uniform"]
    assert choice.speeds == {"sensitivity": 0.9}
    assert "sensitivity" in capsys.readouterr().err


def test_times_that_are_measured_again_seldom_give_other_widths() -> None:
    arguments = {"classes": 10}
    parent = students.build("mobilenet_v1", arguments)
    rungs = widths.ladder(widths.output_channels(parent), multiple=16)[:40]
    random = torch.Generator().manual_seed(0)
    whole = milliseconds(parent)
    times = {
        rung: milliseconds(students.build("mobilenet_v1", {**arguments, "channels": rung})) for rung in rungs
    }

    def measured(rung: tuple[int, ...]) -> float:
        return whole / times[rung] * (1 + 0.005 * float(torch.randn((), generator=random)))

    def chosen_again(target: float) -> tuple[int, ...]:
        again = functools.cache(measured)
        return plans._widest_as_fast(rungs, target, predicted=again, measured=again)[0]

    usual = 0
    for target in (1.2, 1.4, 1.6, 1.8, 2.0, 2.2):
        kinds = Counter(chosen_again(target) for _ in range(10))
        assert len(kinds) <= 2  # on both sides of the target
        usual += kinds.most_common(1)[0][1]
    assert usual >= 0.8 * 60


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

    def one_too_many(module: Any, masks: Any, size: int, seed: int) -> dict[str, torch.Tensor]:
        tensors = remove_masked(module, masks, size, seed)
        if criteria[-1] in broken:
            tensors["classifier.weight"] = tensors["classifier.weight"][:, 1:]
        return tensors

    monkeypatch.setattr(surgery.masks, "channel_masks", masks_of)
    monkeypatch.setattr(surgery.masks, "remove_masked", one_too_many)
    parent = random_network()
    choose = partial(chosen, parent, criteria=("l1", "l2"), shapes=("uniform",), macs=0.5)
    if len(broken) == 2:
        with pytest.raises(surgery.PruningError, match=r"classifier\.weight"):
            choose()
    else:
        assert [plan.criterion for plan in choose().plans] == ["l2"]
        assert "l1" in capsys.readouterr().err


def test_where_nni_takes_a_channel_for_constant_by_chance_other_random_numbers_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remove_masked, seeds = surgery.masks.remove_masked, []

    def unlucky(module: Any, masks: Any, size: int, seed: int) -> dict[str, torch.Tensor]:
        seeds.append(seed)
        tensors = remove_masked(module, masks, size, seed)
        if seed == 0:
            tensors["classifier.weight"] = tensors["classifier.weight"][:, 1:]
        return tensors

    monkeypatch.setattr(surgery.masks, "remove_masked", unlucky)
    choice = chosen(random_network(), criteria=("l1",), shapes=("uniform",), macs=0.5)
    assert len(choice.plans) == 1
    assert seeds == [0, 1]


def test_a_speedup_that_no_network_reaches_gives_the_narrowest_and_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    choice = chosen(random_network(), speedup=90.0, criteria=("l1",), shapes=("uniform",))
    assert set(choice.best.channels) == {8}
    assert choice.speeds["uniform"] < 90
    assert "`speedup` (=90.0)" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [0.85, 1.2])
def test_the_speedup_is_that_of_the_measured_network_if_its_layers_do_not_add_up(factor: float) -> None:
    parent = random_network()
    choice = chosen(
        parent,
        lambda a, b: factor * milliseconds(a) / milliseconds(b),
        speedup=2.0,
        criteria=("l1",),
        shapes=("uniform",),
    )
    reached = factor * milliseconds(parent) / choice.best.milliseconds
    assert 2 <= reached < 2.5
    assert choice.speeds["uniform"] == pytest.approx(reached, rel=1e-3)


def test_plans_are_ranked_as_they_are_fitted() -> None:
    parent = random_network()
    choice = chosen(parent, macs=0.5, shapes=("uniform",))
    data = trial_data(parent)
    for plan in choice.plans:
        fitted, _ = surgery.remove_channels(
            parent, ARGUMENTS, plan.channels, size=SIZE, criterion=plan.criterion, losses=data.losses
        )
        unfitted = float(data.task.cross_entropy(data.logits(fitted), data.labels))
        reconstruction.fit(parent, fitted, data.settling)
        assert float(data.task.cross_entropy(data.logits(fitted), data.labels)) == plan.cross_entropy
        assert plan.cross_entropy != unfitted
