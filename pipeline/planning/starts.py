"""The weights that a student starts from: published ones if they can be had, decided before any work."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from pipeline import paths
from pipeline.models import initialisation
from pipeline.models.settings import InitSettings
from teachers.errors import WeightsError

PATIENCE = 8.0
"""Seconds that a hub may take to answer at all."""


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
        initialisation.hugging_face(given)
        return Beginning(_at(given), f"the weights of {given}")
    for folder in local_copies():
        try:
            initialisation.hugging_face(str(folder))
        except WeightsError:
            continue
        return Beginning(_at(str(folder)), f"the published weights in {folder}")
    reason = "no network"
    if is_cached(published.path) or answers(huggingface_hub.constants.ENDPOINT):
        try:
            initialisation.hugging_face(published.path)
        except WeightsError as error:
            reason = str(error)
        else:
            return Beginning(published, f"ImageNet weights of {published.path}, from Hugging Face's hub")
    return Beginning(
        None,
        f"random weights, because {published.path} cannot be had ({reason}). Starting from ImageNet weights "
        "brings 10 to 20 points on some thousand photographs: --start FOLDER takes a copy",
    )


def local_copies() -> Iterator[Path]:
    """Folders beside the downloaded data that hold a MobileNetV1 as Hugging Face keeps it."""
    for config in sorted(paths.RAW.glob("*/config.json")):
        if '"mobilenet_v1"' in config.read_text(errors="replace"):
            yield config.parent


def is_cached(name: str) -> bool:
    """Whether weights of the hub were downloaded before."""
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(name, file), str) for file in files)


def answers(address: str) -> bool:
    """Whether a server answers within ``PATIENCE`` seconds, name resolution included."""
    answered = threading.Event()

    def ask() -> None:
        try:
            huggingface_hub.get_session().head(address, timeout=PATIENCE)
        except Exception:  # whatever the library for HTTP raises: there is no answer
            return
        answered.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return answered.is_set()


def _at(path: str) -> InitSettings:
    return InitSettings(source="hugging_face", path=path)
