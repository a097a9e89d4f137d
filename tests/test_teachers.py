import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.data.images import decode
from teachers import state_dicts
from teachers.contract import InputContract
from teachers.errors import TeacherError, WeightsError
from teachers.runtime import in_runtime
from teachers.sources import SOURCES
from teachers.teacher import Columns, columns, replace_heads


class Twice(nn.Module):
    """Twice the mean of each channel, by way of an operation."""

    def __init__(self, twice: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.unread = nn.Parameter(torch.zeros(1))
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(x.mean((2, 3)))


def test_in_the_runtime_a_network_answers_the_same_to_any_number_of_images() -> None:
    torch.manual_seed(0)
    teacher = SOURCES["efficientnet_lite"]("efficientnet_lite0", "default")
    network = Columns(teacher.module, (3, 1, 4)).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    inference = in_runtime(network, 64)
    assert str(inference).startswith("ONNX Runtime")
    fast = inference.module
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(fast(images), network(images), rtol=1e-4, atol=1e-5)
    assert in_runtime(fast, 64).module is fast


@pytest.mark.parametrize(
    "twice",
    [
        lambda x: torch.linalg.svdvals(torch.diag_embed(2 * x)),
        lambda x: 2 * x + torch.rand_like(x),
    ],
    ids=["unknown to the exporter", "another answer each time"],
)
def test_a_network_that_the_runtime_does_not_match_stays_what_it_is(
    twice: Callable[[Tensor], Tensor],
) -> None:
    network = Twice(twice)
    inference = in_runtime(network, 32)
    assert inference.module is network
    assert inference.engine.startswith("PyTorch")
    assert inference.reason
    exact = Twice(lambda x: 2 * x)
    assert in_runtime(exact, 32).module is not exact


PHOTOGRAPHS = Path(__file__).parents[2] / "shared/data/clothing-dataset-small/test"


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_efficientnet_lite_names_t_shirts(name: str) -> None:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no photographs at {PHOTOGRAPHS}")
    from timm.data.imagenet_info import ImageNetInfo

    teacher = SOURCES["efficientnet_lite"](name, "default")
    files = sorted((PHOTOGRAPHS / "t-shirt").glob("*.jpg"))[:6]
    assert len(files) == 6
    contract = teacher.input
    assert contract is not None
    images = [decode(file) for file in files]
    pixels = np.stack([np.asarray(contract.render(i, contract.centre_box(*i.size))) for i in images])
    with torch.no_grad():
        found = teacher.module.eval()(contract.normalise(torch.from_numpy(pixels))).argmax(1)
    names = [ImageNetInfo().index_to_description(int(index)) for index in found]
    assert sum("T-shirt" in name or "sweatshirt" in name for name in names) >= 4, names


def test_published_weights_know_the_names_and_synsets_of_imagenet() -> None:
    teacher = SOURCES["efficientnet_lite"]("efficientnet_lite0", "default")
    assert columns(teacher, ["Goldfish", "n01440764", "wine_bottle"]) == (1, 0, 907)
    with pytest.raises(TeacherError, match=r"2 logits for the class 'crane': 134: .*, 517: "):
        columns(teacher, ["crane"])
    assert SOURCES["efficientnet_lite"]("efficientnet_lite0", None).labels is None


@pytest.mark.parametrize(
    ("source", "name", "weights", "message"),
    [
        ("efficientnet_lite", "efficientnet_lite9", "default", "efficientnet_lite has efficientnet_lite0,"),
        ("efficientnet_lite", "efficientnet_lite0", "best", "takes `default` or null"),
        ("timm", "no_such_model", None, "timm model 'no_such_model'"),
        ("torchvision", "resnet18", "IMAGENET9", "must be one of default, IMAGENET1K_V1"),
        ("torchvision", "resnet", None, "torchvision model 'resnet'"),
    ],
)
def test_an_unknown_teacher_is_reported_in_one_line_with_what_is_allowed(
    source: str, name: str, weights: str | None, message: str
) -> None:
    with pytest.raises(TeacherError) as caught:
        SOURCES[source](name, weights)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("source", "name"), [("timm", "mobilenetv3_small_050"), ("torchvision", "resnet18")])
def test_any_models_head_can_be_replaced(source: str, name: str) -> None:
    teacher = SOURCES[source](name, None)
    replace_heads(teacher, 7)
    assert teacher.module.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 7)
    assert [type(teacher.module.get_submodule(path)) for path in teacher.heads] == [nn.Linear]


def test_normalising_gives_the_range_of_the_weights_in_channels_last() -> None:
    contract = InputContract(32, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    x = contract.normalise(images)
    expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(contract.mean).view(3, 1, 1)) / torch.tensor(
        contract.std
    ).view(3, 1, 1)
    torch.testing.assert_close(x, expected)
    assert x.is_contiguous(memory_format=torch.channels_last)
    plain = InputContract(32).normalise(images)
    torch.testing.assert_close(plain, images.permute(0, 3, 1, 2) / 255)


def test_a_contract_survives_json() -> None:
    contract = InputContract(260, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 0.89)
    assert InputContract.from_dict({**contract.to_dict(), "mean": [0.5] * 3, "std": [0.5] * 3}) == contract


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_a_checkpoint_with_code_is_rejected_and_none_of_it_runs(tmp_path: Path) -> None:
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save({"state_dict": Bomb()}, tmp_path / "modern.pth")
    for name in ("bomb.pth", "modern.pth"):
        with pytest.raises(WeightsError, match="run its code"):
            state_dicts.read(tmp_path / name)


def test_wrong_checkpoints_are_reported_with_what_is_wrong(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "w.safetensors")
    tensors = state_dicts.read(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w: 2 tensors are expected; 1 missing \(bias\)"):
        state_dicts.fill(nn.Linear(3, 2), tensors, "w")
    with pytest.raises(WeightsError, match=r"weight is \(2, 3\) instead of \(2, 4\)"):
        state_dicts.fill(nn.Linear(4, 2), tensors, "w")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:40])
    torch.save({"weight": torch.zeros(4)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:200])
    for name, words in (("cut.safetensors", "not an intact"), ("cut.pth", "not an intact .* is cut off")):
        with pytest.raises(WeightsError, match=words):
            state_dicts.read(tmp_path / name)
    with pytest.raises(WeightsError, match="no such file"):
        state_dicts.read(tmp_path / "absent.pth")
