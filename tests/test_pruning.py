import copy
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree

import students
from pipeline.models import storage
from pipeline.models.costs import count_macs
from pipeline.models.storage import Card, Model
from pipeline.pruning import channel_sensitivity, masks, reconstruction, surgery, widths
from pipeline.pruning.masks import Criterion, Loss
from pipeline.training import norms
from teachers.contract import InputContract
from tests.tiny_students import ARGUMENTS, CHANNELS, random_network

SIZE = 32
"""Side of the images in pixels."""
NARROW = [8, 16, 24, 16, 8, 32, 24, 40, 16, 8, 40, 24, 16, 48]
LAST = "blocks.12.pointwise"
UNIMPORTANT = [3, 7, 8, 20, 21, 30, 41, 47]

REBUILD = """
import sys
from pathlib import Path
import numpy as np
import torch
from pipeline.models import storage
torch.set_num_threads(1)
folder = Path(sys.argv[1])
model = storage.load(folder)
assert "nni" not in sys.modules
with torch.no_grad():
    logits = model.module(torch.from_numpy(np.load(folder / "images.npy")))
np.save(folder / "logits.npy", logits.numpy())
"""


def losses() -> list[Loss]:
    """Cross entropy with five classes on two batches."""
    images, labels = torch.rand(2, 8, 3, SIZE, SIZE), torch.arange(8) % 5

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch), labels)

    return [partial(loss, batch=batch) for batch in images]


def largest_within(
    macs: float, parent: nn.Module, arguments: dict[str, Any], *, size: int, multiple: int
) -> tuple[int, ...]:
    """Channel counts of the uniform shape at a share of the parent's multiply-accumulates."""
    return widths.largest_within(
        "mobilenet_v1",
        arguments,
        widths.output_channels(parent),
        cost=widths.macs_cost(macs, parent, size),
        multiple=multiple,
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("criterion", "activation"),
    [("l1", "relu"), ("l2", "relu"), ("fpgm", "relu"), ("taylor", "relu"), ("l1", "relu6")],
)
def test_pruned_logits_are_those_of_the_masked_parent(criterion: Criterion, activation: str) -> None:
    arguments = {**ARGUMENTS, "activation": activation}
    parent, batches = random_network(arguments), losses()
    pruned, pruned_arguments = surgery.remove_channels(
        parent, arguments, NARROW, size=SIZE, criterion=criterion, losses=batches
    )
    removal = masks.channel_masks(parent, surgery.convolution_channels(pruned), criterion, SIZE, batches)
    masked = masks.apply_masks(parent, removal)
    assert surgery.check_same_logits(masked, pruned, SIZE) <= surgery.TOLERANCE
    images = torch.rand(4, 3, SIZE, SIZE)
    assert not torch.allclose(parent(images), pruned(images), rtol=0.1)
    rebuilt = students.build("mobilenet_v1", pruned_arguments)
    rebuilt.load_state_dict(pruned.state_dict())


@pytest.mark.parametrize(("macs", "multiple"), [(0.8, 8), (0.3, 4)])
def test_the_budget_is_kept_and_used_up(macs: float, multiple: int) -> None:
    arguments = {"classes": 10}
    parent = students.build("mobilenet_v1", arguments)
    parent_channels, parent_macs = widths.output_channels(parent), count_macs(parent, 64)
    channels = largest_within(macs, parent, arguments, size=64, multiple=multiple)

    def share(counts: tuple[int, ...]) -> float:
        return count_macs(students.build("mobilenet_v1", {**arguments, "channels": counts}), 64) / parent_macs

    assert macs - 0.01 < share(channels) <= macs
    for count, most in zip(channels, parent_channels, strict=True):
        assert count % multiple == 0
        assert 0 < count <= most
    for layer, count in enumerate(channels):
        if count + multiple <= parent_channels[layer]:
            assert share((*channels[:layer], count + multiple, *channels[layer + 1 :])) > macs


def test_the_uniform_shape_keeps_the_same_share_of_every_layer() -> None:
    parent = students.build("mobilenet_v1", {"classes": 10})
    channels = largest_within(0.5, parent, {"classes": 10}, size=64, multiple=4)
    pairs = zip(channels, widths.output_channels(parent), strict=True)
    ratios = [count / most for count, most in pairs if most >= 96]
    assert len(ratios) == 12
    assert max(ratios) - min(ratios) < 0.06


