"""What peers' benchmarks make of measurements, and that a peer can be run."""

import importlib.util
import itertools
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import students
from benchmarks import (
    int8_peers,
    pruning_makers,
    pruning_peers,
    published_network,
    published_pruning,
    side_by_side,
)
from benchmarks.int8_peers import PeerError
from benchmarks.side_by_side import Answers, Row
from pipeline import paths
from pipeline.data import sources, splits, store, writing
from pipeline.data.batches import Request, ViewSet
from pipeline.distillation.labels import LabelError
from pipeline.distillation.settings import Objective, StudentTraining
from pipeline.distillation.training_data import TrainingData
from pipeline.models import storage
from pipeline.models.costs import count_macs
from pipeline.models.layers import trace
from pipeline.models.storage import Model
from pipeline.onnx import export
from pipeline.parameters import ParameterError, Prune
from pipeline.training import compute
from pipeline.training.settings import ComputeSettings
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


def test_files_that_know_other_classes_too_are_also_compared_among_those_of_the_images(
    parent: Model, prepared: Path, tmp_path: Path
) -> None:
    """Its greatest logit is always that of `b`, and of the images' classes that of `green`."""
    labels = ("a", "blue", "green", "b", "red")
    arguments = {**parent.card.arguments, "classes": len(labels)}
    module = students.build("mobilenet_v1", arguments).eval()
    nn.init.zeros_(module.get_parameter("classifier.weight"))
    module.get_parameter("classifier.bias").data = torch.tensor([0.0, 1.0, 2.0, 9.0, 0.0])
    card = replace(parent.card, arguments=arguments, labels=labels)
    export.export(Model(module, card), tmp_path / "file.onnx", export.metadata_for(card, None))
    test = ViewSet(store.read(prepared, "test"), None, card.input)
    found = side_by_side.answer({"file": tmp_path / "file.onnx"}, test, threads=1)["file"]
    row = side_by_side.accuracy(found, found)
    assert (row["top1"], row["shown_top1"]) == (0, pytest.approx((test.images.labels == 1).mean()))
    assert "shown_top1" not in side_by_side.accuracy(answers(1), answers(2))


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
    network, ratio = pruning_peers.at_macs(pruning_makers.nni_l1_groups, parent, whole // 2)
    assert count_macs(network, SIZE) == pytest.approx(whole / 2, rel=pruning_peers.SAME_MACS)
    assert 0 < ratio < 1
    assert trace(network).layers.keys() == trace(parent.module).layers.keys()


def test_the_search_comes_as_near_as_the_steps_of_a_tool_allow(parent: Model) -> None:
    """A tool that takes three quarters or nothing: of 90 % of the work, nothing is nearer."""

    def steps(module: nn.Module, ratio: float) -> nn.Module:
        return module if ratio < 0.6 else pruning_makers.nni_l1_groups(module, 0.75)

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


@pytest.mark.parametrize(
    ("parents", "refused"),
    [
        ({"pruned": "fp32", "int8": "pruned"}, None),
        ({"pruned": "hard"}, "pruned"),
        ({"int8": "pruned", "pruned": "fp32"}, "int8"),  # the first one must be cut from the parent itself
        ({"pruned": "fp32", "int8": "elsewhere"}, "int8"),
    ],
)
def test_variants_beside_the_peers_descend_from_what_these_cut(
    parent: Model, tmp_path: Path, parents: dict[str, str], refused: str | None
) -> None:
    own = {
        name: replace(parent, card=replace(parent.card, variant=name, parent=start))
        for name, start in parents.items()
    }
    for name, model in own.items():
        storage.save(tmp_path / name, model)
    if refused is None:
        pruning_peers._check_descent(own, "fp32", tmp_path)
        return
    with pytest.raises(ParameterError, match=refused):
        pruning_peers._check_descent(own, "fp32", tmp_path)


@pytest.fixture
def published(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Model]:
    """Prepared images of three classes of ImageNet, and networks that know all of them, by their seeds."""
    monkeypatch.chdir(tmp_path)
    folders = zip(sorted(photographs.iterdir()), ("n01440764", "n02102040", "n03888257"), strict=True)
    Path("photographs").mkdir()
    for folder, name in folders:
        (Path("photographs") / name).symlink_to(folder)
    listing = sources.folder(Path("photographs").absolute())
    made = splits.assign(listing.labelled, train=None, val=0.2, test=0.25, seed=0)
    writing.write(paths.DATA, listing, made, {"source": "folder", "path": "x", "license": "CC0-1.0"})
    labels = published_network.images()[0].classes

    def network(seed: int) -> Model:
        arguments = {**tiny_students.ARGUMENTS, "classes": len(labels), "size": SIZE}
        card = tiny_students.card(arguments, InputContract(SIZE), variant="fp32", labels=labels)
        return Model(tiny_students.random_network(arguments, seed), card)

    return network


def test_the_published_networks_answers_are_stored_once_and_for_it_alone(
    published: Callable[[int], Model],
) -> None:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    parent = published(0)
    data = published_pruning.learnt_from(fabric, parent, 0)
    batch = data.train_set[request(data, 8)]
    assert batch.answers is not None
    expected = parent.module(data.train_set.contract.normalise(batch.images))
    torch.testing.assert_close(batch.answers.float(), expected, atol=0.02, rtol=0.002)
    written = (paths.LABELS / "card.json").stat().st_mtime_ns
    published_pruning.learnt_from(fabric, parent, 0)
    assert (paths.LABELS / "card.json").stat().st_mtime_ns == written
    with pytest.raises(LabelError, match="another teacher"):
        published_pruning.learnt_from(fabric, published(1), 0)


def request(data: TrainingData, count: int) -> Request:
    return Request(range(count), 0, data.train_set.contract.size)


def test_what_is_fitted_and_what_is_trained_keep_the_same_channels(
    published: Callable[[int], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_pruning.layer_costs, "open_costs", lambda _: Costs())
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    parent = published(0)
    data = published_pruning.learnt_from(fabric, parent, 0)
    settings = Prune(
        macs=0.5,
        criterion="l1",
        shape="uniform",
        multiple=8,
        epochs=1,
        batch_size=8,
        learning_rate=0.001,
        objective=Objective(kl=1.0),
    )
    fitted, tuned, plain = published_pruning._prune(
        fabric, parent, data, "pruned-50", settings, starts=("fitted", "plain"), seed=0, workers=0
    )
    names = [model.card.variant for model in (fitted, tuned, plain)]
    assert names == ["pruned-50", "pruned-50-tuned", "pruned-50-plain"]
    assert fitted.card.arguments["channels"] == tuned.card.arguments["channels"]
    assert count_macs(tuned.module, SIZE) <= 0.5 * count_macs(parent.module, SIZE)
    assert (fitted.card.settings["epochs"], tuned.card.settings["epochs"]) == (0, 1)
    assert pruning_peers.recipe(fitted.card.settings, None) is None
    recipe = pruning_peers.recipe(tuned.card.settings, None)
    assert recipe == StudentTraining.model_validate(
        settings.model_dump(include={*StudentTraining.model_fields})
    )
    heads = [model.module.get_parameter("classifier.weight") for model in (fitted, tuned, plain)]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(heads, 2))


class Costs:
    """Layers that take no time worth measuring."""

    def milliseconds(self, *_: object) -> float:
        return 1.0
