"""What `push` uploads arrives, transformers loads it, and whatever fails is one line without the token."""

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import MobileNetV1ForImageClassification

from pipeline import paths, provenance
from pipeline.models import storage
from pipeline.models.storage import Model, Quantization
from pipeline.onnx import inference
from pipeline.running import process
from pipeline.selection import table
from pipeline.shipping import hub, hub_folder
from tests import command, small_hub, small_servers, tiny_onnx, tiny_students
from tests.rows import row
from tests.small_hub import Hub

ROOT = Path(__file__).parents[1]
CARD = """---
library_name: onnx
license: {license}
tags:
- image-classification
model-index:
- name: Clothes, {variant}
  results:
  - task:
      type: image-classification
    dataset:
      name: clothes
      type: clothes
      split: test
    metrics:
    - type: accuracy
      value: 0.9
---

# Clothes
"""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifacts of two variants."""
    root = tmp_path_factory.mktemp("run")
    with contextlib.chdir(root):
        write_variant("fp32", tiny_students.student())
        quantized = replace(tiny_students.student(), quantization=Quantization({}, 63, {}))
        storage.save(paths.model("int8"), quantized)
        tiny_onnx.write(paths.onnx("int8"))
        rows = []
        for variant, parent in (("fp32", "teacher"), ("int8", "fp32")):
            rows.append(row(variant, parent, sha256=provenance.sha256(paths.onnx(variant))))
            paths.card(variant).parent.mkdir(parents=True, exist_ok=True)
            paths.card(variant).write_text(CARD.format(license="a-licence-of-ours", variant=variant))
        table.write(paths.VARIANTS, rows)
    return root


def write_variant(variant: str, model: Model) -> None:
    storage.save(paths.model(variant), model)
    paths.ONNX.mkdir(parents=True, exist_ok=True)
    tiny_students.ship(model, paths.ONNX).rename(paths.onnx(variant))


@pytest.fixture
def project(run_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leftovers: None) -> None:  # noqa: ARG001
    """The working folder, a home of its own, and the token of the hub of the tests."""
    monkeypatch.chdir(run_of)
    monkeypatch.setenv("HF_TOKEN", small_hub.TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command leaves to the end of its process must not disturb the next test."""
    yield
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library waits before it repeats
    for thread in threading.enumerate():
        if thread.name == hub.THREAD:
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def server(project: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:  # noqa: ARG001
    with small_hub.serve() as served:
        point_to(served.address, monkeypatch)
        yield served


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_what_arrives_is_what_ships_and_transformers_gives_the_same_logits_from_the_hub(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(monkeypatch, "push fp32 me/clothes") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"{server.address}/me/clothes"
    assert small_hub.TOKEN not in out + err
    repository = server.repositories["me/clothes"]
    assert not repository.private
    files = repository.files
    assert files["fp32.onnx"] == paths.onnx("fp32").read_bytes()
    sums = dict(line.split("  ")[::-1] for line in files["SHA256SUMS"].decode().splitlines())
    assert sums == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "SHA256SUMS"
    }
    assert {"README.md", "model.json", "predict.py", "config.json", "model.safetensors"} <= files.keys()
    assert "model_card.md" not in files
    listed = {
        line.split(maxsplit=1)[1]: int(line.split()[0].replace(",", "")) for line in out.splitlines()[:-1]
    }
    assert listed == {name: len(content) for name, content in files.items()}

    network = MobileNetV1ForImageClassification.from_pretrained("me/clothes")
    pixels = tiny_students.photographs(8)
    classifier = inference.open_classifier(paths.onnx("fp32"), threads=1)
    [ours] = inference.run(classifier, [pixels.numpy()])
    with torch.inference_mode():
        theirs = network(storage.load(paths.model("fp32")).card.input.normalise(pixels)).logits
    assert ours.std(axis=0).mean() > 0.01
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-4)
    assert tuple((network.config.id2label or {}).values()) == classifier.labels