def test_the_stem_and_the_depthwise_layer_after_it_lose_the_same_channels() -> None:
    parent = random_network()
    channels = surgery.convolution_channels(parent) | {"stem.conv": 8, "blocks.0.depthwise.conv": 8}
    removal = masks.channel_masks(parent, channels, "l1", SIZE)
    stem, partner = (
        removal[name]["weight"].flatten(1).amax(1) for name in ("stem.conv", "blocks.0.depthwise.conv")
    )
    assert torch.equal(stem, partner)
    assert stem.sum() == 8
    for norm in ("stem.norm", "blocks.0.depthwise.norm"):
        assert torch.equal(removal[norm]["weight"], stem)
        assert torch.equal(removal[norm]["bias"], stem)


def give_small_norms(parent: nn.Module) -> None:
    parent.get_parameter(f"{LAST}.conv.weight")[UNIMPORTANT] *= 0.01


def move_to_the_middle_of_all(parent: nn.Module) -> None:
    filters = parent.get_parameter(f"{LAST}.conv.weight")
    filters[UNIMPORTANT] = filters.mean(0, keepdim=True) + 0.01 * filters[UNIMPORTANT]


def take_influence_on_the_loss(parent: nn.Module) -> None:
    parent.get_parameter(f"{LAST}.norm.bias").fill_(3.0)  # all channels fire
    parent.get_parameter(f"{LAST}.conv.weight")[UNIMPORTANT] *= 10
    parent.get_parameter("classifier.weight")[:, UNIMPORTANT] = 0.0


@pytest.mark.parametrize(
    ("criterion", "make_unimportant"),
    [
        ("l1", give_small_norms),
        ("l2", give_small_norms),
        ("fpgm", move_to_the_middle_of_all),
        ("taylor", take_influence_on_the_loss),
    ],
)
def test_a_criterion_removes_the_channels_that_it_calls_unimportant(
    criterion: Criterion, make_unimportant: Callable[[nn.Module], None]
) -> None:
    parent = random_network()
    with torch.no_grad():
        make_unimportant(parent)
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    removal = masks.channel_masks(parent, {f"{LAST}.conv": 40}, criterion, SIZE, losses())
    removed = (removal[f"{LAST}.conv"]["weight"].flatten(1).amax(1) == 0).nonzero().flatten().tolist()
    assert removed == UNIMPORTANT
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())
    assert all(parameter.grad is None for parameter in parent.parameters())


def test_removal_leaves_its_masks_as_they_were() -> None:
    parent = random_network()
    narrow = students.build("mobilenet_v1", {**ARGUMENTS, "channels": [n - 8 for n in CHANNELS]})
    removal = masks.channel_masks(parent, surgery.convolution_channels(narrow), "l1", SIZE)
    before = copy.deepcopy(removal)
    masks.remove_masked(parent, removal, SIZE)
    assert removal.keys() == before.keys()
    for path, targets in removal.items():
        assert all(torch.equal(mask, before[path][name]) for name, mask in targets.items())


def test_taylor_without_losses_is_rejected() -> None:
    with pytest.raises(ValueError, match="taylor"):
        masks.channel_masks(random_network(), {"stem.conv": 8}, "taylor", SIZE)


def test_a_layer_whose_channels_are_half_idle_loses_half_without_damage() -> None:
    parent = random_network()
    idle = slice(0, 20)
    with torch.no_grad():
        for name in ("conv.weight", "norm.weight", "norm.bias"):
            parent.get_parameter(f"blocks.6.pointwise.{name}")[idle] = 0.0
            parent.get_parameter(f"blocks.7.depthwise.{name}")[idle] = 0.0
    images = torch.rand(2, 8, 3, SIZE, SIZE)

    def settle(module: nn.Module) -> None:
        norms.reestimate(module, images)

    settled = copy.deepcopy(parent)
    settle(settled)
    answers = settled(images[0])

    @torch.no_grad()
    def distance(module: nn.Module) -> float:
        return float((module(images[0]) - answers).abs().mean() / answers.std())

    damages = channel_sensitivity.measure(
        parent, ARGUMENTS, ratios=(0.25, 0.5), settle=settle, score=distance, criterion="l2"
    )
    assert list(damages) == ["stem", *(f"blocks.{n}.pointwise" for n in range(13))]
    assert damages["blocks.6.pointwise"][0.5] < 1e-3
    others = [by_ratio[0.5] for path, by_ratio in damages.items() if path != "blocks.6.pointwise"]
    assert min([damages["blocks.6.pointwise"][0.25], *others]) > 1e-2


