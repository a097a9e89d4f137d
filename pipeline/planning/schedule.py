"""The trainings that fit into a time, and the time that each stage takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.distillation.settings import FineTuning
from pipeline.parameters import Distill, Parameters, Prune, Quantize
from pipeline.planning.rates import Rates
from pipeline.planning.survey import Survey
from pipeline.settings import merge
from pipeline.training.settings import TrainingSettings

SHARE = 0.95
"""Share of the time that is planned for; the rest is for what cannot be foreseen."""
SMALLER = (160, 128, 96)
"""Image sizes of the student, in pixels, for machines and times that do not allow the usual one."""
ROUNDING = 2.0
"""Time of a step of quantisation-aware training, relative to a step in fp32."""
PRUNED = 0.6
"""Time of a step of a network with half of the multiply-accumulates, relative to its parent's."""
LOOP = 1.2
"""Time of a step within its loop, relative to the step alone: losses, averages, and the work of others."""
DVC = 1.5
"""Seconds that DVC takes per stage, for hashes and its lock."""
REFERENCE = 0.004
"""Seconds per image of the student's inference on the machine on which the stages below were timed."""

MEASUREMENTS: Mapping[str, float] = {
    "compare": 3.0,
    "benchmark": 32.0,
    "cost": 1.0,
    "probe": 36.0,
    "explain": 3.0,
    "sensitivity": 18.0,
    "report": 3.0,
    "track": 12.0,
}
"""Seconds of the stages that measure, with the default parameters, without their start, on that machine."""


@dataclass(frozen=True)
class Effort:
    """Limits of a student's training."""

    least: float
    """Least number of epochs that make sense."""
    most: float
    """Number of epochs beyond which little is gained."""


@dataclass(frozen=True)
class Schedule:
    """Parameters that fit, and the time of each stage."""

    values: dict[str, Any]
    """Values that differ from those that the plan started from."""
    seconds: dict[str, float]
    """Time by stage."""

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


def fit(base: Parameters, survey: Survey, rates: Rates, seconds: float, fixed: Mapping[str, Any]) -> Schedule:
    """Find the longest trainings that fit.

    Args:
        base: parameters before the plan.
        survey: the data.
        rates: speed of this machine.
        seconds: time for all stages.
        fixed: nested values that a person has set, which take precedence.

    Returns:
        The schedule; that of the shortest sensible trainings if the time is too short.
    """

    effort = limits(base, survey.training)
    own = base.student.size
    sizes = [own] if "size" in fixed.get("student", {}) else [own, *(size for size in SMALLER if size < own)]

    def attempt(epochs: float, size: int) -> Schedule:
        student = {"student": {"size": size}} if size != own else {}
        p = Parameters.model_validate(merge(base.model_dump(mode="json"), student))
        values = merge(merge(student, propose(p, survey, epochs)), fixed)
        p = Parameters.model_validate(merge(base.model_dump(mode="json"), values))
        return Schedule(values, estimate(p, survey, rates))

    # Smaller images only if there is no time for the least training on those of the usual size.
    shortest = {size: attempt(effort.least, size) for size in sizes}
    size = next((size for size in sizes if shortest[size].total <= SHARE * seconds), None)
    if size is None:
        return min(shortest.values(), key=lambda schedule: schedule.total)
    longest = attempt(effort.most, size)
    if longest.total <= SHARE * seconds:
        return longest
    least, most = effort.least, effort.most
    while most - least > max(0.25, 0.02 * least):
        middle = (least + most) / 2
        if attempt(middle, size).total <= SHARE * seconds:
            least = middle
        else:
            most = middle
    return attempt(round(least, 1), size)


