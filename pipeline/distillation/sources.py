"""Teachers by their source: those of a library, and networks of a student's architecture."""

from collections.abc import Mapping
from typing import Any

from pipeline.distillation.settings import TeacherMember
from pipeline.models import initialisation
from pipeline.models.initialisation import HEAD
from students import published
from teachers.contract import InputContract
from teachers.errors import WeightsError
from teachers.sources import SOURCES
from teachers.teacher import Teacher

STUDENT = "student"
"""Source of teachers that have the architecture of a student."""
ARCHITECTURE = "mobilenet_v1"
"""The architecture of these: a key of ``students.ARCHITECTURES``."""
DEFAULT_SIZE = 192
"""Side in pixels that padding is computed for if neither the weights nor the settings say one."""


def load(member: TeacherMember, overrides: Mapping[str, Any]) -> Teacher:
    """Load a teacher as it is.

    Args:
        member: its settings.
        overrides: arguments of a student's architecture that take precedence over those of the weights.

    Raises:
        TeacherError: the teacher cannot be loaded.
        WeightsError: the weights do not fit the architecture, or are not those of the settings.
    """
    if member.source != STUDENT:
        return SOURCES[member.source](member.name, member.weights)
    if member.sha256 is not None and member.sha256 != initialisation.fingerprint(member.name):
        raise WeightsError(
            f"{member.name} has changed since its SHA-256 was taken (teacher.sha256 = {member.sha256!r}); "
            "`python -m pipeline compress` takes it anew"
        )
    return student(member.name, size=member.size, overrides=overrides)


def student(path: str, *, size: int | None, overrides: Mapping[str, Any]) -> Teacher:
    """Load a network of a student's architecture with its own head.

    Args:
        path: file, folder or hub id; see ``initialisation.source_of``.
        size: side of the image in pixels that padding is computed for; None takes that of the weights.
        overrides: arguments of the architecture that take precedence over those of the weights.

    Raises:
        WeightsError: there is no such checkpoint, or it does not fit the architecture.
    """
    source, found = initialisation.source_of(path)
    start = initialisation.SOURCES[source](found)
    channels = published.channels(start.tensors)
    if channels is None or not set(HEAD) <= set(start.tensors):
        raise WeightsError(
            f"{path} is not a whole MobileNetV1: 14 layers with widths and {' and '.join(HEAD)} are expected"
        )
    outputs = len(start.tensors[HEAD[1]])
    if start.labels and len(start.labels) != outputs:
        raise WeightsError(f"{path}: {len(start.labels)} names of classes for {outputs} logits")
    arguments = {
        "channels": channels,
        **start.arguments,
        **overrides,
        "classes": outputs,
        "size": size or start.size or DEFAULT_SIZE,
    }
    names = start.labels or tuple(map(str, range(outputs)))
    module = initialisation.network(ARCHITECTURE, arguments, names, start)
    contract = None
    if start.declares_input:
        contract = InputContract(size or start.size or 0, start.mean, start.std, crop=start.crop or 1.0)
    return Teacher(module, outputs, contract, ("classifier",), start.origin, start.labels, arguments)
