"""The adaptation of a teacher: what its two trainings change and what they leave as it was published."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import students
from pipeline.data import store
from pipeline.data.batches import ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import adaptation
from pipeline.training import compute
from pipeline.training.loop import Run
from pipeline.training.settings import ComputeSettings, TrainingSettings
from teachers.contract import InputContract
from teachers.teacher import Teacher

CONTRACT = InputContract(32)
SPACE = ViewSpace(seed=0, crop_scale=(0.6, 1.0), crop_ratio=(0.8, 1.25))
TRAINING = TrainingSettings(epochs=2.0, batch_size=8, learning_rate=0.01)


@pytest.fixture(scope="module")
def sets(prepared: Path) -> dict[str, ViewSet]:
    return {split: ViewSet(store.read(prepared, split), SPACE, CONTRACT) for split in ("train", "val")}


def published() -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = students.build("mobilenet_v1", {"classes": 5, "channels": (8,) * 14})
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.get_buffer("running_mean"), 0.1, 0.2)
    return module.state_dict()


def adapt(
    sets: Mapping[str, ViewSet], folder: Path, **parts: TrainingSettings | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State of a teacher before and after its adaptation."""
    before = {name: value.clone() for name, value in published().items()}
    module = students.build("mobilenet_v1", {"classes": 5, "channels": (8,) * 14})
    module.load_state_dict(before)
    teacher = Teacher(module.eval(), 5, CONTRACT, ("classifier",), "a test", None)
    runs = {part: Run(part, folder / part, part) for part in parts}
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    adapted, _ = adaptation.adapt(fabric, teacher, sets, parts, seed=0, workers=0, runs=runs)
    assert adapted.labels == sets["train"].images.classes
    return before, adapted.module.state_dict()


def test_a_head_alone_is_trained_on_what_the_published_network_computes(
    sets: dict[str, ViewSet], tmp_path: Path
) -> None:
    before, after = adapt(sets, tmp_path, head=TRAINING, full=None)
    for name, value in after.items():
        if not name.startswith("classifier"):
            assert torch.equal(value, before[name]), name
    assert after["classifier.weight"].shape == (3, 8)


def test_statistics_are_those_of_the_data_if_the_whole_network_is_trained(
    sets: dict[str, ViewSet], tmp_path: Path
) -> None:
    before, after = adapt(sets, tmp_path, head=TRAINING, full=TRAINING)
    means = [name for name in after if name.endswith("running_mean")]
    assert means
    assert not any(torch.equal(after[name], before[name]) for name in means)
