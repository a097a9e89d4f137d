"""The loss terms of the training loop, made from an `Objective`."""

from collections.abc import Callable

from torch import Tensor, nn

from pipeline.data.batches import Batch
from pipeline.distillation import losses
from pipeline.distillation.labels import LiveTeacher
from pipeline.distillation.settings import Objective
from pipeline.tasks import SINGLE_LABEL, Task
from pipeline.training.loop import TrainingError
from pipeline.training.ranks import SharedTerms, Whole, alone
from teachers.contract import InputContract


def loss_terms(
    objective: Objective, contract: InputContract, task: Task, live: LiveTeacher | None = None
) -> SharedTerms:
    """The function that computes all terms of an objective whose weight is not 0.

    Args:
        objective: weights and options of the terms.
        contract: input contract of the student.
        task: task of the data.
        live: teacher that computes the outputs, if the batches contain none.

    Raises:
        TrainingError: a term is not defined for the task.
    """
    temperature, beta = objective.temperature, objective.dkd_beta
    distances: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "kl": lambda logits, answers, _: task.kl(logits, answers, temperature)
    }
    if task is SINGLE_LABEL:
        distances |= {
            "standardised_kl": lambda logits, answers, _: losses.standardised_kl(
                logits, answers, temperature
            ),
            "dkd": lambda logits, answers, labels: losses.dkd(logits, answers, labels, temperature, beta),
            "dist": lambda logits, answers, _: losses.dist(logits, answers, temperature),
        }
    names = list(objective.weights())
    if undefined := set(names) - {*distances, "cross_entropy"}:
        raise TrainingError(
            f"objective.{min(undefined)}: not defined for {task.name} data; "
            f"allowed: {', '.join(distances)}, cross_entropy"
        )

    def terms(module: nn.Module, batch: Batch, whole: Whole = alone) -> dict[str, Tensor]:
        logits, labels = whole(module(contract.normalise(batch.images)).float()), whole(batch.labels)
        answers = whole(batch.answers).float() if batch.answers is not None else None
        if live is not None and objective.uses_teacher:
            answers = whole(live.ask(batch.for_teachers))
        result: dict[str, Tensor] = {}
        for name in names:
            if name == "cross_entropy":
                result[name] = task.cross_entropy(logits, labels)
            elif answers is None:
                raise ValueError(f"the term {name} needs the outputs of a teacher; this batch has none")
            else:
                result[name] = distances[name](logits, answers, labels)
        return result

    return terms


def check_compact(objective: Objective) -> None:
    """Check that an objective needs no more than the most probable classes and the sum of all others.

    A temperature changes that sum, of whose parts only the mean is stored; standardising needs the spread of
    all logits.

    Raises:
        TrainingError: it needs the logits of all classes.
    """
    if objective.standardised_kl:
        key = f"objective.standardised_kl = {objective.standardised_kl:g}"
    elif objective.temperature != 1 and objective.uses_teacher:
        key = f"objective.temperature = {objective.temperature:g}"
    else:
        return
    raise TrainingError(
        f"{key}: needs the outputs of the teacher for all classes, but only the most probable are stored; "
        "set views.top to null, or use a temperature of 1 and no standardised_kl"
    )
