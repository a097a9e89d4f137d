"""The plan for a trained network: what it is, what is done with it, and what its file does not say."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline import parameters
from pipeline.data import images as image_files
from pipeline.data import sources as folders
from pipeline.distillation import sources
from pipeline.errors import DistilleryError
from pipeline.evaluation import gate
from pipeline.models import initialisation
from pipeline.parameters import Parameters, composition, configuration
from pipeline.planning import plan, proof, survey
from pipeline.planning.survey import Survey
from pipeline.settings import merge
from pipeline.statistics import intervals
from students.mobilenet_v1 import BASE_CHANNELS, scaled_channels
from teachers import labels
from teachers.contract import InputContract
from teachers.teacher import Teacher, columns, name_logits

GROUPS = {"teacher": sources.STUDENT, "variants": "compression", "recipe": "quick"}
"""Members of groups of `configs/`."""
TRAINING = 2048
"""Greatest number of training images, which calibrate and give the statistics of batch norm."""
SHARES = {"val": 0.2, "test": 0.4}
"""Shares of val and test of a folder without splits: nothing is trained, so few images need to be left."""
BATCH = 32
"""Number of images per forward pass."""
TRIAL_IMAGES = 96
"""Number of training images on which everything is tried that a state dict does not say."""
INPUTS = {
    "[0, 1]": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "[-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Usual means and standard deviations of an input, by name."""
FORMS = [
    {"activation": activation, "padding": padding}
    for activation in ("relu", "relu6")
    for padding in ("symmetric", "same")
]
"""What a state dict does not say of its network."""


@dataclass(frozen=True)
class _Trial:
    """What a form of a network and of its input makes of training images."""

    module: nn.Module
    name: str
    """Key of ``INPUTS``."""
    form: Mapping[str, str]
    """Member of ``FORMS``."""
    correct: Bool[np.ndarray, " images"]
    distance: float
    """Distance of the inputs of its batch norms from what these remember."""


class CompressionError(DistilleryError):
    """The network cannot be compressed with these images."""


@dataclass(frozen=True)
class Compression:
    """What will be done with a network, as values for `configs/run.yaml`, and why."""

    groups: Mapping[str, str]
    values: Mapping[str, Any]
    survey: Survey
    network: str
    """The network in words."""
    classes: str
    """How its logits are those of the images, in words."""
    variants: tuple[str, ...]
    found: str | None
    """What the file does not say, and how it was found out, in words; None if it says all."""
    notes: tuple[str, ...]
    """What the person may want to change, in sentences."""

    def lines(self) -> list[str]:
        """The plan in sentences for a terminal and for the head of the file."""
        count = self.survey.images
        return [
            *self.survey.lines(),
            self.network,
            *([self.found] if self.found else []),
            self.classes,
            f"nothing is trained: {min(TRAINING, count['train']):,} training images calibrate, "
            f"{count['val']:,} of val choose, and {count['test']:,} of test compare the files with it",
            f"variants: {', '.join(self.variants)}",
            *self.notes,
        ]


