"""The end of a training: a student on disk, a word if it has learned nothing, and no checkpoints."""

import sys
from pathlib import Path
from typing import Any

from pipeline.errors import DistilleryError
from pipeline.models import histories, storage
from pipeline.models.storage import Card, Model
from pipeline.tasks import TASKS
from pipeline.training import checkpoints
from pipeline.training.checkpoints import History
from pipeline.training.scoring import Score


class ChanceError(DistilleryError):
    """A variant is at chance, so that nothing is built from it."""


def describe(score: Score) -> dict[str, Any]:
    """The score on val as a card holds it: number of images, the metric, and whether it is at chance.

    ``chance`` is the score of the same predictions for shuffled images.
    """
    chance = score.chance()
    return {**score.to_dict(), "chance": round(chance.expected, 6), "at_chance": chance.is_reached}


def save(model: Model, history: History, *, folder: Path, timings: histories.Place, run: Path) -> None:
    """Write a student with its history, then remove the checkpoints, from which it could be trained again.

    A student at chance is written, too, so that one can look at it; a line on standard error says so.

    Args:
        model: the student and its card, whose ``val`` is that of ``describe``.
        history: one line per epoch; empty for a student that needed no training.
        folder: folder of the student.
        timings: where the timings of a history belong.
        run: folder of the checkpoints.
    """
    storage.save(folder, model)
    histories.write(folder, history, timings)
    checkpoints.clear(run)
    if model.card.val.get("at_chance"):
        print(f"warning: {_at_chance(model.card)}", file=sys.stderr)


def check_parent(card: Card) -> None:
    """Check that a variant has learned enough to be the parent of another one.

    Raises:
        ChanceError: it is at chance on val.
    """
    if card.val.get("at_chance"):
        raise ChanceError(f"{_at_chance(card)}; nothing is built from it")


def _at_chance(card: Card) -> str:
    value = card.val[TASKS[card.task].metric]
    rate = card.settings.get("learning_rate")
    advice = [f"a learning_rate below {rate:g}"] if rate else []
    advice += ["a smaller start_share"] if card.settings.get("start_share") else []
    advice += ["more epochs", "labels that fit the images"]
    return (
        f"{card.variant} is at chance: it scores {value:.2%} on the {card.val['n']} images of val, and "
        f"{card.val['chance']:.2%} on the same images shuffled; try {', '.join(advice[:-1])}, or {advice[-1]}"
    )
