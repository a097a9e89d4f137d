"""The description of a network, and the networks that it refuses."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import students
from pipeline.models.layers import NetworkError, trace, unit
from tests.tiny_students import UNEVEN


def test_every_layer_reads_the_output_of_the_one_before() -> None:
    network = trace(students.build("mobilenet_v1", {"classes": 3}))
    layers = network.layers
    assert len(layers) == 28
    assert network.stem == layers["stem"]
    assert network.head == layers["classifier"]
    assert layers["stem"].reads == "images"
    assert layers["blocks.3.pointwise"].reads == "blocks.3.depthwise"
    assert layers["blocks.4.depthwise"].reads == "blocks.3.pointwise"
    assert layers["classifier"].reads == "pool"
    assert network.pools == {"pool": "blocks.12.pointwise"}
    assert list(network.reads.items())[-2:] == [("pool", "blocks.12.pointwise"), ("classifier", "pool")]


def test_every_layer_but_the_last_has_one_reader() -> None:
    pairs = trace(students.build("mobilenet_v1", {"classes": 3})).neighbours()
    names = [(source.name, reader.name) for source, reader in pairs]
    assert len(names) == 27
    assert names[0] == ("stem", "blocks.0.depthwise")
    assert names[-1] == ("blocks.12.pointwise", "classifier")


def test_a_layer_knows_its_modules_and_its_clip() -> None:
    arguments = {"classes": 3, "channels": UNEVEN, "padding": "same", "activation": "relu6"}
    layers = trace(students.build("mobilenet_v1", arguments)).layers
    stem, pointwise, classifier = layers["stem"], layers["blocks.0.pointwise"], layers["classifier"]
    assert (stem.kind, stem.clip) == ("dense", 6.0)
    assert stem.steps == ("stem.pad", "stem.conv", "stem.norm", "stem.act")
    assert pointwise.steps == tuple(f"blocks.0.pointwise.{part}" for part in ("conv", "norm", "act"))
    assert layers["blocks.0.depthwise"].kind == "depthwise"
    assert (classifier.kind, classifier.clip, classifier.steps) == ("linear", None, ("classifier",))


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_running_the_steps_one_after_another_gives_the_logits(padding: str) -> None:
    module = students.build("mobilenet_v1", {"classes": 3, "channels": UNEVEN, "padding": padding}).eval()
    x = images = torch.rand(2, 3, 64, 64)
    for path in trace(module).steps:
        x = module.get_submodule(path)(x)
    assert torch.equal(x, module(images))


def test_a_copy_shares_the_description_and_not_the_weights() -> None:
    network = trace(students.build("mobilenet_v1", {"classes": 3}))
    copied = network.copy()
    assert copied.layers is network.layers
    assert copied.part("stem") is not network.part("stem")


class Residual(nn.Module):
    """Two convolutions, the second of which is added to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = unit(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.second = unit(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) + x


def test_a_residual_addition_is_refused_in_one_line() -> None:
    with pytest.raises(NetworkError, match=r"`add` .* reads second_act, first_act; .*residual") as caught:
        trace(Residual())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"conv": nn.Conv2d(3, 4, 1), "classifier": nn.Linear(4, 2)}, "classifier follows conv"),
        ({"conv": nn.Conv2d(3, 4, 1), "act": nn.Hardswish()}, "act is a Hardswish"),
        ({"norm": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 4, 1)}, "norm is a BatchNorm2d"),
    ],
)
def test_a_module_that_no_layer_has_there_is_named(parts: dict[str, nn.Module], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        trace(nn.Sequential(OrderedDict(parts)))


def test_a_module_that_runs_twice_is_named() -> None:
    act = nn.ReLU()
    shared = nn.Sequential(nn.Conv2d(3, 4, 1), act, nn.Conv2d(4, 4, 1), act)
    with pytest.raises(NetworkError, match="module 1 runs twice"):
        trace(shared)
