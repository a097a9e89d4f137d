"""The initial weights of a student: read before the teacher is trained, and part of a mean afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import students
from pipeline import parameters, paths
from pipeline.data import sources, splits, writing
from pipeline.parameters import ParameterError
from pipeline.settings import merge
from pipeline.stages import distill, label, teach
from students.mobilenet_v1 import scaled_channels
from teachers.errors import WeightsError
from tests import odd_onnx

pytestmark = pytest.mark.usefixtures("folder")
ROOT = Path(__file__).parents[1]
WIDTH = 0.25


@pytest.fixture
def folder(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with prepared data of three classes and a teacher that knows them."""
    listing = sources.folder(photographs)
    made = splits.assign(listing.labelled, train=None, val=0.4, test=0.2, seed=0)
    facts = {"source": "folder", "path": "x", "license": "CC0-1.0"}
    writing.write(tmp_path / paths.DATA, listing, made, facts)
    odd_onnx.write(tmp_path / "box.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configure(start: str | None = "start.safetensors", **changes: Any) -> None:
    """Write parameters in which ``fp32`` starts from a file."""
    teacher = {
        "source": "onnx",
        "name": "box.onnx",
        "size": None,
        "input": {"interpolation": "bilinear"},
        "head": None,
        "full": None,
    }
    shared: dict[str, Any] = {
        "compute": {"workers": 0, "threads": 1, "precision": "32-true"},
        "views": {"per_image": 1},
        "student": {"size": 32, "width": WIDTH, "init": start and {"source": "torch", "path": start}},
        "distill": {"epochs": 2.0, "batch_size": 8, "phases": [], "learning_rate": 0.01},
        "data": {"source": "folder", "path": ".", "download": None},
        "teacher": teacher,
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


def trained(start_share: float) -> dict[str, Tensor]:
    configure(distill={"start_share": start_share})
    distill.main("fp32")
    return load_file(paths.model("fp32") / paths.WEIGHTS)


def test_the_variant_is_the_mean_of_the_start_and_what_training_makes_of_it() -> None:
    start = write_start()
    configure()
    teach.main()
    label.main()
    alone, mean, kept = trained(0.0), trained(0.25), trained(1.0)
    for name in ("blocks.3.pointwise.conv.weight", "blocks.3.pointwise.norm.running_mean"):
        assert (alone[name] - start[name]).abs().max() > 0.01, "the training must change something"
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * alone[name] + 0.25 * start[name])
            torch.testing.assert_close(kept[name], start[name])


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
    with pytest.raises(ParameterError, match=r"variants\.fp32\.start_share: student\.init is null"):
        parameters.load()
