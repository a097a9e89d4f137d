"""Which way to prune: candidates are ranked on val before any of them is trained.

After channels are removed, batch norm's statistics are those of another network. Taken anew over some
training images, they make the score before fine-tuning tell which candidate will be the best after it (Li et
al. 2020, "EagleEye", https://arxiv.org/abs/2007.02491).
"""

import itertools
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
from pipeline.distillation import learning
from pipeline.distillation.learning import Lesson
from pipeline.models.costs import count_macs
from pipeline.pruning import surgery, widths
from pipeline.pruning.masks import Criterion, Loss
from pipeline.pruning.widths import BudgetError, Cost
from pipeline.tasks import Task
from pipeline.training import loop

ShapeName = Literal["uniform", "sensitivity"]

SETTLING_IMAGES = 128
"""Training images for batch norm's statistics."""
TAYLOR_IMAGES = 128
"""Training images whose loss has its gradients taken."""
VAL_IMAGES = 384
"""On which candidates are ranked."""
DAMAGE_IMAGES = 128
"""Of val, where one layer at a time is pruned."""
DAMAGE_SHARE = 0.5
"""Of its channels that the layer keeps."""
BATCH = 32
SAME_SPEED = 0.03
"""Relative difference of a measured speedup from what was asked that is let be."""
CORRECTIONS = 3
"""Of the predicted milliseconds; layers one by one add up to some per cent beside the whole."""


@dataclass(frozen=True)
class Candidate:
    """A way to prune, and what it gives before fine-tuning."""

    criterion: Criterion
    shape: ShapeName
    channels: tuple[int, ...]
    score: float
    """The task's metric, a fraction of 1, on ``images`` of val with batch norm's statistics taken anew."""
    cross_entropy: float
    """With the labels of the same images, mean."""
    images: int
    macs: int
    milliseconds: float
    """Predicted for the float file, from measured layers."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a card."""
        return {**asdict(self), "channels": list(self.channels)}