def limits(p: Parameters, images: int) -> Effort:
    """Epochs of distillation that make sense: few from weights that have seen photographs, many from random
    ones; with few images, as many as make some hundred steps."""
    batch = batch_size(images)
    per_epoch = max(1, images // batch)
    started = p.student.init is not None
    least, most = (4.0, 24.0) if started else (12.0, 60.0)
    steps = 300 if started else 600
    return Effort(max(least, round(steps / per_epoch, 1)), max(most, round(4 * steps / per_epoch, 1)))


def batch_size(images: int) -> int:
    """Images per step: at least a dozen steps per epoch, as long as batch norm has enough to average."""
    return 32 if images >= 384 else 16 if images >= 96 else 8


def propose(p: Parameters, survey: Survey, epochs: float) -> dict[str, Any]:
    """All trainings for a number of epochs of distillation.

    Args:
        p: parameters before the plan.
        survey: the data.
        epochs: epochs of distillation.
    """
    images = survey.training
    batch = batch_size(images)
    per_epoch = max(1, images // batch)

    def at_least(steps: int, wanted: float) -> float:
        return round(max(wanted, steps / per_epoch), 2)

    started = p.student.init is not None
    teacher: dict[str, Any] = {}
    if p.teacher.head is not None:
        teacher["head"] = {"epochs": at_least(30, 1.0), "batch_size": max(batch, 16)}
    if p.teacher.full is not None:
        teacher["full"] = {
            "epochs": at_least(100, min(6.0, max(2.0, epochs / (4 if started else 6)))),
            "batch_size": batch,
            "phases": [],
        }
    size = p.student.size
    phases = (
        [
            {"share": 0.6, "size": _smaller(size, 2 / 3), "rate": 1.0},
            {"share": 0.4, "size": None, "rate": 0.5},
        ]
        if started
        else [
            {"share": 0.5, "size": _smaller(size, 1 / 3), "rate": 1.0},
            {"share": 0.25, "size": _smaller(size, 2 / 3), "rate": 0.5},
            {"share": 0.25, "size": None, "rate": 0.35},
        ]
    )
    # Random weights need many epochs, in which a view may come again; the time is theirs.
    views = int(min(10, math.ceil(epochs / (1 if started else 4))))
    calm = {"mixup": 0.0, "cutmix": 0.0, "crop_scale": [0.6, 1.0]}
    return {
        "teacher": teacher,
        "views": {"per_image": views, **({} if epochs >= 12 else calm)},
        "distill": {"epochs": round(epochs, 1), "batch_size": batch, "phases": phases},
        "prune": {"epochs": at_least(60, min(4.0, epochs / (6 if started else 10))), "batch_size": batch},
        "quantize": {
            "epochs": at_least(30, min(1.0, epochs / (16 if started else 40))),
            "batch_size": batch,
            "calibration": int(min(512, images)),
        },
    }


def estimate(p: Parameters, survey: Survey, rates: Rates) -> dict[str, float]:
    """Seconds of every stage.

    Args:
        p: parameters.
        survey: the data.
        rates: speed of this machine.
    """
    images, val, test = survey.training, survey.images["val"], survey.images["test"]
    start = rates.start + DVC
    pictures = 1 + p.views.mixup + p.views.cutmix
    plain, render = (count * rates.render / rates.cores for count in (1.0, pictures))
    size = p.student.size
    answer = rates.student.answer(size)
    seconds = {"check": start / 2, "prepare": DVC + 1.7 * survey.seconds}
    teaching = 0.0
    for part, settings in p.teacher.parts().items():
        if settings is not None:
            step = rates.head if part == "head" else rates.teacher.step(p.teacher.size)
            teaching += settings.epochs * (
                images * (LOOP * step + plain) + 1.5 * val * rates.teacher.answering
            )
    asking = LOOP * rates.teacher.answering
    seconds["teach"] = start + teaching + (val + test) * (asking + plain) + 4
    seconds["label"] = start + images * p.views.per_image * (asking + render) + 2

    def train(settings: TrainingSettings, factor: float = 1.0) -> float:
        phases = [(phase.share, phase.size or size) for phase in settings.phases] or [(1.0, size)]
        step = sum(share * rates.student.step(pixels) for share, pixels in phases)
        return settings.epochs * (images * (LOOP * factor * step + render) + val * answer)

    def fine_tune(settings: FineTuning, factor: float, parent: float) -> float:
        # From published weights, students pass their teachers; then the parent answers in every step.
        asks = settings.target == "parent" or (settings.target == "auto" and p.student.init is not None)
        asking = settings.epochs * images * (LOOP * answer * parent + render) if asks else 0.0
        return train(settings, factor) + asking

    networks = {"teacher": 1.0}
    machine = answer / REFERENCE
    for name, variant in p.variants.items():
        parent = networks.get(variant.parent, 1.0)
        networks[name] = parent * (PRUNED if variant.op == "prune" else 1.0)
        if variant.op == "distill":
            work = train(p.settings(name, Distill)) + min(images, 1024) * answer
        elif variant.op == "load":
            work = val * answer
        elif variant.op == "prune":
            work = fine_tune(p.settings(name, Prune), networks[name], parent) + 45 * machine
        else:
            settings = p.settings(name, Quantize)
            ranges = settings.calibration * answer * parent
            work = 14 * min(val, 1000) * answer * parent + 20 * ranges
            if settings.method == "fp16":
                work = val * answer * parent + ranges
            if settings.method == "qat":
                in_fp32 = rates.student.in_fp32 / rates.student.step(None)
                work += fine_tune(settings, ROUNDING * in_fp32 * parent, parent)
                work += 2 * min(val, 1000) * answer * parent
        seconds[name] = start + work + 1
        seconds[f"export {name}"] = start + 3 * machine
        seconds[f"evaluate {name}"] = start + 3 * machine + test * (answer + plain)
    return seconds | {name: start + machine * work for name, work in MEASUREMENTS.items()}


def _smaller(size: int, share: float) -> int:
    """A smaller image size, a multiple of 32 pixels, the network's stride."""
    return max(32, round(size * share / 32) * 32)
