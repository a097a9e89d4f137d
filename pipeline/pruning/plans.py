"""The choice among pruning plans, ranked on val before any of them is trained.

A network that has just lost channels answers badly, whichever they were. Fitted to its parent on some
training images (``reconstruction``), it shows what the channels that are left can do, and its loss tells
which plan will be the best after fine-tuning, too. (Li et al. 2020, "EagleEye",
https://arxiv.org/abs/2007.02491, estimate batch norm's statistics again for the same purpose.)

Measured times differ from one measurement to the next. Where they decide, they do so between few networks
that are clearly apart, and the simpler one, whose layers all keep the same share, is taken unless the other
one is better by more than a margin.
"""

import bisect
import itertools
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from pydantic import TypeAdapter
from torch import Tensor, nn

import students
from pipeline.data import batches, sampling
from pipeline.data.batches import Batch
from pipeline.distillation.objective import loss_terms
from pipeline.distillation.settings import Objective
from pipeline.distillation.training_data import TrainingData
from pipeline.models.costs import count_macs
from pipeline.pruning import channel_sensitivity, reconstruction, surgery, widths
from pipeline.pruning.masks import Criterion, Loss
from pipeline.pruning.surgery import PruningError
from pipeline.pruning.widths import BudgetError
from pipeline.tasks import Task
from pipeline.training import norms, precision, step

ShapeName = Literal["uniform", "sensitivity"]
"""How much each layer loses: the same share, or more where it does little damage for what it saves."""

SETTLING_IMAGES = 128
"""Number of training images to which plans are fitted, and on which batch norm's statistics are estimated."""
TAYLOR_IMAGES = 128
"""Number of training images of whose losses the criterion ``taylor`` takes gradients."""
VAL_IMAGES = 384
"""Number of validation images on which plans are ranked."""
DAMAGE_IMAGES = 128
"""Number of validation images on which the damage of pruning one layer at a time is measured."""
DAMAGE_SHARE = 0.5
"""Share of its channels that a layer keeps when its damage is measured."""
BATCH = 32
"""Number of images per forward pass."""
SLOWER = 0.08
"""Share of the uniform network's speed that a network of another shape with equal multiply-accumulates may
lack. One that lacks more is left out where ``auto`` chooses."""
GAIN = 0.02
"""Least gain of the score, a fraction of 1, for which another shape than the uniform one is taken: on
``VAL_IMAGES`` images, smaller ones are noise."""
RULES = 2
"""Version of the rules, raised when a change of them makes recorded choices out of date."""


@dataclass(frozen=True)
class PruningPlan:
    """A criterion and channel counts, with the score of the fitted network before fine-tuning."""

    criterion: Criterion
    shape: ShapeName
    channels: tuple[int, ...]
    """Number of channels per layer of ``widths.output_channels``."""
    score: float
    """The task's metric as a fraction of 1 on ``images`` validation images."""
    cross_entropy: float
    """Mean cross entropy with the labels of the same images."""
    images: int
    """Number of validation images."""
    macs: int
    """Multiply-accumulates per image."""
    milliseconds: float
    """Latency of the float file, predicted from measured layers."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a card, without the time: a card is the same whenever the plan is."""
        values = {**asdict(self), "channels": list(self.channels)}
        del values["milliseconds"]
        return values