def make(checkpoint: str, folder: Path, words: Sequence[str] = ()) -> Compression:
    """Look at a network and a folder, and plan its compression. Nothing is written.

    Args:
        checkpoint: file, folder or hub id; see ``initialisation.source_of``.
        folder: folder of labelled images.
        words: ``GROUP=NAME`` and ``KEY=VALUE`` of a person, which take precedence over the plan.

    Raises:
        TeacherError: the network is not one that can be compressed here, or its classes are others.
        SourceError: the folder cannot be used.
        ParameterError: a value is not valid.
    """
    groups, given = plan.read_words(words)
    sha256 = initialisation.fingerprint(checkpoint)
    first = sources.student(checkpoint, size=None, overrides={})
    folders.check_place(folder)
    groups = {**GROUPS, "data": survey.source_of(folder), **groups}
    size = given.get("student.size") or given.get("teacher.size")
    contract = first.input
    declared_size = contract.size if contract else None
    notes = []
    if not size and not declared_size:
        notes.append(
            f"note: {checkpoint} does not say for which size of images it was made; "
            f"{sources.DEFAULT_SIZE} pixels are taken, and student.size takes precedence"
        )
    size = size or str(declared_size or sources.DEFAULT_SIZE)
    own = {
        "data.path": str(folder),
        "teacher.name": checkpoint,
        "teacher.size": size,
        "student.size": size,
        "student.width": str(_width(first)),
        "views.per_image": "1",
        **({"teacher.sha256": sha256} if sha256 else {}),
        **({"views.eval_crop": str(contract.crop)} if contract and contract.crop != 1 else {}),
        **{f"data.{name}": str(share) for name, share in SHARES.items()},
    }
    given = own | given
    values, _ = composition.merged([f"{key}={value}" for key, value in (groups | given).items()])
    fixed = plan.nested({key: plan.value_at(values, key) for key in given})
    base = parameters.check(values, str(configuration.FILE))
    contents = survey.look(base.data, base.seed, drawn=True)
    network = sources.load(base.teacher, base.student.overrides())
    if base.teacher.labels is not None:
        network = name_logits(network, base.teacher.labels, contents.classes)
    indices = columns(network, contents.classes)
    found = None
    if contract is None and not any((base.teacher.input.mean, base.teacher.input.std)):
        if base.data.source == "attributes":
            raise CompressionError(
                f"{checkpoint} does not say how its input is made; set teacher.input.mean and "
                "teacher.input.std"
            )
        assert first.arguments is not None
        declared = {key: first.arguments[key] for key in FORMS[0] if key in first.arguments}
        found, more = _find_out(checkpoint, base, contents, indices, declared)
        fixed = merge(more, fixed)
    if base.data.train is None and contents.images["train"] > TRAINING:
        fixed = merge({"data": {"train": TRAINING}}, fixed)
    final = parameters.check(merge(values, fixed), str(configuration.FILE))
    return Compression(
        groups,
        fixed,
        contents,
        network=_describe(network, final),
        classes=_classes(network, contents.classes, indices),
        variants=tuple(final.variants),
        found=found,
        notes=(*notes, *proof.lines(final, contents)),
    )


def write(compression: Compression, command: str) -> None:
    """Write `configs/run.yaml` and `params.yaml`.

    Args:
        compression: the plan.
        command: command that made the plan.
    """
    remarks = [
        "Edit it as you like: `python -m pipeline run` goes on with it as it is.",
        "docs/parameters.md describes every key.",
        *(part for line in compression.lines() for part in textwrap.wrap(line, 100)),
    ]
    configuration.write(compression.groups, compression.values, command, remarks)


def is_current(checkpoint: str) -> bool:
    """Whether the plan of before is for the network as it lies there now."""
    planned = configuration.planned()
    return planned is not None and planned.teacher.sha256 == initialisation.fingerprint(checkpoint)


def _describe(network: Teacher, p: Parameters) -> str:
    assert network.arguments is not None
    form = {**FORMS[0], **network.arguments, **p.student.overrides()}
    return (
        f"network: {network.origin}: MobileNetV1 of {p.student.width:g} times the full width, "
        f"{form['activation']}, {form['padding']} padding, at {p.student.size} pixels"
    )


def _width(network: Teacher) -> float:
    """Width multiplier of a network; of one whose layers were narrowed unevenly, the mean."""
    assert network.arguments is not None
    channels = tuple(network.arguments["channels"])
    width = channels[-1] / BASE_CHANNELS[-1]
    return width if scaled_channels(width) == channels else round(sum(channels) / sum(BASE_CHANNELS), 2)


def _classes(network: Teacher, classes: Sequence[str], indices: Sequence[int]) -> str:
    if network.outputs > len(classes):
        return (
            f"classes: {len(classes):,} of the {network.outputs:,} that the network knows; the files have "
            "the logits of these alone, and the scores are those among these"
        )
    if network.labels is None:
        return (
            f"classes: the network has no names; its {network.outputs:,} logits are taken in the order "
            f"{labels.listing(classes)}, which is checked on val; teacher.labels gives another one"
        )
    order = "in the same order" if list(indices) == list(range(len(classes))) else "in another order"
    return f"classes: the {len(classes):,} of the network, {order}"


