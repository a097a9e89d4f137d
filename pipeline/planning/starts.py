"""The weights that a student starts from: published ones if they can be had, decided before any work."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import paths
from pipeline.models import initialisation
from pipeline.models.settings import InitSettings
from teachers.errors import TeacherError, WeightsError


@dataclass(frozen=True)
class Beginning:
    """Initial weights, and the reason for them."""

    init: InitSettings | None
    """Where the weights are; None for random ones."""
    reason: str
    """The choice in one sentence."""


def choose(published: InitSettings, given: str | None = None) -> Beginning:
    """Choose the initial weights: a given folder, a local copy, the hub's cache, the hub, or random ones.

    Args:
        published: published weights on Hugging Face's hub.
        given: folder or hub id of other weights of MobileNetV1; ``random`` for none.

    Raises:
        WeightsError: the given weights cannot be used.
    """
    if given == "random":
        return Beginning(None, "random weights, as --start asks for")
    if given:
        try:
            initialisation.hugging_face(given)
        except TeacherError as error:
            raise WeightsError(f"--start: {_reason(error)}; `--start random` needs no weights") from error
        return Beginning(_at(given), f"the weights of {given}")
    for folder in local_copies():
        try:
            initialisation.hugging_face(str(folder))
        except WeightsError:
            continue
        return Beginning(_at(str(folder)), f"the published weights in {folder}")
    try:
        initialisation.hugging_face(published.path)
    except TeacherError as error:  # the hub does not answer, or what it has is not what is expected
        return Beginning(
            None,
            f"random weights, because published ones cannot be had ({_reason(error)}). Starting from "
            "ImageNet weights brings 10 to 20 points on some thousand photographs: --start FOLDER takes a "
            "copy",
        )
    return Beginning(published, f"ImageNet weights of {published.path}, from Hugging Face's hub")


def local_copies() -> Iterator[Path]:
    """Folders beside the downloaded data that hold a MobileNetV1 as Hugging Face keeps it."""
    for config in sorted(paths.RAW.glob("*/config.json")):
        if '"mobilenet_v1"' in config.read_text(errors="replace"):
            yield config.parent


def _reason(error: TeacherError) -> str:
    """An error without its advice, which names keys that a person who plans has not seen."""
    return str(error).removesuffix(f"; {initialisation.OWN_START}")


def _at(path: str) -> InitSettings:
    return InitSettings(source="hugging_face", path=path)
