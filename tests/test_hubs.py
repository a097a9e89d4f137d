import socket
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from pipeline.models import initialisation
from teachers import hubs
from teachers.hubs import HubError
from teachers.sources import HUBS, SOURCES


@pytest.fixture
def silent_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network that takes every connection and never answers, and empty caches."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{hole.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(hubs, "SECONDS", 0.3)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        yield


@pytest.mark.usefixtures("silent_network")
@pytest.mark.parametrize(
    ("source", "name", "key"),
    [
        ("timm", "resnet18.a1_in1k", "teacher.weights"),
        ("timm", "hf-hub:someone/model", "teacher.weights"),
        ("torchvision", "resnet18", "teacher.weights"),
        ("hugging_face", "google/vit-base-patch16-224", "teacher.name"),
    ],
)
def test_a_hub_that_does_not_answer_is_one_line_with_the_key_that_gives_the_weights_otherwise(
    source: str, name: str, key: str
) -> None:
    began = time.monotonic()
    for ask in (
        lambda: HUBS[source](name, "default").__enter__(),
        lambda: SOURCES[source](name, "default"),
    ):
        with pytest.raises(HubError) as caught:
            ask()
        message = str(caught.value)
        assert key in message
        assert name in message
        assert len(message.splitlines()) == 1
    assert time.monotonic() - began < 8


@pytest.mark.usefixtures("silent_network")
@pytest.mark.parametrize(
    ("source", "path"),
    [("hugging_face", "google/mobilenet_v1_0.75_192"), ("timm", "mobilenetv1_100.ra4_e3600_r224_in1k")],
)
def test_a_student_whose_published_weights_cannot_be_had_names_the_alternatives(
    source: str, path: str
) -> None:
    with pytest.raises(HubError) as caught:
        initialisation.SOURCES[source](path)
    assert "student.init.path" in str(caught.value)
    assert "student.init=null" in str(caught.value)


@pytest.mark.usefixtures("silent_network")
def test_what_is_on_this_machine_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "file"))
    with HUBS["timm"]("resnet18.a1_in1k", "default"):
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    for path in (str(tmp_path), "somewhere.safetensors"):
        with initialisation.hub("hugging_face" if path == str(tmp_path) else "timm", path):
            pass


def test_an_answer_of_any_kind_is_an_answer_and_a_refusal_is_not() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert hubs.problem_of(f"http://127.0.0.1:{port}") is not None
