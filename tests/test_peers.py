"""What peers' benchmarks make of measurements, and that a peer can be run."""

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import students
from benchmarks import int8_peers, pruning_peers, side_by_side
from benchmarks.int8_peers import PeerError
from benchmarks.side_by_side import Answers, Row
from pipeline.distillation.settings import StudentTraining
from pipeline.models.costs import count_macs
from pipeline.models.layers import trace
from pipeline.models.storage import Model
from pipeline.onnx import export
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract
from tests import tiny_students

SIZE = 32


def answers(wrong: int) -> Answers:
    """Answers to 1,000 images, of which the first ``wrong`` are wrong."""
    predictions = np.arange(1000) < wrong
    return Answers(predictions.astype(np.int64), ~predictions)


def row(wrong: int, size: int, ratio: float) -> Row:
    return {
        "top1": 1 - wrong / 1000,
        "size_bytes": size,
        "ratio": ratio,
        "ratio_lo": 0.95 * ratio,
        "ratio_hi": 1.05 * ratio,
    }


def verdicts(ours: tuple[int, int, float], peer: tuple[int, int, float]) -> dict[str, str]:
    rows = {"a": row(*ours), "b": row(*peer), "c": row(900, 10**9, 0.1)}
    seen = {"a": answers(ours[0]), "b": answers(peer[0]), "c": answers(900)}
    found = side_by_side.verdicts(rows, seen, ["a"], ["b", "c"])
    assert {verdict["peer"] for verdict in found.values()} == {"b"}
    return {column: verdict["verdict"] for column, verdict in found.items()}


def test_what_intervals_cannot_tell_apart_is_tied_with_the_best_peer() -> None:
    assert verdicts((102, 1000, 2.0), (100, 995, 2.1)) == {
        "top1": "tied",
        "size_bytes": "tied",
        "ratio": "tied",
    }


def test_the_best_and_the_one_behind_are_called_so_in_each_column() -> None:
    assert verdicts((50, 900, 3.0), (100, 1000, 2.0)) == {
        "top1": "best",
        "size_bytes": "best",
        "ratio": "best",
    }
    behind = {"top1": "behind", "size_bytes": "behind", "ratio": "behind"}
    assert verdicts((100, 1000, 2.0), (50, 900, 3.0)) == behind


def test_accuracy_is_paired_with_the_reference_image_by_image() -> None:
    found = side_by_side.accuracy(answers(110), answers(100))
    assert (found["top1"], found["delta"], found["agreement"]) == pytest.approx((0.89, -0.01, 0.99))
    assert found["delta_hi"] < 0  # ten images lost and none gained


def test_a_tool_may_have_a_python_of_its_own_and_wrong_ones_are_named(tmp_path: Path) -> None:
    assert int8_peers.pythons([f"nncf={sys.executable}"])["nncf"] == sys.executable
    with pytest.raises(ValueError, match="with a tool of onnxruntime, nncf, aimet, modelopt"):
        int8_peers.pythons([f"unknown={sys.executable}"])
    with pytest.raises(ValueError, match="cannot be run"):
        int8_peers.pythons([f"nncf={tmp_path / 'absent'}"])


def test_why_a_tool_failed_is_its_last_word_or_the_signal() -> None:
    assert int8_peers.reason(1, ["Traceback", "ValueError: no", "", " "]) == "ValueError: no"
    assert int8_peers.reason(-9, ["working"]) == "ended by signal 9"


@pytest.fixture(scope="module")
def parent() -> Model:
    """A tiny student with statistics that matter."""
    torch.manual_seed(0)
    arguments = {"classes": 3, "channels": list(scaled_channels(0.5)), "size": SIZE}
    module = students.build("mobilenet_v1", arguments)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.bias, std=0.5)
    card = tiny_students.card(arguments, InputContract(SIZE), variant="fp32", labels=("a", "b", "c"))
    return Model(module.eval(), card)


@pytest.fixture
def made(parent: Model, tmp_path: Path) -> Namespace:
    """The parent's file and its calibration images."""
    file, images = tmp_path / "fp32.onnx", tmp_path / "calibration.npy"
    export.export(parent, file, export.metadata_for(parent.card, None))
    np.save(images, np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8))
    return Namespace(file=file, images=images, target=tmp_path / "int8.onnx")


def asked(tool: str, python: str) -> Namespace:
    return Namespace(python={**int8_peers.pythons([]), tool: python}, rounding=1, timeout=120)


def test_a_peers_file_takes_raw_pixels_says_what_the_parent_says_and_runs_in_int8(made: Namespace) -> None:
    facts = int8_peers._make(
        "onnxruntime-per-channel", made.file, made.images, made.target, asked("onnxruntime", sys.executable)
    )
    assert facts["version"]
    metadata = [{p.key: p.value for p in onnx.load(file).metadata_props} for file in (made.file, made.target)]
    assert metadata[0] == metadata[1]
    assert side_by_side.fault(made.target) is None
    assert side_by_side.convolutions(made.target) == (27, 27)
    assert side_by_side.convolutions(made.file) == (0, 27)


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is not None, reason="it is installed here")
def test_a_peer_that_is_not_installed_is_told_in_one_line(made: Namespace) -> None:
    with pytest.raises(PeerError, match=r"^nvidia-modelopt is not installed in [^\n]+$"):
        int8_peers._make("modelopt", made.file, made.images, made.target, asked("modelopt", sys.executable))


def test_a_file_that_the_runtime_refuses_is_found_before_it_is_measured(made: Namespace) -> None:
    file = onnx.load(made.file)
    file.graph.node[2].op_type = "Unheard"
    onnx.save(file, made.target)
    assert "Unheard" in (side_by_side.fault(made.target) or "")


def test_nni_comes_within_two_per_cent_of_the_wanted_macs(parent: Model) -> None:
    whole = count_macs(parent.module, SIZE)
    network, ratio = pruning_peers.at_macs(pruning_peers.nni_l1_groups, parent, whole // 2)
    assert count_macs(network, SIZE) == pytest.approx(whole / 2, rel=pruning_peers.SAME_MACS)
    assert 0 < ratio < 1
    assert trace(network).layers.keys() == trace(parent.module).layers.keys()


def test_the_search_comes_as_near_as_the_steps_of_a_tool_allow(parent: Model) -> None:
    """A tool that takes three quarters or nothing: of 90 % of the work, nothing is nearer."""

    def steps(module: nn.Module, ratio: float) -> nn.Module:
        return module if ratio < 0.6 else pruning_peers.nni_l1_groups(module, 0.75)

    whole = count_macs(parent.module, SIZE)
    network, ratio = pruning_peers.at_macs(steps, parent, int(0.9 * whole))
    assert count_macs(network, SIZE) == whole
    assert ratio < 0.6


def test_without_epochs_peers_are_not_fine_tuned_either() -> None:
    training = {"epochs": 0.5, "batch_size": 8, "learning_rate": 0.1, "objective": {}}
    settings = {**StudentTraining.model_validate(training).model_dump(), "criterion": "l1"}
    assert cast(StudentTraining, pruning_peers.recipe(settings, None)).epochs == 0.5
    assert cast(StudentTraining, pruning_peers.recipe(settings, 0.25)).epochs == 0.25
    assert pruning_peers.recipe(settings, 0) is None
    assert pruning_peers.recipe({**settings, "epochs": 0}, None) is None