def test_the_card_is_the_readme_with_metadata_that_the_hub_takes(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variant in ("fp32", "int8"):
        assert command.run(monkeypatch, f"push {variant} me/{variant}") == 0
        text = server.repositories[f"me/{variant}"].files["README.md"].decode()
        assert small_hub.front_matter_problems(text) == []
        data = ModelCard(text).data
        assert (data["license"], data["license_name"]) == ("other", "a-licence-of-ours")
        assert data["library_name"] == ("transformers" if variant == "fp32" else "onnx")
        assert ("me/fp32" in text) == (variant == "fp32")
        assert "# Clothes" in text


def test_the_licences_of_the_hub_stay_as_they_are() -> None:
    text = hub_folder._front_matter(CARD.format(license="cc0-1.0", variant="fp32"), False)
    assert ModelCard(text).data["license"] == "cc0-1.0"
    assert "license_name" not in text


def test_an_int8_variant_goes_without_weights_for_transformers_and_says_why(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(monkeypatch, "push int8 me/clothes --private") == 0
    files = server.repositories["me/clothes"].files
    assert server.repositories["me/clothes"].private
    assert {"int8.onnx", "README.md"} <= files.keys()
    assert not {"config.json", "model.safetensors", "preprocessor_config.json"} & files.keys()
    [note] = [line for line in capsys.readouterr().err.splitlines() if "transformers" in line]
    assert "quantised" in note


def test_weights_that_do_not_answer_as_the_onnx_file_stay_here(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_variant("fp32", tiny_students.student())
    storage.save(paths.model("fp32"), tiny_students.student(seed=1))
    assert command.run(monkeypatch, "push fp32 me/clothes") == 0
    assert "model.safetensors" not in server.repositories["me/clothes"].files
    assert "config.json" not in server.repositories["me/clothes"].files
    assert str(paths.model("fp32")) in capsys.readouterr().err


def test_a_dry_run_lists_the_files_and_asks_no_server(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert command.run(monkeypatch, "push fp32 me/clothes --dry-run") == 0
    assert server.requests == []
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[1] for line in lines[:-1]}
    assert {"fp32.onnx", "README.md", "config.json", "model.safetensors", "SHA256SUMS"} <= names
    assert f"{server.address}/me/clothes" in lines[-1]


def test_a_second_push_replaces_its_files_and_keeps_others(server: Hub, tmp_path: Path) -> None:
    for text in ("old", "new"):
        files = some_files(tmp_path / text)
        (files / "labels.json").write_text(text)
        hub.upload(files, "me/clothes", private=False, message=f"Upload {text}")
        server.repositories["me/clothes"].files["notes.txt"] = b"mine"
    repository = server.repositories["me/clothes"]
    assert (repository.files["notes.txt"], repository.files["labels.json"]) == (b"mine", b"new")
    assert repository.commits == ["Upload old", "Upload new"]
    assert len([line for line in server.requests if line.startswith("PUT")]) == 1  # a large file not again


def some_files(folder: Path) -> Path:
    """A folder with a card and a large file."""
    folder.mkdir()
    (folder / "README.md").write_text(CARD.format(license="mit", variant="fp32"))
    (folder / "fp32.onnx").write_bytes(b"the network")
    return folder


def failure(
    capsys: pytest.CaptureFixture[str], repository: str = "me/clothes", *, private: bool = False
) -> str:
    """The one line on standard error of an upload that fails within some seconds."""
    folder = some_files(Path(huggingface_hub.constants.HF_TOKEN_PATH).with_name("files"))
    began = time.monotonic()
    with pytest.raises(SystemExit) as caught, process.one_line_errors():
        hub.upload(folder, repository, private=private, message="Upload")
    assert caught.value.code == 1
    assert time.monotonic() - began < 15
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert small_hub.TOKEN not in out + err
    return line


@pytest.mark.parametrize(
    "name", ["clothes", "me/clothes/too", "me/ünknown", "me/a b", "me/x.git", "/", "../up"]
)
def test_a_name_that_no_repository_has_is_refused_before_anything_is_asked(
    name: str, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repr(name) in failure(capsys, name)
    assert server.requests == []


PLACES = ("repos/create", "validate-yaml", "preupload", "objects/batch", "PUT /objects", "/commit/")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 503])
@pytest.mark.parametrize("place", PLACES)
def test_a_refusal_is_one_line_with_its_status(
    place: str, status: int, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library waits before it repeats
    server.refusals[place] = status, f"not now, {small_hub.TOKEN}"
    if (place, status) == ("repos/create", 409):
        server.refusals[place] = status, "Cannot create repo: another conflicting operation is in progress"
    line = failure(capsys)
    assert f"{server.address}/me/clothes" in line
    if (place, status) != ("validate-yaml", 400):  # which the library takes for its own words
        assert str(status) in line
    repository = server.repositories.get("me/clothes")
    assert repository is None or not repository.files


@pytest.mark.parametrize("place", ["repos/create", "validate-yaml", "preupload", "/commit/"])
def test_a_hub_that_says_nothing_is_one_line_in_some_seconds(
    place: str, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(hub, "PAUSE_SECONDS", 0.5)
    server.waits[place] = threading.Event()
    line = failure(capsys)
    assert "no" in line
    assert "answer" in line


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", small_servers.BEHAVIOURS)
def test_a_server_that_is_no_hub_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "FIRST_SECONDS", 1.0)
    with small_servers.serve(small_servers.BEHAVIOURS[name]) as address:
        point_to(address, monkeypatch)
        assert f"{address}/me/clothes" in failure(capsys)


@pytest.mark.usefixtures("project")
def test_an_address_where_nobody_listens_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    point_to(address, monkeypatch)
    assert "refused" in failure(capsys).lower()


@pytest.mark.usefixtures("project")
def test_a_host_that_does_not_exist_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point_to("http://no-such-host.invalid", monkeypatch)
    assert "no-such-host.invalid" in failure(capsys)


def test_offline_mode_is_one_line(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failure(capsys)
    assert server.requests == []


def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def odd_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{small_hub.TOKEN}\u00e9\x01")


def token_with_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{small_hub.TOKEN}\x0bx")


def wrong_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")


@pytest.mark.parametrize("break_it", [no_token, odd_token, token_with_a_line_break, wrong_token])
def test_a_token_that_is_missing_or_wrong_is_one_line(
    break_it: Callable[[pytest.MonkeyPatch], None],
    server: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_it(monkeypatch)
    line = failure(capsys)
    assert "token" in line
    assert "hf_another" not in line
    assert not server.repositories


def test_the_token_of_a_login_is_used(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    Path(huggingface_hub.constants.HF_TOKEN_PATH).write_text(f"{small_hub.TOKEN}\n")
    assert command.run(monkeypatch, "push int8 me/clothes") == 0
    assert "int8.onnx" in server.repositories["me/clothes"].files


def test_a_public_repository_gets_nothing_that_is_to_be_private(
    server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    server.repositories["me/clothes"] = small_hub.Repository(private=False)
    assert "--private" in failure(capsys, private=True)
    assert server.repositories["me/clothes"].files == {}


def test_the_token_is_not_shown_even_when_the_library_logs_everything(server: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path), "HF_DEBUG": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_TOKEN": small_hub.TOKEN}
    server.refusals["/commit/"] = 500, small_hub.TOKEN
    some_files(tmp_path / "files")
    script = f"""
        import logging
        from pathlib import Path
        from pipeline.running.process import one_line_errors
        from pipeline.shipping import hub
        logging.basicConfig(level=logging.DEBUG)
        with one_line_errors():
            hub.upload(Path({str(tmp_path / "files")!r}), "me/clothes", private=False, message="Upload")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "POST" in done.stderr  # it does log
    assert small_hub.TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "500" in line
    assert server.objects
