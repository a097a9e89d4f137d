"""The choice among pruning plans, ranked on val before any of them is trained.

A network without some of its channels still has batch norm statistics from before. With statistics estimated
again on some training images, its score before fine-tuning tells which plan will be the best after it (Li et
al. 2020, "EagleEye", https://arxiv.org/abs/2007.02491).
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

import students
from pipeline.data import batches, sampling
from pipeline.data.batches import Batch
from pipeline.distillation.objective import loss_terms
from pipeline.distillation.settings import Objective
from pipeline.distillation.training_data import TrainingData
from pipeline.models.costs import count_macs
from pipeline.pruning import channel_sensitivity, surgery, widths
from pipeline.pruning.masks import Criterion, Loss
from pipeline.pruning.surgery import PruningError
from pipeline.pruning.widths import BudgetError, Cost
from pipeline.tasks import Task
from pipeline.training import loop, norms

ShapeName = Literal["uniform", "sensitivity"]
"""How much each layer loses: the same share, or more where it does little damage for what it saves."""

SETTLING_IMAGES = 128
"""Number of training images on which batch norm's statistics are estimated."""
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
SAME_SPEED = 0.03
"""Relative difference between the measured and the requested speedup that is accepted."""
CORRECTIONS = 3
"""Most corrections of the predicted milliseconds by a measurement of the whole network; the sum of the layers
differs from the whole by some per cent."""


@dataclass(frozen=True)
class PruningPlan:
    """A criterion and channel counts, with the score of the pruned network before fine-tuning."""

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
        """Return plain values for a card."""
        return {**asdict(self), "channels": list(self.channels)}


@dataclass(frozen=True)
class TrialData:
    """Images by which plans are made and judged, at the size of the student."""

    settling: tuple[Float[Tensor, "_ 3 _ _"], ...]
    """Batches of normalised training images for batch norm's statistics."""
    losses: tuple[Loss, ...]
    """Distillation losses, each on a batch of training images with the teacher's stored answers."""
    val: tuple[Float[Tensor, "_ 3 _ _"], ...]
    """Batches of normalised validation images."""
    labels: Tensor
    """Labels of the validation images."""
    task: Task

    def logits(self, module: nn.Module, images: int | None = None) -> Float[Tensor, "images classes"]:
        """Compute the logits for the validation images, or for the first ``images`` of them."""
        selection = self.val[: images and images // BATCH]
        with torch.no_grad():
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
        return loop.total(terms(module, batch), weights)

    taylor_indices = batches.shuffled(len(data.train_set), epoch=0, seed=seed)[: TAYLOR_IMAGES * taylor]
    taylor_batches = batches.load(
        fabric, data.train_set, batches.sequential(taylor_indices, 0, contract.size, BATCH), workers
    )
    val_indices = sampling.choose(data.val_set.images, VAL_IMAGES, seed)
    val_batches = batches.load(
        fabric, data.val_set, batches.sequential(val_indices, None, contract.size, BATCH), workers
    )
    return TrialData(
        settling=tuple(norms.plain_images(fabric, data.train_set, SETTLING_IMAGES, BATCH, workers)),
        losses=tuple(partial(loss, batch=batch) for batch in taylor_batches),
        val=tuple(contract.normalise(batch.images) for batch in val_batches),
        labels=torch.from_numpy(data.val_set.images.labels[val_indices]),
        task=task,
    )


def rank(
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
) -> list[PruningPlan]:
    """Try every shape with every criterion; return the plans by score and then cross entropy, the best first.

    All plans cost the same, so that scores are compared at equal cost. With ``speedup``, every shape gets the
    same predicted milliseconds: as many as make the uniform network, measured whole, as fast as requested.
    With ``macs``, every shape gets the same multiply-accumulates, and since some shapes are slower than
    others at equal work, none may take longer than the uniform one either.

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
    largest_within = partial(widths.largest_within, architecture, arguments, channels, multiple=multiple)

    def without_norms(counts: Sequence[int]) -> nn.Module:
        return students.build(architecture, {**arguments, "channels": counts, "norm": False})

    try:
        if speedup is not None:
            allowed = milliseconds(module) / speedup
            cost = widths.latency_cost(milliseconds, allowed)
            uniform = largest_within(cost=cost)
            for _ in range(CORRECTIONS):
                measured = speed(without_norms(channels), without_norms(uniform))
                if abs(measured / speedup - 1) <= SAME_SPEED:
                    break
                allowed *= measured / speedup
                cost = widths.latency_cost(milliseconds, allowed)
                uniform = largest_within(cost=cost)
        else:
            assert macs is not None
            work = widths.macs_cost(macs, module, size)
            uniform = largest_within(cost=work)
            reference = students.build(architecture, {**arguments, "channels": uniform})
            cost = widths.greater_cost(work, widths.latency_cost(milliseconds, milliseconds(reference)))
        counts = {"uniform": uniform}
        if "sensitivity" in shapes:
            shape = _sensitivity_shape(module, arguments, data, cost, architecture)
            counts["sensitivity"] = largest_within(cost=cost, shape=shape)
    except BudgetError as error:
        key = f"`macs` (={macs})" if speedup is None else f"`speedup` (={speedup})"
        raise BudgetError(f"{key}: {error}") from None
    plans: list[PruningPlan] = []
    failures: list[PruningError] = []
    for shape_name, criterion in itertools.product(shapes, criteria):
        try:
            pruned, _ = surgery.remove_channels(
                module,
                arguments,
                counts[shape_name],
                size=size,
                criterion=criterion,
                losses=data.losses,
                architecture=architecture,
            )
        except PruningError as error:
            failures.append(error)
            print(f"plan left out: criterion {criterion}, shape {shape_name}: {error}", file=sys.stderr)
            continue
        norms.reestimate(pruned, data.settling)
        logits = data.logits(pruned)
        plans.append(
            PruningPlan(
                criterion=criterion,
                shape=shape_name,
                channels=counts[shape_name],
                score=data.task.score(data.task.predictions(logits), data.labels.numpy()),
                cross_entropy=float(data.task.cross_entropy(logits, data.labels)),
                images=len(logits),
                macs=count_macs(pruned, size),
                milliseconds=milliseconds(pruned),
            )
        )
    if not plans:
        raise failures[0]
    return sorted(plans, key=lambda plan: (-plan.score, plan.cross_entropy))


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
    module: nn.Module, arguments: dict[str, Any], data: TrialData, cost: Cost, architecture: str
) -> widths.Shape:
    """Build the shape from each layer's damage: the KL divergence of the logits from the parent's."""
    parent_logits = data.logits(module, DAMAGE_IMAGES)
    damages = channel_sensitivity.measure(
        module,
        arguments,
        ratios=(DAMAGE_SHARE,),
        images=data.settling,
        score=lambda masked: float(data.task.kl(data.logits(masked, DAMAGE_IMAGES), parent_logits, 1.0)),
        architecture=architecture,
    )
    savings = widths.layer_savings(
        architecture, arguments, widths.output_channels(module), cost=cost, share=DAMAGE_SHARE
    )
    return widths.worth_shape([scores[DAMAGE_SHARE] for scores in damages.values()], savings)