@dataclass(frozen=True)
class Evidence:
    """What candidates are made from and judged by, at the size of the student."""

    settling: tuple[Float[Tensor, "_ 3 _ _"], ...]
    """Normalised training images."""
    losses: tuple[Loss, ...]
    """Of distillation, on batches of training images with the teacher's stored answers."""
    val: tuple[Float[Tensor, "_ 3 _ _"], ...]
    labels: Tensor
    """Of val's images."""
    task: Task

    def logits(self, module: nn.Module, images: int | None = None) -> Float[Tensor, "images classes"]:
        """Answers on val, or its first images."""
        shown = self.val[: images and images // BATCH]
        with torch.no_grad():
            return torch.cat([module(batch).float().cpu() for batch in shown])


def gather(
    fabric: Fabric, lesson: Lesson, goal: dict[str, float], *, taylor: bool, seed: int, workers: int
) -> Evidence:
    """Render all images once; ``goal`` as in ``distillation.objective``, its losses only for ``taylor``."""
    contract, task = lesson.train_set.contract, lesson.train_set.images.task
    objective = learning.objective(contract, goal, task, lesson.live)
    weights = learning.weights(goal)

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        return loop.total(objective(module, batch), weights)

    chosen = batches.shuffled(len(lesson.train_set), epoch=0, seed=seed)[: TAYLOR_IMAGES * taylor]
    asked = batches.load(
        fabric, lesson.train_set, batches.sequential(chosen, 0, contract.size, BATCH), workers
    )
    scored = sampling.choose(lesson.val_set.images, VAL_IMAGES, seed)
    shown = batches.load(
        fabric, lesson.val_set, batches.sequential(scored, None, contract.size, BATCH), workers
    )
    return Evidence(
        settling=tuple(loop.plain_images(fabric, lesson.train_set, SETTLING_IMAGES, BATCH, workers)),
        losses=tuple(partial(loss, batch=batch) for batch in asked),
        val=tuple(contract.normalise(batch.images) for batch in shown),
        labels=torch.from_numpy(lesson.val_set.images.labels[scored]),
        task=task,
    )


def rank(
    module: nn.Module,
    arguments: dict[str, Any],
    evidence: Evidence,
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
) -> list[Candidate]:
    """All candidates, the best first: by score, then by cross entropy.

    They cost alike. For a speedup all shapes get the same predicted milliseconds, so many that the uniform
    network, measured whole, is as fast as was asked. A share of the multiply-accumulates would leave some
    shapes slower than others; there no shape may take longer than the uniform one of that share, so that
    scores are compared at equal work and equal latency.

    Args:
        module: the parent; left as it is.
        arguments: keyword arguments of ``students.build`` that rebuild the parent.
        evidence: what to judge by.
        architecture: key of ``students.ARCHITECTURES``.
        size: side of the image in pixels.
        criteria: importances of a channel to try.
        shapes: shapes to try with each.
        macs: share of the parent's multiply-accumulates that may remain; None where ``speedup`` is given.
        speedup: the parent's latency over that of the pruned network.
        multiple: channel counts are multiples of this.
        milliseconds: predicts the latency of a network's float file.
        speed: measures how many times as fast the second network is as the first, both without batch norms.

    Raises:
        BudgetError: the target cannot be reached.
        PruningError: a network without its masked channels computes something else.
    """
    channels = widths.output_channels(module)
    within = partial(widths.channels_within, architecture, arguments, channels, multiple=multiple)

    def plain(counts: Sequence[int]) -> nn.Module:
        return students.build(architecture, {**arguments, "channels": counts, "norm": False})

    try:
        if speedup is not None:
            allowed = milliseconds(module) / speedup
            cost = widths.time_within(milliseconds, allowed)
            even = within(cost=cost)
            for _ in range(CORRECTIONS):
                reached = speed(plain(channels), plain(even))
                if abs(reached / speedup - 1) <= SAME_SPEED:
                    break
                allowed *= reached / speedup
                cost = widths.time_within(milliseconds, allowed)
                even = within(cost=cost)
        else:
            assert macs is not None
            work = widths.macs_within(macs, module, size)
            even = within(cost=work)
            reference = students.build(architecture, {**arguments, "channels": even})
            cost = widths.both(work, widths.time_within(milliseconds, milliseconds(reference)))
        shaped = {"uniform": even}
        if "sensitivity" in shapes:
            shaped["sensitivity"] = within(
                cost=cost, shape=_by_worth(module, arguments, evidence, cost, architecture)
            )
    except BudgetError as error:
        raise BudgetError(
            f"{f'macs = {macs}' if speedup is None else f'speedup = {speedup}'}: {error}"
        ) from None
    found = []
    for shape, criterion in itertools.product(shapes, criteria):
        narrow, _ = surgery.cut(
            module,
            arguments,
            shaped[shape],
            size=size,
            criterion=criterion,
            losses=evidence.losses,
            architecture=architecture,
        )
        loop.reestimate_norms(narrow, iter(evidence.settling))
        logits = evidence.logits(narrow)
        found.append(
            Candidate(
                criterion=criterion,
                shape=shape,
                channels=shaped[shape],
                score=evidence.task.score(evidence.task.predictions(logits), evidence.labels.numpy()),
                cross_entropy=float(evidence.task.cross_entropy(logits, evidence.labels)),
                images=len(logits),
                macs=count_macs(narrow, size),
                milliseconds=milliseconds(narrow),
            )
        )
    return sorted(found, key=lambda candidate: (-candidate.score, candidate.cross_entropy))


def table(ranked: Sequence[Candidate]) -> str:
    """The candidates, a line each."""
    lines = [f"{'criterion':9}  {'shape':11}  {'val, %':>6}  {'loss':>6}  {'M MACs':>6}  {'ms':>5}  channels"]
    lines += [
        f"{c.criterion:9}  {c.shape:11}  {c.score:6.1%}  {c.cross_entropy:6.3f}  {c.macs / 1e6:6.1f}  "
        f"{c.milliseconds:5.2f}  {' '.join(map(str, c.channels))}"
        for c in ranked
    ]
    return "\n".join(lines)


def _by_worth(
    module: nn.Module, arguments: dict[str, Any], evidence: Evidence, cost: Cost, architecture: str
) -> widths.Shape:
    """A shape from the KL divergence of each layer's damage, on some of the images."""
    answers = evidence.logits(module, DAMAGE_IMAGES)
    damage = surgery.sensitivity(
        module,
        arguments,
        ratios=(DAMAGE_SHARE,),
        images=evidence.settling,
        score=lambda masked: float(evidence.task.kl(evidence.logits(masked, DAMAGE_IMAGES), answers, 1.0)),
        architecture=architecture,
    )
    saved = widths.savings(
        architecture, arguments, widths.output_channels(module), cost=cost, share=DAMAGE_SHARE
    )
    return widths.by_worth([scores[DAMAGE_SHARE] for scores in damage.values()], saved)