def test_a_new_process_rebuilds_a_pruned_student_from_its_folder_with_the_same_logits(tmp_path: Path) -> None:
    parent = random_network()
    norms.reestimate(parent, torch.rand(2, 16, 3, 64, 64))
    module, arguments = surgery.remove_channels(parent, ARGUMENTS, NARROW, size=64, criterion="fpgm")
    card = Card(
        variant="pruned",
        parent="fp32",
        op="prune",
        architecture="mobilenet_v1",
        arguments=arguments,
        input=InputContract(64),
        labels=("a", "b", "c", "d", "e"),
        teacher="none",
        data_sha256="0",
        license="MIT",
        settings={},
    )
    storage.save(tmp_path, Model(module, card))
    images = torch.rand(4, 3, 64, 64)
    np.save(tmp_path / "images.npy", images.numpy())
    subprocess.run([sys.executable, "-c", REBUILD, str(tmp_path)], check=True)
    with torch.no_grad():
        expected = module(images)
    assert expected.std(dim=0).mean() > 0.1
    assert np.array_equal(np.load(tmp_path / "logits.npy"), expected.numpy())


def test_channels_that_never_fire_are_kept_unless_they_are_masked() -> None:
    parent = random_network()
    with torch.no_grad():
        parent.get_parameter("blocks.3.pointwise.norm.bias")[:20] = -100.0
    pruned, _ = surgery.remove_channels(parent, ARGUMENTS, NARROW, size=SIZE, criterion="l1")
    assert widths.output_channels(pruned) == tuple(NARROW)


def test_a_parent_without_explicit_channels_is_left_as_it_was() -> None:
    arguments = {"classes": 3}
    parent = random_network(arguments)
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    channels = largest_within(0.25, parent, arguments, size=SIZE, multiple=8)
    pruned, pruned_arguments = surgery.remove_channels(parent, arguments, channels, size=SIZE, criterion="l1")
    assert arguments == {"classes": 3}
    assert pruned_arguments == {"classes": 3, "channels": list(channels)}
    assert count_macs(pruned, SIZE) <= 0.25 * count_macs(parent, SIZE)
    assert before.keys() == parent.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())


def test_a_network_that_computes_something_else_is_rejected_with_the_limit() -> None:
    with pytest.raises(surgery.PruningError, match="1e-04"):
        surgery.check_same_logits(random_network(), random_network(seed=1), SIZE)


def test_a_network_of_a_single_attribute_is_pruned() -> None:
    arguments = {**ARGUMENTS, "classes": 1}
    parent = random_network(arguments)
    channels = [max(8, count // 2) for count in widths.output_channels(parent)]
    pruned, _ = surgery.remove_channels(parent, arguments, channels, size=SIZE, criterion="l1")
    assert widths.output_channels(pruned) == tuple(channels)
    assert pruned.get_parameter("classifier.weight").shape == (1, channels[-1])


def test_networks_that_answer_nearly_the_same_to_all_images_are_compared_in_what_they_compute() -> None:
    """In single precision, rounding alone moves such logits by more than their spread."""
    parent = random_network()
    head = parent.get_submodule("classifier")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(head.weight[:1] * (1 + 1e-6 * torch.randn_like(head.weight)))
        head.bias.fill_(1e5)
    channels = [max(8, count // 2) for count in widths.output_channels(parent)]
    pruned, _ = surgery.remove_channels(parent, ARGUMENTS, channels, size=SIZE, criterion="l1")
    assert widths.output_channels(pruned) == tuple(channels)


@pytest.mark.parametrize(
    ("macs", "named"), [(0.01, "multiples of 8"), (1.5, r"`macs` \(=1\.5\)"), (0.0, r"`macs` \(=0\.0\)")]
)
def test_a_budget_that_no_network_meets_is_rejected(macs: float, named: str) -> None:
    with pytest.raises(widths.BudgetError, match=named):
        largest_within(macs, students.build("mobilenet_v1", ARGUMENTS), ARGUMENTS, size=SIZE, multiple=8)


def test_nni_prints_nothing_and_leaves_pytorchs_registries_as_they_were(
    capfd: pytest.CaptureFixture[str],
) -> None:
    parent = random_network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surgery.remove_channels(parent, ARGUMENTS, NARROW, size=SIZE, criterion="l1")
    logging.getLogger("pipeline").warning("ours")
    assert capfd.readouterr().out == ""
    for kind in (immutable_dict, immutable_list):
        assert _pytree.SUPPORTED_NODES[kind].flatten_with_keys_fn is not None


def test_batch_norms_take_other_statistics_without_a_change_of_the_answers() -> None:
    module = random_network()
    batches = [torch.randn(16, 3, 32, 32) for _ in range(4)]
    before = [module(batch) for batch in batches]
    reconstruction.reparametrise(module, batches)
    for expected, batch in zip(before, batches, strict=True):
        torch.testing.assert_close(module(batch), expected, atol=1e-4, rtol=1e-4)
    settled = [value.clone() for name, value in module.named_buffers() if name.endswith("running_mean")]
    norms.reestimate(module, batches)
    means = [value for name, value in module.named_buffers() if name.endswith("running_mean")]
    for taken, own in zip(settled, means, strict=True):
        torch.testing.assert_close(taken, own, atol=0.05, rtol=0.05)