@dataclass(frozen=True)
class PlanChoice:
    """The plans that were tried, and the one to carry out."""

    plans: tuple[PruningPlan, ...]
    """The plan to carry out, and the others by their cross entropy."""
    speeds: dict[str, float]
    """Shape to the measured speed of its network, as a multiple of the parent's (with ``speedup``) or of the
    uniform network's (with ``macs``); only where a speed decides."""
    reason: str

    @property
    def best(self) -> PruningPlan:
        return self.plans[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a card, without times."""
        return {
            "criterion": self.best.criterion,
            "shape": self.best.shape,
            "reason": self.reason,
            "candidates": [plan.to_dict() for plan in self.plans],
        }


PLAN_CHOICE: TypeAdapter[PlanChoice] = TypeAdapter(PlanChoice)


@dataclass(frozen=True)
class TrialData:
    """Images by which plans are made and judged, at the size of the student."""

    settling: tuple[Float[Tensor, "_ 3 _ _"], ...]
    """Batches of normalised training images for fits and for batch norm's statistics."""
    losses: tuple[Loss, ...]
    """Distillation losses, each on a batch of training images with the teacher's stored answers."""
    val: tuple[Float[Tensor, "_ 3 _ _"], ...]
    """Batches of normalised validation images."""
    labels: Tensor
    """Labels of the validation images."""
    task: Task
    arithmetic: Callable[[], AbstractContextManager[None]]
    """Function to a context in which networks that are ranked compute."""

    def settle(self, module: nn.Module) -> None:
        """Set the statistics of batch norm to those of the training images."""
        with self.arithmetic():
            norms.reestimate(module, self.settling)

    def logits(self, module: nn.Module, images: int | None = None) -> Float[Tensor, "images classes"]:
        """Compute the logits for the validation images, or for the first ``images`` of them."""
        selection = self.val[: images and images // BATCH]
        with torch.no_grad(), self.arithmetic():
            return torch.cat([module(batch).float().cpu() for batch in selection])


def gather_trial_data(
    fabric: Fabric, data: TrainingData, objective: Objective, *, taylor: bool, seed: int, workers: int
) -> TrialData:
    """Render the images of all trials once.

    Args:
        fabric: puts the images on its device.
        data: images with the teacher's answers.
        objective: loss terms of the fine-tuning and their weights.
        taylor: whether losses are needed.
        seed: seed of the choice of images.
        workers: number of rendering processes.
    """
    contract, task = data.train_set.contract, data.train_set.images.task
    terms, weights = loss_terms(objective, contract, task, data.live), objective.weights()

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        return step.total(terms(module, batch), weights)

    taylor_indices = batches.shuffled(len(data.train_set), epoch=0, seed=seed)[: TAYLOR_IMAGES * taylor]
    taylor_batches = batches.load(
        fabric.device, data.train_set, batches.sequential(taylor_indices, 0, contract.size, BATCH), workers
    )
    val_indices = sampling.choose(data.val_set.images, VAL_IMAGES, seed)
    val_batches = batches.load(
        fabric.device, data.val_set, batches.sequential(val_indices, None, contract.size, BATCH), workers
    )
    return TrialData(
        settling=tuple(norms.plain_images(fabric, data.train_set, SETTLING_IMAGES, BATCH, workers)),
        losses=tuple(partial(loss, batch=batch) for batch in taylor_batches),
        val=tuple(contract.normalise(batch.images) for batch in val_batches),
        labels=torch.from_numpy(data.val_set.images.labels[val_indices]),
        task=task,
        arithmetic=partial(precision.as_trained, fabric, contract.size),
    )


def choose(
    module: nn.Module,
    arguments: dict[str, Any],
    data: TrialData,
    *,
    architecture: str,
    size: int,
    criteria: Sequence[Criterion],
    shapes: Sequence[ShapeName],
    macs: float | None,
    speedup: float | None,
    multiple: int,
    milliseconds: Callable[[nn.Module], float],
    speed: Callable[[nn.Module, nn.Module], float],
) -> PlanChoice:
    """Try every shape with every criterion, and choose by cross entropy, which tells close plans apart sooner
    than the score.

    With ``macs``, every shape gets the same multiply-accumulates; of several shapes, one that is slower than
    the uniform network by more than ``SLOWER`` is left out. With ``speedup``, every shape gets the widest
    network of its ladder that is as fast as requested, measured whole. The uniform shape is taken unless
    another one scores higher by ``GAIN``.

    Args:
        module: the parent; left as it is.
        arguments: keyword arguments of ``students.build`` that rebuild the parent.
        data: images by which plans are made and judged.
        architecture: key of ``students.ARCHITECTURES``.
        size: side of the image in pixels.
        criteria: importances of a channel to try.
        shapes: shapes to try with each criterion.
        macs: share of the parent's multiply-accumulates that may remain; None if ``speedup`` is given.
        speedup: the parent's latency divided by that of the pruned network; None if ``macs`` is given.
        multiple: number of channels that counts are multiples of.
        milliseconds: function that predicts the latency of a network's float file.
        speed: function that measures how many times as fast the second network is as the first, both without
            batch norms.

    Raises:
        BudgetError: the target cannot be reached.
        PruningError: no plan can be carried out. If only some cannot, they are left out, with a line each.
    """
    channels = widths.output_channels(module)

    def without_norms(counts: Sequence[int]) -> nn.Module:
        return students.build(architecture, {**arguments, "channels": counts, "norm": False})

    forms: dict[ShapeName, widths.Shape] = {"uniform": widths.uniform}
    if "sensitivity" in shapes:
        forms["sensitivity"] = _sensitivity_shape(module, arguments, data, size, architecture)
    counts: dict[ShapeName, tuple[int, ...]] = {}
    speeds: dict[str, float] = {}
    try:
        for shape in shapes:
            if speedup is None:
                assert macs is not None
                counts[shape] = widths.largest_within(
                    architecture,
                    arguments,
                    channels,
                    cost=widths.macs_cost(macs, module, size),
                    multiple=multiple,
                    shape=forms[shape],
                )
            else:
                counts[shape], speeds[shape] = _widest_as_fast(
                    widths.ladder(channels, multiple=multiple, shape=forms[shape]),
                    speedup,
                    predicted=lambda each: milliseconds(module) / milliseconds(without_norms(each)),
                    measured=lambda each: speed(without_norms(channels), without_norms(each)),
                )
    except BudgetError as error:
        key = f"`macs` (={macs})" if speedup is None else f"`speedup` (={speedup})"
        raise BudgetError(f"{key}: {error}") from None
    if speedup is None and len(counts) > 1:
        relative = speed(without_norms(counts["uniform"]), without_norms(counts["sensitivity"]))
        speeds["sensitivity"] = relative
        if relative < 1 - SLOWER:
            print(
                "plans left out: shape sensitivity: with as many multiply-accumulates, it has "
                f"{relative:.2f} times the speed of the uniform network, and not {1 - SLOWER:.2f}",
                file=sys.stderr,
            )
            del counts["sensitivity"]
    plans: list[PruningPlan] = []
    failures: list[PruningError] = []
    for shape, criterion in itertools.product(counts, criteria):
        try:
            pruned, _ = surgery.remove_channels(
                module,
                arguments,
                counts[shape],
                size=size,
                criterion=criterion,
                losses=data.losses,
                architecture=architecture,
            )
        except PruningError as error:
            failures.append(error)
            print(f"plan left out: criterion {criterion}, shape {shape}: {error}", file=sys.stderr)
            continue
        reconstruction.fit(module, pruned, data.settling)
        logits = data.logits(pruned)
        plans.append(
            PruningPlan(
                criterion=criterion,
                shape=shape,
                channels=counts[shape],
                score=data.task.score(data.task.predictions(logits.numpy()), data.labels.numpy()),
                cross_entropy=float(data.task.cross_entropy(logits, data.labels)),
                images=len(logits),
                macs=count_macs(pruned, size),
                milliseconds=round(milliseconds(pruned), 4),
            )
        )
    if not plans:
        raise failures[0]
    return _choose(plans, speeds)


def _choose(plans: Sequence[PruningPlan], speeds: dict[str, float]) -> PlanChoice:
    """The plan with the least cross entropy, a uniform one if it does not score higher by ``GAIN``."""
    ranked = sorted(plans, key=lambda plan: (plan.cross_entropy, -plan.score))
    best, reason = ranked[0], "the least cross entropy on val"
    uniform = next((plan for plan in ranked if plan.shape == "uniform"), None)
    if uniform is not None and best.shape != "uniform":
        if best.score < uniform.score + GAIN:
            best = uniform
            reason += f" of the uniform shape; another one does not score {GAIN:.0%} higher"
        else:
            reason += f", and a score at least {GAIN:.0%} above the uniform shape's"
    return PlanChoice((best, *(plan for plan in ranked if plan is not best)), speeds, reason)


def _widest_as_fast(
    rungs: Sequence[tuple[int, ...]],
    speedup: float,
    *,
    predicted: Callable[[tuple[int, ...]], float],
    measured: Callable[[tuple[int, ...]], float],
) -> tuple[tuple[int, ...], float]:
    """Find the widest network that reaches a speed, and its speed.

    Measured layers add up to within some per cent of the whole: they tell where to begin to measure whole
    networks.

    Args:
        rungs: channel counts of the networks, the widest first.
        speedup: the speed to reach.
        predicted: function from channel counts to the speed that the layers of the network add up to.
        measured: function from channel counts to the speed of the whole network.

    Returns:
        Its channel counts and speed; those of the narrowest network if none is as fast, which a warning says:
        how fast a network is depends on the machine, and shows only after the parent was trained.
    """

    def first(target: float) -> int:
        index = bisect.bisect_left(rungs, target, key=predicted)
        return min(index, len(rungs) - 1)

    index = first(speedup)
    index = first(speedup * predicted(rungs[index]) / measured(rungs[index]))
    while index > 0 and measured(rungs[index - 1]) >= speedup:
        index -= 1
    while (fast := measured(rungs[index])) < speedup:
        if index == len(rungs) - 1:
            print(
                f"warning: `speedup` (={speedup}): the narrowest network, with "
                f"{' '.join(map(str, rungs[-1]))} channels, is only {fast:.2f} times as fast, and is taken; "
                "lower `speedup` or `multiple`",
                file=sys.stderr,
            )
            break
        index += 1
    return rungs[index], fast


def format_table(plans: Sequence[PruningPlan]) -> str:
    """Format the plans as text, one line per plan."""
    lines = [f"{'criterion':9}  {'shape':11}  {'val, %':>6}  {'loss':>6}  {'M MACs':>6}  {'ms':>5}  channels"]
    lines += [
        f"{plan.criterion:9}  {plan.shape:11}  {plan.score:6.1%}  {plan.cross_entropy:6.3f}  "
        f"{plan.macs / 1e6:6.1f}  {plan.milliseconds:5.2f}  {' '.join(map(str, plan.channels))}"
        for plan in plans
    ]
    return "\n".join(lines)


def _sensitivity_shape(
    module: nn.Module, arguments: dict[str, Any], data: TrialData, size: int, architecture: str
) -> widths.Shape:
    """Build the shape from each layer's damage: the KL divergence of the logits from the parent's.

    What a layer saves is counted in multiply-accumulates, so that the shape is the same on every machine.
    """
    parent_logits = data.logits(module, DAMAGE_IMAGES)
    damages = channel_sensitivity.measure(
        module,
        arguments,
        ratios=(DAMAGE_SHARE,),
        settle=data.settle,
        score=lambda masked: float(data.task.kl(data.logits(masked, DAMAGE_IMAGES), parent_logits, 1.0)),
        architecture=architecture,
    )
    savings = widths.layer_savings(
        architecture,
        arguments,
        widths.output_channels(module),
        cost=lambda network: float(count_macs(network, size)),
        share=DAMAGE_SHARE,
    )
    return widths.worth_shape([scores[DAMAGE_SHARE] for scores in damages.values()], savings)
