"""The training loop, which the teacher, distillation, fine-tuning and quantisation-aware training share."""

import copy
import functools
import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline import provenance
from pipeline.data import batches
from pipeline.data.batches import Request, ViewSet
from pipeline.data.centred_views import CentredViews
from pipeline.data.requests import Lazily
from pipeline.data.store import ImageSet
from pipeline.errors import DistilleryError
from pipeline.running import progress
from pipeline.training import checkpoints, norms, optimisation, precision, prefetch, ranks, scoring
from pipeline.training.checkpoints import History, Progress
from pipeline.training.ranks import SharedTerms
from pipeline.training.settings import Phase, TrainingSettings
from pipeline.training.step import Step

CHECKED_TOGETHER = 20
"""Number of steps whose losses are looked at together, since the host waits for a GPU each time."""


class TrainingError(DistilleryError):
    """A training cannot continue."""


@dataclass(frozen=True)
class Run:
    """The name and the checkpoints of one training."""

    name: str
    """Name shown next to the progress bar."""
    folder: Path
    """Folder of the checkpoints."""
    identity: str
    """Hash over everything that determines the result, except the arithmetic, which the loop adds. A
    checkpoint with another identity is not used."""


def train(
    fabric: Fabric,
    module: nn.Module,
    loss_terms: SharedTerms,
    weights: Mapping[str, float],
    settings: TrainingSettings,
    *,
    train_set: ViewSet,
    val_set: ViewSet,
    views: int | None,
    seed: int,
    workers: int,
    run: Run,
    hold_frozen: bool = False,
) -> tuple[nn.Module, History]:
    """Train in place; returns the trained network (its averaged weights with ``settings.ema``) and its
    history.

    A checkpoint is written after every epoch. A training that was interrupted continues from there and ends
    with the same weights. Several ranks divide every batch and end with equal weights, and with those of one
    process but for rounding and for what is drawn, such as dropout; another number of ranks can continue.

    Args:
        fabric: where to train.
        module: the network, trained in place.
        loss_terms: see ``SharedTerms``.
        weights: the weight of each loss term.
        settings: how to train.
        train_set: training images, whose contract also gives the image size of phases without one.
        val_set: images that are scored after every epoch.
        views: number of views per image that are shown in turn: epoch ``e`` shows view ``e`` modulo ``views``
            of every image. None shows view ``e``, always a new one.
        seed: seed of the order of the images and of dropout.
        workers: number of processes that render images.
        run: name and checkpoints.
        hold_frozen: whether batch norms whose parameters are frozen keep their statistics and normalise with
            them; else they normalise with those of the batch, as if they were trained.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    images = train_set.images.verified if settings.images == "verified" else np.arange(len(train_set))
    if len(images) < settings.batch_size:
        print(
            f"warning: {run.name}: {len(images)} images are fewer than one batch of "
            f"{settings.batch_size}, so each batch has all of them",
            file=sys.stderr,
        )
        settings = settings.model_copy(update={"batch_size": len(images)})
    ranks.check_batch(fabric, settings.batch_size, run.name)
    per_epoch = len(images) // settings.batch_size
    phases = settings.phases or (Phase(share=1.0),)
    own_size = train_set.contract.size
    steps = max(1, round(settings.epochs * per_epoch))
    averaged = copy.deepcopy(module).to(fabric.device) if settings.ema else None
    groups = optimisation.parameter_groups(module, settings.weight_decay)
    optimizer = optimisation.OPTIMIZERS[settings.optimizer](groups, settings.learning_rate)
    optimisation.capturable(optimizer, fabric.device)
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    # State is set on the plain optimizer: Fabric's wrapper keeps a copy of its groups.
    fabric_module, fabric_optimizer = fabric.setup(module, optimizer)
    state = {"module": module, "averaged": averaged, "optimizer": optimizer}
    sizes = sorted({phase.size or own_size for phase in phases})
    share = math.ceil(settings.batch_size / fabric.world_size)
    in_bf16 = ranks.on_first(fabric, lambda: precision.choose(fabric, module, share, sizes))
    identity = provenance.identity(run=run.identity, precision=precision.name(fabric), bf16=sorted(in_bf16))
    with fabric.rank_zero_first():  # which sets a damaged checkpoint aside
        done = checkpoints.restore(run.folder, identity, **state) or Progress(0, [])
    ranks.check_equal(fabric, done.step, "a checkpoint of the step")
    if done.step:
        print(f"{run.name}: continues after step {done.step} of {steps}", file=sys.stderr)
    history = list(done.history)
    falls = [(phase.share, phase.rate) for phase in phases]
    step_sizes = [_size_at(number / steps, phases) or own_size for number in range(steps)]
    requests = _requests(step_sizes, images, settings.batch_size, seed, views)[done.step :]
    rendered = batches.load(fabric.device, train_set, ranks.shares(fabric, requests), workers)
    stream = prefetch.on_own_stream(rendered, fabric.device)
    val_views = CentredViews(fabric.device, val_set, workers, fabric.global_rank, fabric.world_size)
    bar = progress.bar(run.name, steps * settings.batch_size, initial=done.step * settings.batch_size)
    terms = ranks.on_whole_batches(fabric, loss_terms, settings.batch_size)
    update = Step(
        fabric, fabric_module, fabric_optimizer, averaged, terms, weights, settings, in_bf16, run.name
    )
    step = done.step
    while step < steps:
        end = min(steps, (step // per_epoch + 1) * per_epoch)
        ranks.seed(fabric, seed + step)
        began = time.perf_counter()
        update.begin()
        fabric_module.train()
        if hold_frozen:
            norms.hold_frozen(module)
        first, rate = step, 0.0
        losses: list[Tensor] = []
        for batch in itertools.islice(stream, end - first):
            rate = optimisation.learning_rate(
                step, steps, peak=settings.learning_rate, warmup=settings.warmup, phases=falls
            )
            losses.append(update(batch, step, rate))
            step += 1
            bar.update(settings.batch_size)
            if len(losses) == CHECKED_TOGETHER or step == end:
                shown = requests[step - done.step - len(losses) : step - done.step]
                if explosion := _infinite_loss(losses, shown, train_set.images):
                    raise TrainingError(
                        f"{run.name}: at step {step} of {steps} the loss is {explosion}; "
                        f"try a learning_rate below {settings.learning_rate:g}"
                    )
                losses.clear()
        means = update.finish()
        seconds = time.perf_counter() - began
        size = requests[step - 1 - done.step].size
        val = scoring.score(scoring.logits(fabric, averaged or module, val_views, size), val_set.images)
        history.append(
            {
                "epoch": step / per_epoch,
                "step": step,
                "seconds": round(seconds, 2),
                "images_per_second": round((step - first) * settings.batch_size / seconds, 1),
                "size": size,
                "learning_rate": rate,
                **means,
                f"val_{val.task.metric}": val.value,
                "val_cross_entropy": val.cross_entropy,
            }
        )
        bar.set_postfix_str(f"{size} px, loss {means['loss']:.3f}, val {val.value:.2%}")
        if fabric.is_global_zero:
            checkpoints.save(run.folder, identity, Progress(step, history), **state)
    bar.close()
    return (averaged or module).eval(), history


def _infinite_loss(losses: Sequence[Tensor], batches: Sequence[Request], images: ImageSet) -> str | None:
    """The first loss that is not a finite number, with the images of its batch; None if all are finite."""
    values = torch.stack(list(losses))
    infinite = (~values.isfinite()).nonzero()
    if not len(infinite):
        return None
    first = int(infinite[0])
    return f"{values[first].item()} for {images.name(batches[first].indices)}"


def _requests(
    sizes: Sequence[int],
    images: Int64[np.ndarray, " images"],
    batch_size: int,
    seed: int,
    views: int | None,
) -> Lazily:
    """The images of each step, of which ``sizes`` has the image size: shuffled within epochs."""
    per_epoch = len(images) // batch_size

    @functools.lru_cache(maxsize=2)  # Batches are loaded ahead, across the end of an epoch.
    def order(epoch: int) -> Int64[np.ndarray, " images"]:
        return images[batches.shuffled(len(images), epoch, seed)]

    def request(step: int) -> Request:
        epoch, position = divmod(step, per_epoch)
        selection = order(epoch)[position * batch_size : (position + 1) * batch_size]
        return Request(selection, epoch if views is None else epoch % views, sizes[step])

    return Lazily(len(sizes), request)


def _size_at(progress: float, phases: Sequence[Phase]) -> int | None:
    """The image size of the phase in which a share ``progress`` of all steps is finished."""
    reached = 0.0
    for phase in phases:
        reached += phase.share
        if progress < reached - 1e-9:
            return phase.size
    return phases[-1].size
