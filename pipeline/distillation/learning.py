"""Training a student on the outputs of the teacher."""

from pathlib import Path

from lightning_fabric import Fabric
from torch import nn

from pipeline import provenance
from pipeline.distillation.objective import check_compact, loss_terms
from pipeline.distillation.settings import StudentTraining
from pipeline.distillation.training_data import TrainingData
from pipeline.training import loop
from pipeline.training.checkpoints import History
from pipeline.training.loop import Run


def learn(
    fabric: Fabric,
    module: nn.Module,
    data: TrainingData,
    settings: StudentTraining,
    *,
    name: str,
    start: str,
    seed: int,
    workers: int,
    folder: Path,
) -> tuple[nn.Module, History]:
    """Train a student on the outputs of the teacher, resumably; see ``loop.train``.

    Args:
        fabric: where to train.
        module: the student, trained in place.
        data: what it is trained on.
        settings: how it is trained.
        name: name shown next to the progress bar.
        start: hash over everything that determines the weights of ``module``.
        seed: seed of the order of the images and of dropout.
        workers: number of processes that render images.
        folder: folder of the checkpoints, which the caller clears.

    Raises:
        TrainingError: the objective needs more than is stored or defined for the task, or see ``loop.train``.
    """
    if data.compact and data.live is None:
        check_compact(settings.objective)
    contract = data.train_set.contract
    identity = provenance.identity(
        settings=settings.model_dump(mode="json", include=set(StudentTraining.model_fields)),
        start=start,
        data=data.key,
        live=data.live is not None,
        views=data.views,
        contract=contract.to_dict(),
        seed=seed,
    )
    return loop.train(
        fabric,
        module,
        loss_terms(settings.objective, contract, data.task, data.live),
        settings.objective.weights(),
        settings,
        train_set=data.train_set,
        val_set=data.val_set,
        views=data.views,
        seed=seed,
        workers=workers,
        run=Run(name, folder, identity),
    )