def _find_out(
    checkpoint: str,
    p: Parameters,
    contents: Survey,
    indices: Sequence[int],
    declared: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    """What a state dict does not say, from what its layers gave for the images that it was trained on.

    Batch norms remember means and variances. Of the forms that classify training images about as well as the
    best, that one is taken whose layers come nearest to these. Correct answers alone do not tell: a network
    knows its own training images in spite of another input, and loses points on others.

    Args:
        checkpoint: see ``make``.
        p: the parameters of the plan.
        contents: the images.
        indices: index of each class of the images among the logits.
        declared: arguments of the architecture that the file determines.

    Returns:
        The finding in words, and its values.

    Raises:
        CompressionError: nothing usual fits, or the images cannot tell.
    """
    pixels = InputContract(p.student.size, crop=p.views.eval_crop)
    rendered = [_render(encoded, pixels) for encoded in contents.sample]
    truth = torch.tensor(np.asarray(contents.sample_labels))
    images = torch.from_numpy(np.stack(rendered))
    given = p.student.overrides()
    known = {**declared, **given}
    forms = [form for form in FORMS if all(known.get(key, value) == value for key, value in form.items())]

    def attempt(module: nn.Module, name: str, form: Mapping[str, str], step: int) -> _Trial:
        mean, std = INPUTS[name]
        contract = replace(pixels, mean=mean, std=std)
        logits, distance = _answer(module, [contract.normalise(part) for part in images[::step].split(BATCH)])
        correct = logits[:, list(indices)].argmax(1) == truth[::step]
        return _Trial(module, name, form, correct.numpy(), distance)

    trials = []
    for form in forms:
        module = sources.student(checkpoint, size=p.student.size, overrides=given | form).module.eval()
        trials += [attempt(module, name, form, math.ceil(len(images) / TRIAL_IMAGES)) for name in INPUTS]
    most = max(trials, key=lambda trial: trial.correct.sum())
    near = [trial for trial in trials if not gate.compare(trial.correct, most.correct).distinguishable]
    first, *others = sorted(near, key=lambda trial: trial.distance)
    best = attempt(first.module, first.name, first.form, 1)
    unknown = [key for key in FORMS[0] if key not in declared]
    nor = f", nor its {' and '.join(unknown)}" if unknown else ""
    shown = ", ".join([*(f"{key} {best.form[key]}" for key in unknown), f"an input of {best.name}"])
    words = (
        f"{checkpoint} does not say how its input is made{nor}; of {len(trials)} "
        f"usual combinations, {shown} fits its batch norms best (distance {first.distance:.4f}"
        f"{f', the next {others[0].distance:.4f}' if others else ''}), and classifies "
        f"{best.correct.mean():.1%} of {len(truth)} training images correctly"
    )
    # The best of several is above chance more easily than one.
    low, _ = intervals.wilson(int(best.correct.sum()), len(truth), 1 - 0.05 / len(trials))
    if low <= 1 / len(contents.classes):
        raise CompressionError(
            f"{words}, which is not above chance; set teacher.input.mean and teacher.input.std, and "
            "teacher.labels if the logits have another order than the folders"
        )
    mean, std = INPUTS[best.name]
    values = {
        "teacher": {"input": {"mean": list(mean), "std": list(std)}},
        "student": {key: best.form[key] for key in unknown if key not in given},
    }
    keys = ["teacher.input.mean", "teacher.input.std", *(f"student.{key}" for key in unknown)]
    return f"{words}; {', '.join(keys)} take precedence", values


@torch.no_grad()
def _answer(
    module: nn.Module, images: Sequence[Float[Tensor, "_ 3 size size"]]
) -> tuple[Float[Tensor, "images classes"], float]:
    """The logits, and how far the inputs of batch norms are from what these remember.

    The distance is the KL divergence between normal distributions with the means and variances of a channel,
    averaged over channels and then over batch norms.
    """
    sums: dict[nn.BatchNorm2d, list[Tensor]] = {
        part: [] for part in module.modules() if isinstance(part, nn.BatchNorm2d)
    }

    def keep(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        values = inputs[0].transpose(0, 1).flatten(1)
        moments = torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)
        sums[norm].append(torch.stack(moments).double())

    hooks = [norm.register_forward_pre_hook(keep) for norm in sums]
    logits = torch.cat([module(batch) for batch in images])
    for hook in hooks:
        hook.remove()
    distances = []
    for norm, parts in sums.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count, total, squares = torch.stack(parts).sum(0)
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0) + norm.eps
        expected = norm.running_var.double() + norm.eps
        shift = (mean - norm.running_mean).square()
        distances.append(((expected / variance).log() + (variance + shift) / expected - 1).mean() / 2)
    return logits, float(torch.stack(distances).mean())


def _render(encoded: bytes, contract: InputContract) -> np.ndarray:
    image = image_files.decode(encoded)
    return np.asarray(contract.render(image, contract.centre_box(*image.size)))
