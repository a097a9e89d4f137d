"""The initial weights of a student: read before the teacher is trained, and part of a mean afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import students
from pipeline import parameters, paths
from pipeline.parameters import ParameterError
from pipeline.settings import merge
from pipeline.stages import distill, label, teach
from pipeline.training import norms
from students.mobilenet_v1 import scaled_channels
from teachers.errors import WeightsError
from tests import odd_onnx

ROOT = Path(__file__).parents[1]
WIDTH = 0.25


@pytest.fixture(autouse=True)
def folder(colours: Path) -> Path:
    """The working folder, with a teacher that knows its classes."""
    odd_onnx.write(colours / "box.onnx")
    return colours


def configure(start: str | None = "start.safetensors", **changes: Any) -> None:
    """Write parameters in which ``fp32`` starts from a file."""
    shared: dict[str, Any] = {
        "compute": {"workers": 0, "threads": 1, "precision": "32-true"},
        "views": {"per_image": 1},
        "student": {"size": 32, "width": WIDTH, "init": start and {"source": "torch", "path": start}},
        "distill": {"epochs": 2.0, "batch_size": 8, "phases": [], "learning_rate": 0.01},
        "data": {"source": "folder", "path": ".", "download": None},
        "teacher": odd_onnx.TEACHER,
    }
    values = yaml.safe_load((ROOT / paths.PARAMETERS).read_text())
    values["variants"] = {"fp32": {"parent": "teacher", "op": "distill"}}
    Path(paths.PARAMETERS).write_text(yaml.safe_dump(merge(merge(values, shared), changes)))


def write_start(classes: int = 3, width: float = WIDTH) -> dict[str, Tensor]:
    """Random weights in `start.safetensors`."""
    torch.manual_seed(1)
    arguments = {"channels": scaled_channels(width), "classes": classes}
    tensors = students.build("mobilenet_v1", arguments).state_dict()
    save_file(tensors, "start.safetensors")
    return tensors


@pytest.fixture
def labelled(folder: Path) -> dict[str, Tensor]:
    """The initial weights, beside a teacher with stored answers."""
    assert folder == Path.cwd()
    start = write_start()
    configure()
    teach.main()
    label.main()
    return start


def trained(start_share: float | str, name: str = "fp32") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and applied settings of a variant; ``child`` has ``fp32`` as its parent."""
    child = {"parent": "fp32", "op": "distill"}
    configure(distill={"start_share": start_share}, variants={"child": child} if name == "child" else {})
    distill.main(name)
    model = paths.model(name)
    return load_file(model / paths.WEIGHTS), json.loads((model / paths.CARD).read_text())["settings"]


def assert_mean(mean: dict[str, Tensor], trained: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    """A quarter of the weights before the training."""
    for name, value in mean.items():
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * trained[name] + 0.25 * start[name])


def test_the_variant_is_the_mean_of_the_start_and_what_training_makes_of_it(
    labelled: dict[str, Tensor],
) -> None:
    (alone, settings), (mean, applied) = trained(0.0), trained(0.25)
    name = "blocks.3.pointwise.conv.weight"
    assert (alone[name] - labelled[name]).abs().max() > 0.01, "the training must change something"
    assert_mean(mean, alone, labelled)
    # Random weights are far away, so that the mean of the statistics is good for nothing.
    tried = {(one["start_share"], one["statistics"]): one["cross_entropy"] for one in applied["candidates"]}
    assert list(tried) == [(0.0, "new"), (0.25, "mean"), (0.25, "new")]
    assert tried[0.25, "new"] < tried[0.25, "mean"]
    name = "blocks.3.pointwise.norm.running_mean"
    assert (mean[name] - 0.75 * alone[name] - 0.25 * labelled[name]).abs().max() > 0.001
    assert "candidates" not in settings


@pytest.mark.usefixtures("labelled")
def test_a_variant_is_averaged_with_its_parent() -> None:
    parent, _ = trained(0.0)
    alone, _ = trained(0.0, "child")
    mean, applied = trained(0.25, "child")
    assert applied["start_share"] == 0.25
    assert_mean(mean, alone, parent)


@pytest.mark.usefixtures("labelled")
def test_auto_keeps_the_share_with_the_lowest_cross_entropy() -> None:
    _, applied = trained("auto")
    best = min(applied["candidates"], key=lambda one: one["cross_entropy"])
    assert len(applied["candidates"]) == 7
    assert applied["start_share"] == best["start_share"]


def test_statistics_of_the_start_are_kept_where_they_are_better(
    labelled: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the images of the training were worth nothing for statistics."""
    alone, _ = trained(0.0)
    settle, settled = norms.settle, []

    def settle_and_spoil(fabric: Any, module: nn.Module, *others: Any) -> None:
        settle(fabric, module, *others)
        settled.append(module)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_var is not None and len(settled) > 1:
                part.running_var.fill_(1e-2)

    monkeypatch.setattr(norms, "settle", settle_and_spoil)
    mean, applied = trained(0.25)
    assert applied["candidates"][1]["cross_entropy"] < applied["candidates"][2]["cross_entropy"]
    name = "blocks.3.pointwise.norm.running_var"
    torch.testing.assert_close(mean[name], 0.75 * alone[name] + 0.25 * labelled[name])
    assert_mean(mean, alone, labelled)


@pytest.mark.parametrize(
    ("classes", "width", "share", "expected"),
    [
        (3, 0.5, 0.0, r"^the state dict start\.safetensors: widths .* are expected"),
        (4, WIDTH, 0.5, r"^distill\.start_share = 0\.5: the state dict .* do not know the classes"),
    ],
)
def test_a_start_that_does_not_fit_ends_the_run_before_the_teacher(
    classes: int, width: float, share: float, expected: str
) -> None:
    write_start(classes, width)
    configure(distill={"start_share": share})
    with pytest.raises(WeightsError, match=expected) as error:
        teach.main()
    assert len(str(error.value).splitlines()) == 1
    assert not paths.TEACHER.exists()


def test_new_classes_need_no_start_that_knows_them() -> None:
    write_start(4)
    configure()
    teach.main()
    assert paths.TEACHER.exists()


def test_random_weights_are_good_for_no_mean() -> None:
    configure(start=None, variants={"fp32": {"start_share": 0.5}})
    with pytest.raises(ParameterError, match=r"variants\.fp32\.start_share = 0\.5: student\.init is null"):
        parameters.load()


def test_a_file_of_weights_that_is_not_there_is_found_at_once() -> None:
    configure(start="nothing.safetensors")
    with pytest.raises(ParameterError, match=r"student\.init\.path = 'nothing\.safetensors': no such file"):
        parameters.load()
