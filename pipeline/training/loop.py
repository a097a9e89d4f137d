"""The training loop."""

import copy
import itertools
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from pipeline import provenance
from pipeline.data import batches
from pipeline.data.batches import Batch, CentredViews, Request, ViewSet
from pipeline.data.store import ImageSet
from pipeline.errors import DistilleryError
from pipeline.tasks import Task
from pipeline.training import checkpoints, optimisation, precision
from pipeline.training.checkpoints import History, Progress
from pipeline.training.depthwise import FastDepthwise

SETTLING_IMAGES = 2048
SETTLING_BATCH = 64

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""From a network and a batch to named, unweighted loss terms, each a mean over the batch."""


class TrainingError(DistilleryError):
    """Training cannot go on."""


@dataclass(frozen=True)
class Phase:
    """A share of all steps at one image size in pixels."""

    share: float
    size: int
    rate: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How to train; `pipeline.parameters.Training` documents each field."""

    epochs: float
    phases: tuple[Phase, ...]
    batch_size: int
    optimizer: str
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float
    ema: float
    seed: int


def recipe(*, size: int, seed: int, phases: Sequence[Mapping[str, Any]], **values: Any) -> Recipe:
    """A recipe from plain values; ``size`` is that of phases without one, and of all steps without phases."""
    chosen = tuple(Phase(**{**phase, "size": phase.get("size") or size}) for phase in phases)
    return Recipe(phases=chosen or (Phase(1.0, size),), seed=seed, **values)


@dataclass(frozen=True)
class Score:
    """A network's answers on one split, and how good they are."""

    task: Task
    predictions: np.ndarray
    """As ``task.predictions`` keeps them."""
    images: int
    value: float
    """``task.metric``, a fraction of 1."""
    cross_entropy: float
    """Mean over images."""

    def __str__(self) -> str:
        return f"{self.task.words} {self.value:.2%} of {self.images}"

    def to_dict(self) -> dict[str, int | float]:
        """Number of images and the metric under its own name, for a card."""
        return {"n": self.images, self.task.metric: self.value}


@dataclass(frozen=True)
class Run:
    """Names and places of one training run."""

    name: str
    """Shown beside the progress bar."""
    folder: Path
    """Where its checkpoints lie."""
    identity: str
    """Hash over all that determines the result but the arithmetic, which is added; a checkpoint of another
    identity is not used."""


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """The loss of an objective's named terms; where weights meet."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def train(
    fabric: Fabric,
    module: nn.Module,
    objective: Objective,
    weights: Mapping[str, float],
    recipe: Recipe,
    *,
    train_set: ViewSet,
    val_set: ViewSet,
    views: int | None,
    workers: int,
    run: Run,
    on_epoch: Callable[[nn.Module, float], None] | None = None,
) -> tuple[nn.Module, History]:
    """Train in place and return the network to keep (averaged weights where asked) with its history.

    Epoch ``e`` shows view ``e`` of every image, or ``e`` modulo ``views`` where answers are stored.
    A checkpoint is written after every epoch; a run that was killed goes on from there and ends with
    the same weights. ``on_epoch`` is told the network and the share of training that lies behind it
    before each epoch.

    Raises:
        TrainingError: there are fewer images than one batch, or the loss is no longer finite.
    """
    per_epoch = len(train_set) // recipe.batch_size
    if per_epoch == 0:
        raise TrainingError(f"{run.name}: {len(train_set)} images make no batch of {recipe.batch_size}")
    steps = max(1, round(recipe.epochs * per_epoch))
    averaged = copy.deepcopy(module).to(fabric.device) if recipe.ema else None
    groups = optimisation.parameter_groups(module, recipe.weight_decay)
    optimizer = optimisation.OPTIMIZERS[recipe.optimizer](groups, recipe.learning_rate)
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    # State and rates are set on the plain optimizer: Fabric's wrapper keeps a copy of its groups.
    wrapped, stepper = fabric.setup(module, optimizer)
    held = {"module": module, "averaged": averaged, "optimizer": optimizer}
    sizes = sorted({phase.size for phase in recipe.phases})
    in_bf16 = precision.choose(fabric, module, recipe.batch_size, sizes)
    identity = provenance.identity(run=run.identity, precision=precision.name(fabric), bf16=sorted(in_bf16))
    done = checkpoints.restore(run.folder, identity, **held) or Progress(0, [])
    if done.step:
        print(f"{run.name}: goes on after step {done.step} of {steps}", file=sys.stderr)
    history = list(done.history)
    falls = [(phase.share, phase.rate) for phase in recipe.phases]
    requests = _requests(recipe, len(train_set), per_epoch, steps, views)[done.step :]
    stream = iter(batches.load(fabric, train_set, requests, workers))
    val_views = CentredViews(fabric, val_set, workers)
    bar = tqdm(
        desc=run.name,
        total=steps * recipe.batch_size,
        initial=done.step * recipe.batch_size,
        unit=" images",
        unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )
    step = done.step
    while step < steps:
        end = min(steps, (step // per_epoch + 1) * per_epoch)
        torch.manual_seed(recipe.seed + step)
        began = time.perf_counter()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=fabric.device))
        wrapped.train()
        if on_epoch is not None:
            on_epoch(module, step / steps)
        first, rate = step, 0.0
        for batch in itertools.islice(stream, end - first):
            rate = optimisation.learning_rate(
                step, steps, peak=recipe.learning_rate, warmup=recipe.warmup, phases=falls
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            precision.use(fabric, batch.images.shape[1] in in_bf16)
            with FastDepthwise():
                terms = objective(wrapped, batch)
            loss = total(terms, weights)
            fabric.backward(loss)
            if recipe.clip:
                # What is not finite shows in the loss; a look at it here would wait for the device.
                fabric.clip_gradients(wrapped, stepper, max_norm=recipe.clip, error_if_nonfinite=False)
            stepper.step()
            stepper.zero_grad()
            for name, term in [("loss", loss), *terms.items()]:
                sums[name] += term.detach()
            if averaged is not None:
                _average(averaged, module, min(recipe.ema, (1 + step) / (10 + step)))
            step += 1
            bar.update(recipe.batch_size)
        precision.use(fabric, False)
        seconds = time.perf_counter() - began
        means = {name: (total / (step - first)).item() for name, total in sums.items()}
        if not math.isfinite(means["loss"]):
            raise TrainingError(
                f"{run.name}: the loss is {means['loss']} in epoch {len(history) + 1}; "
                f"try a learning_rate below {recipe.learning_rate}"
            )
        size = requests[step - 1 - done.step].size
        val = score(_logits(fabric, averaged or module, val_views, size), val_set.images)
        history.append(
            {
                "epoch": step / per_epoch,
                "step": step,
                "seconds": round(seconds, 2),
                "images_per_second": round((step - first) * recipe.batch_size / seconds, 1),
                "size": size,
                "learning_rate": rate,
                **means,
                f"val_{val.task.metric}": val.value,
                "val_cross_entropy": val.cross_entropy,
            }
        )
        bar.set_postfix_str(f"{size} px, loss {means['loss']:.3f}, val {val.value:.2%}")
        checkpoints.save(run.folder, identity, Progress(step, history), **held)
    bar.close()
    return (averaged or module).eval(), history


def evaluate(fabric: Fabric, module: nn.Module, dataset: ViewSet, size: int, workers: int) -> Score:
    """Score a network on the centred views of a split, at ``size`` pixels; leaves it in eval mode."""
    return score(predict(fabric, module, dataset, size, workers), dataset.images)


def predict(
    fabric: Fabric, module: nn.Module, dataset: ViewSet, size: int, workers: int
) -> Float[Tensor, "images classes"]:
    """Logits of a split's centred views, at ``size`` pixels, on the CPU; leaves the network in eval mode."""
    return _logits(fabric, module, CentredViews(fabric, dataset, workers), size)


