"""How well a student does with one layer changed at a time: with fewer channels, or with eight bits."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.data import batches, sampling
from pipeline.data.batches import ViewSet
from pipeline.data.store import ImageSet
from pipeline.models.layers import trace
from pipeline.models.storage import Model
from pipeline.pruning import channel_sensitivity, widths
from pipeline.quantization.sensitivity import score_layers, simulate_together
from pipeline.running import progress
from pipeline.tasks import SINGLE_LABEL, Task
from pipeline.training import norms

BATCH = 32
"""Number of images per forward pass; at small sizes their activations fit a processor's cache."""
CRITERION = "l1"
"""Criterion by which channels are removed; the sensitivity of a layer depends little on it."""
WEIGHT_LIMIT = 63
"""Greatest magnitude of an integer weight, as in files that are safe on every CPU."""


@dataclass(frozen=True)
class LayerScore:
    """How well a network does, and how far its answers are from those of the unchanged one.

    A few hundred images cannot show in correct and wrong answers what eight bits do to one layer; the
    probabilities do.
    """

    score: float
    """The task's metric, a fraction of 1."""
    moved: float
    """Share of probability that went to other classes, mean over images; for attributes the mean change."""


@dataclass(frozen=True)
class Scorer:
    """Scores networks on labelled images, in comparison with one network's answers."""

    images: Sequence[Float[Tensor, "batch 3 height width"]]
    """Batches of normalised images."""
    labels: np.ndarray
    task: Task
    report_progress: Callable[[], object]
    """Called after every scored network."""
    reference: Float[Tensor, "images classes"] | None = None
    """Logits of the network that others are compared with; without them no answer has moved."""

    @torch.inference_mode()
    def score(self, module: nn.Module) -> LayerScore:
        """Score a network in evaluation mode, on the CPU."""
        logits, moved = self._logits(module), 0.0
        if self.reference is not None:
            change = (self._probabilities(logits) - self._probabilities(self.reference)).abs()
            moved = float(change.sum(1).mean() / 2 if self.task is SINGLE_LABEL else change.mean())
        self.report_progress()
        return LayerScore(self.task.score(self.task.predictions(logits.numpy()), self.labels), moved)

    @torch.inference_mode()
    def compared_with(self, module: nn.Module) -> "Scorer":
        """Return the same scorer with this network's answers as the reference."""
        return replace(self, reference=self._logits(module))

    def _logits(self, module: nn.Module) -> Float[Tensor, "images classes"]:
        return torch.cat([module(images) for images in self.images])

    def _probabilities(self, logits: Float[Tensor, "images classes"]) -> Float[Tensor, "images classes"]:
        return logits.softmax(1) if self.task is SINGLE_LABEL else logits.sigmoid()


def count_networks(model: Model, ratios: Sequence[float], *, channels: bool, int8: bool) -> int:
    """Return how many networks ``measure`` scores at most; a stem that reads no plain bytes stays float."""
    narrowed = len(ratios) * len(widths.free_layers(model.module))
    quantised = 1 + 2 * len(trace(model.module).layers)
    return 1 + channels * narrowed + int8 * quantised


def measure_students(
    models: Mapping[str, Model],
    changes: Mapping[str, Mapping[str, bool]],
    *,
    train: ImageSet,
    val: ImageSet,
    seed: int,
    images: int,
    size: int | None,
    ratios: Sequence[float],
    settling: int,
) -> dict[str, Any]:
    """Measure students by ``measure``, with one progress bar.

    Args:
        models: the students, which take images of the same size.
        changes: the arguments ``channels`` and ``int8`` of ``measure``, by student.
        train: training images, of which statistics and ranges are taken.
        val: validation images, on which networks are scored: no choice may rest on test.
        seed: seed of the choice of images.
        images: number of validation images.
        size: height and width of the images, at most that of the students' input; None takes that.
        ratios: shares of a layer's channels that are kept.
        settling: number of training images.
    """
    student_input = next(iter(models.values())).card.input
    contract = replace(student_input, size=min(size or student_input.size, student_input.size))

    def normalised(source: ImageSet, indices: np.ndarray) -> list[Float[Tensor, "_ 3 height width"]]:
        views = ViewSet(source, None, contract)[batches.Request(indices, None, contract.size)]
        return [contract.normalise(part) for part in views.images.split(BATCH)]

    settled = normalised(train, sampling.choose(train, settling, seed))
    scored = sampling.choose(val, images, seed)
    networks = sum(count_networks(model, ratios, **changes[name]) for name, model in models.items())
    with progress.bar("sensitivity", networks, "networks") as bar:
        scorer = Scorer(normalised(val, scored), val.labels[scored], val.task, bar.update)
        variants = {
            name: measure(model, scorer, settled, ratios, **changes[name]) for name, model in models.items()
        }
    return {
        "n": len(scored),
        "metric": val.task.metric,
        "size": contract.size,
        "settling": sum(map(len, settled)),
        "criterion": CRITERION,
        "variants": variants,
    }


def measure(
    model: Model,
    scorer: Scorer,
    settling: Sequence[Float[Tensor, "batch 3 height width"]],
    ratios: Sequence[float],
    *,
    channels: bool,
    int8: bool,
) -> dict[str, Any]:
    """Score a float student whole and with one layer changed at a time.

    Args:
        model: the student; left as it is.
        scorer: scores the networks; its images have any size that the student takes.
        settling: normalised training images of that size, for batch norm's statistics and activation ranges.
        ratios: shares of a layer's channels that are kept.
        channels: whether layers are narrowed (``pruning.channel_sensitivity``).
        int8: whether layers are quantised (``quantization.sensitivity``).

    Returns:
        Plain values for JSON.
    """
    # Narrowed networks get new statistics. So does the whole one, since statistics of another image size or
    # of other images would make a difference of their own.
    settled = replace(model, module=copy.deepcopy(model.module))
    norms.reestimate(settled.module, settling)
    scorer = scorer.compared_with(settled.module)
    result: dict[str, Any] = {"score": scorer.score(settled.module).score}
    if channels:
        narrowed = channel_sensitivity.measure(
            model.module,
            model.card.arguments,
            ratios=ratios,
            settle=lambda masked: norms.reestimate(masked, settling),
            score=scorer.score,
            criterion=CRITERION,
            architecture=model.card.architecture,
        )
        result["channels"] = {
            layer: {f"{ratio:g}": asdict(score) for ratio, score in scores.items()}
            for layer, scores in narrowed.items()
        }
    if int8:
        layers = score_layers(settled, lambda: settling, weight_limit=WEIGHT_LIMIT, score=scorer.score)
        whole = simulate_together(settled, lambda: settling, weight_limit=WEIGHT_LIMIT)
        result["int8"] = {
            "together": asdict(scorer.score(whole)),
            "layers": {
                layer: {"alone": asdict(scores.alone), "spared": asdict(scores.spared)}
                for layer, scores in layers.items()
            },
        }
    return result
