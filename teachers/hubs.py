"""The hubs that weights are downloaded from: whether one answers, asked before a library tries for minutes.

The libraries repeat a failed request many times, and some wait without a limit for a network that drops all
packets.
"""

import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.errors

from teachers.errors import TeacherError, WeightsError, one_line

SECONDS = 6.0
"""Seconds in which a hub has to answer its first request."""

READ_SECONDS = 10.0
"""Seconds that a download may stand still."""

HUGGING_FACE = huggingface_hub.constants.ENDPOINT
TORCHVISION = "https://download.pytorch.org"

HUGGING_FACE_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""Usual names of a file of weights on Hugging Face's hub."""


OWN_WEIGHTS = (
    "set `teacher.weights` to a local file of weights, or take a teacher that needs no hub: "
    "`teacher=efficientnet_lite0`"
)
"""What to do about a teacher whose weights cannot be downloaded."""

OWN_FOLDER = (
    "set `teacher.name` to a folder that `save_pretrained` wrote, or take a teacher that needs no hub: "
    "`teacher=efficientnet_lite0`"
)


ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""Id of a model on Hugging Face's hub."""


class HubError(TeacherError):
    """A hub does not answer, and what is needed is not in its cache; the message names the alternatives."""


def check_id(name: str) -> None:
    """Check that a name can be that of a model on Hugging Face's hub, before the hub is asked.

    Raises:
        WeightsError: it is a path of this machine, where no folder is.
    """
    if name.startswith((".", "~")) or not ID.fullmatch(name):
        problem = "is not a folder" if Path(name).exists() else "does not exist"
        hint = "; `~` is not expanded, write the whole path" if name.startswith("~") else ""
        raise WeightsError(
            f"{name} {problem}{hint}; allowed: a folder that `save_pretrained` wrote, or OWNER/NAME of "
            "Hugging Face's hub"
        )


@contextmanager
def download(address: str, name: str, instead: str, *, is_local: bool) -> Iterator[None]:
    """Run a download: not at all if the hub does not answer, and with a limit on each pause.

    Args:
        address: address of the hub.
        name: what is downloaded, in words.
        instead: which key of the parameters gives it otherwise.
        is_local: whether the files are on this machine already, so that the hub is not needed.

    Raises:
        HubError: the hub does not answer within ``SECONDS``.
    """
    if not is_local and (problem := problem_of(address)) is not None:
        raise HubError(f"{name}: {address} does not answer ({problem}); {instead}")
    constants = huggingface_hub.constants
    limit, offline = socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE
    socket.setdefaulttimeout(READ_SECONDS)
    # What is here is taken from here: asking whether it has changed would take minutes without a network.
    constants.HF_HUB_OFFLINE = offline or is_local
    try:
        yield
    finally:
        socket.setdefaulttimeout(limit)
        constants.HF_HUB_OFFLINE = offline


def problem_of(address: str) -> str | None:
    """Why a hub does not answer, in words; None if it does. Proxies of the environment are used."""
    # A name that cannot be looked up takes longer than any limit of a socket: hence the thread.
    answers: list[str | None] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):
                answers.append(None)
        except urllib.error.HTTPError:
            answers.append(None)  # any answer is one
        except Exception as error:  # names, proxies, certificates and sockets fail in many ways
            answers.append(one_line(getattr(error, "reason", error) if _is_error(error) else error))

    if huggingface_hub.constants.HF_HUB_OFFLINE and address == HUGGING_FACE:
        return "HF_HUB_OFFLINE is set"
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answers[0] if answers else f"no answer in {SECONDS:g} seconds"


def _is_error(error: Exception) -> bool:
    return isinstance(getattr(error, "reason", None), Exception)


def in_hugging_face_cache(repository: str, *alternatives: str) -> bool:
    """Whether one of the files of a repository is in Hugging Face's cache on this machine."""
    try:
        found = [huggingface_hub.try_to_load_from_cache(repository, name) for name in alternatives]
    except huggingface_hub.errors.HFValidationError:
        return False  # the library itself says what is wrong with the name
    return any(isinstance(file, str) for file in found)


def in_torch_cache(address: str) -> bool:
    """Whether the file of this address is in PyTorch's cache on this machine."""
    import torch.hub

    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(address).name).is_file()
