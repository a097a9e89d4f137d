"""How fast this machine reads, trains and answers, measured within seconds on the networks of the plan."""

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import nn

from pipeline.data import images as image_files
from pipeline.data import views
from pipeline.data.batches import Batch
from pipeline.data.views import ViewSpace
from pipeline.distillation.adaptation import OBJECTIVE
from pipeline.distillation.objective import loss_terms
from pipeline.running import affinity, progress
from pipeline.tasks import SINGLE_LABEL
from pipeline.training import optimisation, precision, step
from teachers.contract import InputContract
from teachers.runtime import in_runtime

BATCH = 32
"""Number of images per step of a measurement."""
UNTIMED, TIMED = 1, 5
"""Numbers of steps of a measurement: warm-up, and timed."""
Item = TypeVar("Item")

FIRST_STAGE = "import pipeline.stages.distill"
"""What a stage does before it works, which takes as long as the work of a short one."""


@dataclass(frozen=True)
class Network:
    """The pace of one network."""

    learning: Mapping[int, float]
    """Seconds per image of a training step in the arithmetic that trains, by image size in pixels."""
    in_fp32: float
    """Seconds per image of a training step in fp32 at the greatest of these sizes, which quantisation-aware
    training needs."""
    answering: float
    """Seconds per image of inference, at the greatest of these sizes."""

    def step(self, size: int | None) -> float:
        """Seconds per image of a training step; at a size that was not measured, in proportion to its pixels.

        None stands for the greatest size that was measured.
        """
        size = size or max(self.learning)
        nearest = min(self.learning, key=lambda measured: abs(measured - size))
        return self.learning[nearest] * (size / nearest) ** 2

    def answer(self, size: int | None) -> float:
        """Seconds per image of inference; see ``step``."""
        greatest = max(self.learning)
        return self.answering * ((size or greatest) / greatest) ** 2


@dataclass(frozen=True)
class Rates:
    """Seconds that this machine takes, measured a moment ago."""

    start: float
    """Seconds until a stage begins to work."""
    render: float
    """Seconds of one core for one view of a training image."""
    cores: int
    """Number of cores that render and train."""
    head: float
    """Seconds per image of a training step of the teacher's last layer."""
    teacher: Network
    student: Network


def measure(
    fabric: Fabric,
    teacher: nn.Module,
    heads: Sequence[str],
    student: nn.Module,
    *,
    teacher_size: int,
    student_sizes: Sequence[int],
    sample: Sequence[bytes],
    space: ViewSpace,
    train_side: int | None,
) -> Rates:
    """Measure all rates.

    Args:
        fabric: where the networks will be trained.
        teacher: the teacher with its new heads.
        heads: module paths of the teacher's last layers.
        student: the student.
        teacher_size: image size of the teacher in pixels.
        student_sizes: image sizes at which the student will be trained; it answers at the last one.
        sample: encoded training images.
        space: distribution of the views.
        train_side: see ``DataSettings.train_side``.
    """
    teacher, student = fabric.to_device(teacher), fabric.to_device(student)
    with progress.bar("measuring this machine", 6, "parts") as bar:
        # The first start also reads the files of the libraries from the disk.
        start = min(_seconds(_start_stage, [None, None]))
        render = _render(sample, space, train_side, max(student_sizes))
        bar.update()
        # The trials are kept, and decide for the trainings, too.
        in_bf16 = precision.choose(fabric, teacher, BATCH, [teacher_size])
        bar.update()
        teacher.requires_grad_(False)
        for path in heads:
            teacher.get_submodule(path).requires_grad_(True)
        head = _learning(fabric, teacher, teacher_size, fast=bool(in_bf16))
        teacher.requires_grad_(True)
        bar.update()
        answering = in_runtime(teacher, teacher_size).module
        teacher_rates = _network(fabric, teacher, [teacher_size], in_bf16, answering)
        bar.update()
        in_bf16 = precision.choose(fabric, student, BATCH, student_sizes)
        bar.update()
        student_rates = _network(fabric, student, student_sizes, in_bf16, student)
        bar.update()
    return Rates(start, render, affinity.physical_cores(), head, teacher_rates, student_rates)


def _network(
    fabric: Fabric, module: nn.Module, sizes: Sequence[int], in_bf16: Collection[int], answering: nn.Module
) -> Network:
    learning = {size: _learning(fabric, module, size, fast=size in in_bf16) for size in dict.fromkeys(sizes)}
    greatest = max(sizes)
    in_fp32 = _learning(fabric, module, greatest, fast=False) if in_bf16 else learning[greatest]
    return Network(learning, in_fp32, _answering(fabric, answering, greatest))


def _answering(fabric: Fabric, module: nn.Module, size: int) -> float:
    """Seconds per image of inference, the mean of some, with random images."""
    module.eval()
    images = torch.rand(BATCH, 3, size, size, device=fabric.device)

    @torch.no_grad()
    def answer(_: None) -> None:
        module(images).cpu()

    return mean(_seconds(answer, [None] * (UNTIMED + TIMED))[UNTIMED:]) / BATCH


def _learning(fabric: Fabric, module: nn.Module, size: int, *, fast: bool) -> float:
    """Seconds per image of one training step, the mean of some, with random images and labels.

    Args:
        fabric: where the network is.
        module: the network.
        size: side of the images in pixels.
        fast: whether the network computes in bf16, where a trial decides (see ``precision.choose``).
    """
    module.train()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = optimisation.OPTIMIZERS["adamw"]([{"params": trained}], 0.0)
    terms = loss_terms(OBJECTIVE, InputContract(size), SINGLE_LABEL)
    images = torch.randint(256, (BATCH, size, size, 3), dtype=torch.uint8)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    batch = Batch(fabric.to_device(images), fabric.to_device(labels), None)

    def learn(_: None) -> None:
        with precision.computing(fabric, fast):
            loss = step.total(terms(module, batch), OBJECTIVE.weights())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU

    return mean(_seconds(learn, [None] * (UNTIMED + TIMED))[UNTIMED:]) / BATCH


def _render(sample: Sequence[bytes], space: ViewSpace, train_side: int | None, size: int) -> float:
    """Seconds per view, with images of the size in which they will be stored."""
    stored = [image_files.reduce(encoded, train_side) if train_side else encoded for encoded in sample[:32]]
    contract = InputContract(size)

    def render(encoded: bytes) -> None:
        image = image_files.decode(encoded, grey=True)
        view = views.draw(space, 0, 0, *image.size)
        views.render(image, view, contract).tobytes()

    return mean(_seconds(render, stored))


def _start_stage(_: None) -> None:
    subprocess.run([sys.executable, "-c", FIRST_STAGE], check=False, capture_output=True)


def _seconds(function: Callable[[Item], object], items: Iterable[Item]) -> list[float]:
    times = []
    for item in items:
        began = time.perf_counter()
        function(item)
        times.append(time.perf_counter() - began)
    return times