@torch.no_grad()
def _logits(
    fabric: Fabric, module: nn.Module, views: CentredViews, size: int
) -> Float[Tensor, "images classes"]:
    module.eval()
    contract = views.dataset.contract
    with fabric.autocast():
        return torch.cat([module(contract.normalise(batch.images)).float().cpu() for batch in views.at(size)])


def score(logits: Float[Tensor, "images classes"], images: ImageSet) -> Score:
    """Score logits of a whole split."""
    task = images.task
    predictions = task.predictions(logits)
    loss = task.cross_entropy(logits, torch.from_numpy(images.labels))
    return Score(task, predictions, len(images), task.score(predictions, images.labels), float(loss))


def settle_norms(fabric: Fabric, module: nn.Module, dataset: ViewSet, workers: int) -> None:
    """Take batch norm's statistics anew over plain views of a split, at the size of its contract.

    Running statistics remember some dozen batches at the sizes of training; on a teacher this alone won
    0.7 points on val.
    """
    reestimate_norms(module, plain_images(fabric, dataset, SETTLING_IMAGES, SETTLING_BATCH, workers))


def plain_images(
    fabric: Fabric, dataset: ViewSet, images: int, batch_size: int, workers: int
) -> Iterator[Float[Tensor, "batch 3 size size"]]:
    """Batches of some normalised views of a split, at the size of its contract; the last may be left out.

    Colours and mixtures are left out: the images that are classified have none.
    """
    contract = dataset.contract
    dataset = replace(dataset, space=dataset.space and dataset.space.plain(), answers=None, teachers=())
    # Shuffled: a split lies on disk class by class, and batches of one class are not what the network meets.
    chosen = batches.shuffled(len(dataset), epoch=0, seed=0)[:images]
    whole = max(1, len(chosen) // batch_size) * batch_size
    requests = batches.sequential(chosen[:whole], 0, contract.size, batch_size)
    for batch in batches.load(fabric, dataset, requests, workers):
        yield contract.normalise(batch.images)


@torch.no_grad()
def reestimate_norms(module: nn.Module, images: Iterator[Tensor]) -> None:
    """Take batch norm's statistics anew as plain means over the given batches of normalised images.

    Needed where the weights were averaged or the image size changed late (Touvron et al. 2019, FixRes).
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    for batch in images:
        module(batch)
    module.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def _average(averaged: nn.Module, module: nn.Module, decay: float) -> None:
    pairs = list(zip(averaged.state_dict().values(), module.state_dict().values(), strict=True))
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    # One call for all tensors: a loop over some hundred small ones costs milliseconds a step.
    torch._foreach_lerp_([kept for kept, _ in floating], [new for _, new in floating], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    for kept, new in pairs:
        if not kept.is_floating_point():
            kept.copy_(new)


def _requests(recipe: Recipe, images: int, per_epoch: int, steps: int, views: int | None) -> list[Request]:
    """What each step shows: shuffled within epochs, sizes by phase."""
    requests = []
    for epoch in range(math.ceil(steps / per_epoch)):
        order = batches.shuffled(images, epoch, recipe.seed)
        for position in range(min(per_epoch, steps - epoch * per_epoch)):
            chosen = order[position * recipe.batch_size : (position + 1) * recipe.batch_size]
            view = epoch if views is None else epoch % views
            size = _size_at((epoch * per_epoch + position) / steps, recipe.phases)
            requests.append(Request(chosen, view, size))
    return requests


def _size_at(progress: float, phases: Sequence[Phase]) -> int:
    reached = 0.0
    for phase in phases:
        reached += phase.share
        if progress < reached - 1e-9:
            return phase.size
    return phases[-1].size
