"""The end of a training: a student on disk, and no checkpoints."""

from pathlib import Path

from pipeline.models import histories, storage
from pipeline.models.storage import Model
from pipeline.training import checkpoints
from pipeline.training.checkpoints import History


def save(model: Model, history: History, *, folder: Path, timings: histories.Place, run: Path) -> None:
    """Write a student with its history, then remove the checkpoints, from which it could be trained again.

    Args:
        model: the student and its card.
        history: one line per epoch; empty for a student that needed no training.
        folder: folder of the student.
        timings: where the timings of a history belong.
        run: folder of the checkpoints.
    """
    storage.save(folder, model)
    histories.write(folder, history, timings)
    checkpoints.clear(run)
