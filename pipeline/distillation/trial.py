"""A short trial of a teacher, at every image size that it will see, before anything is trained or stored."""

import copy
from collections.abc import Mapping

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from pipeline.data.batches import Batch
from pipeline.distillation.adaptation import OBJECTIVE
from pipeline.distillation.objective import loss_terms
from pipeline.tasks import SINGLE_LABEL, Task
from pipeline.training import step
from pipeline.training.cpu_operators import FastOperators
from pipeline.training.settings import TrainingSettings
from teachers.contract import InputContract
from teachers.errors import TeacherError, one_line
from teachers.teacher import Teacher, replace_heads

IMAGES = 2
"""Number of images of a trial. With a single one, batch norm of a single pixel has nothing to average."""
LEAST_DEPENDENCE = 0.1
"""Least difference, as a share of the range of the answers, by which an answer depends on other images.
Integers whose scale is that of the whole batch are rounded a little differently."""
ROUNDING = 1e-4
"""Greatest rounding error of an answer, as a share of the greatest one."""
SIZES = (64, 96, 128, 160, 192, 224, 240, 256, 299, 320, 384)
"""Image sizes in pixels that are tried to say which ones a network takes."""


def try_out(
    teacher: Teacher,
    contract: InputContract,
    parts: Mapping[str, TrainingSettings | None],
    *,
    task: Task,
    classes: int,
    key: str,
) -> None:
    """Let a teacher answer two images of every size that it will see, and learn from them if it is adapted.

    Each answer must be the same whenever it is given, and whatever the other image of the batch is.

    The teacher stays as it is, and so does the state of PyTorch's random generator.

    Args:
        teacher: the teacher as it was loaded, on the CPU.
        contract: its input contract, of which the size is that of the evaluation.
        parts: settings of the parts of its adaptation; None skips a part.
        task: task of the data.
        classes: number of classes or attributes of the data.
        key: key of the teacher's settings, for messages.

    Raises:
        TeacherError: it does not take a size, answers something else than logits, answers at random or by
            other images, or cannot be trained.
    """
    trainings = {part: settings for part, settings in parts.items() if settings is not None}
    sizes = {contract.size: f"{key}.size"}
    for part, settings in trainings.items():
        for index, phase in enumerate(settings.phases):
            sizes.setdefault(phase.size or contract.size, f"{key}.{part}.phases.{index}.size")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _check_sizes(teacher, contract, sizes)
        if problem := _unsteadiness(teacher, contract):
            raise TeacherError(f"{key}: {teacher.origin} {problem}")
        if not trainings:
            return
        learner = Teacher(**{**vars(teacher), "module": _copy(teacher)})
        replace_heads(learner, classes)
        with torch.no_grad():
            answers = learner.module.eval()(contract.normalise(_noise(contract.size, IMAGES)))
        if answers.any():
            raise TeacherError(
                f"{key}: {teacher.origin} cannot be adapted: with a last layer of zeros it answers "
                f"{answers[0, 0]:.3g} instead of 0, as a network that ends in a softmax or a sigmoid does"
            )
        for part, settings in trainings.items():
            learner.module.requires_grad_(part == "full")
            for path in learner.heads:
                learner.module.get_submodule(path).requires_grad_(True)
            own = [phase.size or contract.size for phase in settings.phases]
            for size in sorted({contract.size, *own}):
                problem = _learn(learner, contract, task, classes, size, settings.batch_size)
                if problem is not None:
                    raise TeacherError(f"{key}.{part}: {teacher.origin} cannot be trained {problem}")


def _check_sizes(teacher: Teacher, contract: InputContract, sizes: Mapping[int, str]) -> None:
    """Check that a teacher answers images of these sizes; the message names their keys."""
    problems = {size: problem for size in sizes if (problem := _failure(teacher, contract, size))}
    if not problems:
        return
    names = " and ".join(f"{size} pixels ({sizes[size]})" for size in problems)
    tried = [size for size in SIZES if size not in problems and not _failure(teacher, contract, size)]
    allowed = f"it takes {', '.join(map(str, tried))}" if tried else "it takes none of the usual sizes"
    raise TeacherError(
        f"{teacher.origin} does not answer images of {names}: {next(iter(problems.values()))}; {allowed}"
    )


