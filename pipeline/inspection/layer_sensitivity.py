"""What each layer of a student can bear: fewer channels, and eight bits, one layer at a time."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.storage import Model, Quantization
from pipeline.pruning import surgery, widths
from pipeline.quantization import post_training, simulator
from pipeline.tasks import SINGLE_LABEL, Task
from pipeline.training import loop

CRITERION = "l1"
"""Which channels go first; what a layer can bear depends on the layer more than on that."""
WEIGHT_LIMIT = 63
"""As in files that are safe on every CPU."""


class Score(float):
    """The task's score, which also knows how far the answers have moved.

    A few hundred images cannot show in right and wrong answers what eight bits do to one layer; the
    probabilities do. The libraries that take one layer at a time pass scores on as they are.
    """

    moved: float = 0.0
    """Probability that went to other classes, mean over images; of attributes, the mean change."""

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return {"score": float(self), "moved": self.moved}


@dataclass(frozen=True)
class Exam:
    """Images with their labels, and the whole network's answers to them."""

    images: Sequence[Float[Tensor, "batch 3 height width"]]
    """Normalised."""
    labels: np.ndarray
    task: Task
    marked: Callable[[], object]
    """Called after every network."""
    answers: Float[Tensor, "images classes"] | None = None
    """Of the network that others are compared with."""

    @torch.inference_mode()
    def score(self, module: nn.Module) -> Score:
        """Of a network in evaluation mode, on the CPU."""
        logits = self._logits(module)
        score = Score(self.task.score(self.task.predictions(logits), self.labels))
        if self.answers is not None:
            change = (self._probabilities(logits) - self._probabilities(self.answers)).abs()
            score.moved = float(change.sum(1).mean() / 2 if self.task is SINGLE_LABEL else change.mean())
        self.marked()
        return score

    @torch.inference_mode()
    def against(self, module: nn.Module) -> "Exam":
        """The same exam, with this network's answers to compare with."""
        return replace(self, answers=self._logits(module))

    def _logits(self, module: nn.Module) -> Float[Tensor, "images classes"]:
        return torch.cat([module(images) for images in self.images])

    def _probabilities(self, logits: Float[Tensor, "images classes"]) -> Float[Tensor, "images classes"]:
        return logits.softmax(1) if self.task is SINGLE_LABEL else logits.sigmoid()


def scorings(model: Model, ratios: Sequence[float], *, channels: bool, int8: bool) -> int:
    """How many networks ``measure`` scores at most: a stem that reads no plain bytes stays float."""
    narrowed = len(ratios) * len(widths.free_layers(model.module))
    quantised = 1 + 2 * len(simulator.layers(model.module))
    return 1 + channels * narrowed + int8 * quantised


def measure(
    model: Model,
    exam: Exam,
    settling: Sequence[Float[Tensor, "batch 3 height width"]],
    ratios: Sequence[float],
    *,
    channels: bool,
    int8: bool,
) -> dict[str, Any]:
    """Score a float student whole and with one layer changed at a time, as plain values.

    Args:
        model: the student; left as it is.
        exam: on which networks are scored; images of any size that the student takes.
        settling: normalised training images of that size, for batch norm's statistics and activation ranges.
        ratios: shares of a layer's channels that are kept.
        channels: whether layers are narrowed (``pruning.sensitivity``).
        int8: whether they are quantised (``ptq.sensitivity``).
    """
    # As those of every narrowed network: at another size, and on other images, statistics are others.
    settled = replace(model, module=copy.deepcopy(model.module))
    loop.reestimate_norms(settled.module, iter(settling))
    exam = exam.against(settled.module)
    found: dict[str, Any] = {"score": exam.score(settled.module).to_dict()["score"]}
    if channels:
        narrowed = surgery.sensitivity(
            model.module,
            model.card.arguments,
            ratios=ratios,
            images=settling,
            score=exam.score,
            criterion=CRITERION,
            architecture=model.card.architecture,
        )
        found["channels"] = {
            layer: {f"{ratio:g}": _plain(score) for ratio, score in scores.items()}
            for layer, scores in narrowed.items()
        }
    if int8:
        layers = post_training.sensitivity(
            settled, lambda: settling, weight_limit=WEIGHT_LIMIT, score=exam.score
        )
        found["int8"] = {
            "together": _plain(exam.score(_quantised(settled, settling, layers))),
            "layers": {
                layer: {"alone": _plain(scores.alone), "spared": _plain(scores.spared)}
                for layer, scores in layers.items()
            },
        }
    return found


def _plain(score: float) -> dict[str, float]:
    assert isinstance(score, Score)
    return score.to_dict()


def _quantised(model: Model, images: Sequence[Tensor], layers: Mapping[str, object]) -> nn.Module:
    """The simulator with these layers in int8 together, by the same plain means as one at a time."""
    folded, _ = simulator.fold_batch_norm(model.module, model.card.architecture, model.card.arguments)
    kept_float = tuple(name for name in simulator.layers(folded) if name not in layers)
    whole = Quantization(
        simulator.weight_scales(folded, WEIGHT_LIMIT, kept_float),
        WEIGHT_LIMIT,
        simulator.activation_ranges(folded, lambda: images, kept_float),
        kept_float,
    )
    return simulator.simulate(folded, whole)