def _failure(teacher: Teacher, contract: InputContract, size: int) -> str | None:
    """The reason for which a teacher does not answer two images; None if it does."""
    try:
        with torch.no_grad():
            answers = teacher.module.eval()(contract.normalise(_noise(size, IMAGES)))
    except Exception as error:  # a network can fail in any way
        return one_line(error)
    if not isinstance(answers, Tensor):
        return f"it returns {type(answers).__name__} instead of a tensor of logits"
    if answers.shape != (IMAGES, teacher.outputs):
        return f"its answers to {IMAGES} images have the shape {tuple(answers.shape)}"
    return None


@torch.no_grad()
def _unsteadiness(teacher: Teacher, contract: InputContract) -> str | None:
    """The way in which answers depend on more than their image; None if they do not.

    The two images differ much in brightness: answers that depend on the batch are different for them.
    """
    images = _noise(contract.size, IMAGES)
    images[1] //= 4

    def ask(images: UInt8[Tensor, "batch size size 3"]) -> Tensor:
        return teacher.module(contract.normalise(images)).double().cpu()

    together, again = ask(images), ask(images)
    alone = torch.cat([ask(image) for image in images.split(1)])
    answers = torch.cat([together, again, alone])
    rounding = ROUNDING * float(answers.abs().max())
    span = float(answers.max() - answers.min())
    twice, apart = (float((other - together).abs().max()) for other in (again, alone))
    if twice > rounding:
        return (
            f"gives other answers to the same images when it is asked again (by up to {twice:.3g}): it has a "
            "random part, such as a dropout that was not switched off for inference"
        )
    if apart > max(rounding, LEAST_DEPENDENCE * span):
        return (
            f"gives other answers to an image beside another one than alone (by up to {apart:.3g}, where all "
            f"lie within {span:.3g}): it computes across the batch, such as a softmax or a batch norm that "
            "takes the statistics of the batch"
        )
    return None


def _learn(
    teacher: Teacher,
    contract: InputContract,
    task: Task,
    classes: int,
    size: int,
    batch_size: int,
) -> str | None:
    """One step of a training without its update; the reason for which it fails, None if it does not."""
    images = min(batch_size, IMAGES)
    labels = torch.arange(images) % classes if task is SINGLE_LABEL else torch.rand(images, classes).round()
    words = f"with batches of {batch_size} images of {size} pixels"
    teacher.module.train()
    teacher.module.zero_grad()
    try:
        terms = loss_terms(OBJECTIVE, contract, task)
        with FastOperators():
            loss = step.total(
                terms(teacher.module, Batch(_noise(size, images), labels, None)), OBJECTIVE.weights()
            )
        loss.backward()
    except Exception as error:  # a network can fail in any way
        more = "" if batch_size > 1 else "; try a batch_size of at least 2"
        return f"{words}: {one_line(error)}{more}"
    if not loss.isfinite():
        return f"{words}: its loss is {loss.item()}"
    if not any(_learned(teacher.module.get_submodule(path)) for path in teacher.heads):
        return f"{words}: no gradient reaches its last layer ({', '.join(teacher.heads)})"
    return None


def _learned(layer: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


def _copy(teacher: Teacher) -> nn.Module:
    try:
        return copy.deepcopy(teacher.module)
    except Exception as error:  # a module can hold anything
        raise TeacherError(
            f"{teacher.origin} cannot be copied for its training: {one_line(error)}"
        ) from error


def _noise(size: int, images: int) -> UInt8[Tensor, "images size size 3"]:
    return torch.randint(256, (images, size, size, 3), dtype=torch.uint8)
