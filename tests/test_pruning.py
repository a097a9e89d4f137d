import copy
import logging
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree

import students
from pipeline.models import storage
from pipeline.models.costs import count_macs
from pipeline.models.storage import Model
from pipeline.pruning import surgery, widths
from pipeline.pruning.masks import Loss, apply_masks, channel_masks, remove_masked
from pipeline.quantization.simulator import simulate
from pipeline.training import norms
from teachers.contract import InputContract
from tests.test_onnx_export import quantized, student

CHANNELS = (16, 16, 24, 24, 32, 32, 40, 40, 40, 40, 40, 40, 48, 48)
SIZE = 32
LAST = "blocks.12.pointwise"
UNIMPORTANT = [3, 7, 8, 20, 21, 30, 41, 47]

REBUILD = """
import sys
from pathlib import Path
import numpy as np
import torch
from pipeline import models, quantization
torch.set_num_threads(1)
folder = Path(sys.argv[1])
model = models.load(folder)
network = quantization.simulate(model.module, model.quantization) if model.quantization else model.module
with torch.no_grad():
    logits = network(torch.from_numpy(np.load(folder / "images.npy")))
np.save(folder / "logits.npy", logits.numpy())
"""


def lively(arguments: dict, seed: int = 0) -> nn.Module:
    """A student whose batch norms have statistics that matter."""
    torch.manual_seed(seed)
    module = students.build("mobilenet_v1", arguments)
    for name, norm in module.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.5)
            nn.init.normal_(module.get_buffer(f"{name}.running_mean"), std=0.2)
            nn.init.uniform_(module.get_buffer(f"{name}.running_var"), 0.5, 2.0)
    nn.init.normal_(module.get_parameter("classifier.weight"), std=0.5)
    return module.eval()


def losses() -> list[Loss]:
    """Cross entropy with five classes on two batches."""
    images, labels = torch.rand(2, 8, 3, SIZE, SIZE), torch.arange(8) % 5

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch), labels)

    return [partial(loss, batch=batch) for batch in images]


def within(macs: float, parent: nn.Module, arguments: dict, *, size: int, multiple: int) -> tuple[int, ...]:
    """Channel counts of a uniform shape at a share of the parent's multiply-accumulates."""
    return widths.channels_within(
        "mobilenet_v1",
        arguments,
        widths.output_channels(parent),
        cost=widths.macs_within(macs, parent, size),
        multiple=multiple,
    )


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("criterion", "activation"),
    [("l1", "relu"), ("l2", "relu"), ("fpgm", "relu"), ("taylor", "relu"), ("l1", "relu6")],
)
def test_pruned_logits_are_those_of_the_masked_parent(criterion, activation):
    arguments = {"classes": 5, "channels": CHANNELS, "activation": activation}
    parent, asked = lively(arguments), losses()
    uneven = [8, 16, 24, 16, 8, 32, 24, 40, 16, 8, 40, 24, 16, 48]
    pruned, kept = surgery.cut(parent, arguments, uneven, size=SIZE, criterion=criterion, losses=asked)
    masks = channel_masks(
        parent,
        {n: m.out_channels for n, m in pruned.named_modules() if isinstance(m, nn.Conv2d)},
        criterion,
        SIZE,
        asked,
    )
    masked = apply_masks(parent, masks)
    assert surgery.check_same_logits(masked, pruned, SIZE) <= surgery.TOLERANCE
    images = torch.rand(4, 3, SIZE, SIZE)
    assert not torch.allclose(parent(images), pruned(images), rtol=0.1)
    rebuilt = students.build("mobilenet_v1", kept)
    rebuilt.load_state_dict(pruned.state_dict())


@pytest.mark.parametrize(("macs", "multiple"), [(0.8, 8), (0.3, 4)])
def test_budget_is_kept_and_used(macs, multiple):
    channels = students.build("mobilenet_v1", {"classes": 10})
    whole = widths.output_channels(channels)
    arguments = {"classes": 10}
    kept = within(macs, channels, arguments, size=64, multiple=multiple)
    parent = count_macs(channels, 64)

    def share(candidate):
        return count_macs(students.build("mobilenet_v1", {**arguments, "channels": candidate}), 64) / parent

    assert macs - 0.01 < share(kept) <= macs
    assert all(count % multiple == 0 and 0 < count <= most for count, most in zip(kept, whole, strict=True))
    for layer, count in enumerate(kept):
        if count + multiple <= whole[layer]:
            assert share([*kept[:layer], count + multiple, *kept[layer + 1 :]]) > macs


def test_keep_ratio_is_the_same_for_every_layer():
    parent = students.build("mobilenet_v1", {"classes": 10})
    kept = within(0.5, parent, {"classes": 10}, size=64, multiple=4)
    whole = widths.output_channels(parent)
    ratios = [count / most for count, most in zip(kept, whole, strict=True) if most >= 96]
    assert len(ratios) == 12
    assert max(ratios) - min(ratios) < 0.06


def test_stem_and_its_depthwise_partner_lose_the_same_channels():
    arguments = {"classes": 5, "channels": CHANNELS}
    parent = lively(arguments)
    wanted = {n: m.out_channels for n, m in parent.named_modules() if isinstance(m, nn.Conv2d)}
    masks = channel_masks(parent, {**wanted, "stem.conv": 8, "blocks.0.depthwise.conv": 8}, "l1", SIZE)
    stem, partner = (masks[n]["weight"].flatten(1).amax(1) for n in ("stem.conv", "blocks.0.depthwise.conv"))
    assert torch.equal(stem, partner)
    assert stem.sum() == 8
    for norm in ("stem.norm", "blocks.0.depthwise.norm"):
        assert torch.equal(masks[norm]["weight"], stem)
        assert torch.equal(masks[norm]["bias"], stem)


def of_small_norm(parent: nn.Module) -> None:
    parent.get_parameter(f"{LAST}.conv.weight")[UNIMPORTANT] *= 0.01


def near_the_middle_of_all(parent: nn.Module) -> None:
    filters = parent.get_parameter(f"{LAST}.conv.weight")
    filters[UNIMPORTANT] = filters.mean(0, keepdim=True) + 0.01 * filters[UNIMPORTANT]


def without_influence_on_the_loss(parent: nn.Module) -> None:
    parent.get_parameter(f"{LAST}.norm.bias").fill_(3.0)  # all channels fire
    parent.get_parameter(f"{LAST}.conv.weight")[UNIMPORTANT] *= 10
    parent.get_parameter("classifier.weight")[:, UNIMPORTANT] = 0.0


@pytest.mark.parametrize(
    ("criterion", "made"),
    [
        ("l1", of_small_norm),
        ("l2", of_small_norm),
        ("fpgm", near_the_middle_of_all),
        ("taylor", without_influence_on_the_loss),
    ],
)
def test_channels_that_go_are_those_that_the_criterion_is_about(criterion, made):
    parent = lively({"classes": 5, "channels": CHANNELS})
    with torch.no_grad():
        made(parent)
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    masks = channel_masks(parent, {f"{LAST}.conv": 40}, criterion, SIZE, losses())
    gone = (masks[f"{LAST}.conv"]["weight"].flatten(1).amax(1) == 0).nonzero().flatten().tolist()
    assert gone == UNIMPORTANT
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())
    assert all(parameter.grad is None for parameter in parent.parameters())


def test_surgery_leaves_the_masks_that_it_is_given_as_they_were():
    arguments = {"classes": 5, "channels": CHANNELS}
    parent = lively(arguments)
    narrow = students.build("mobilenet_v1", {**arguments, "channels": [n - 8 for n in CHANNELS]})
    wanted = {n: m.out_channels for n, m in narrow.named_modules() if isinstance(m, nn.Conv2d)}
    masks = channel_masks(parent, wanted, "l1", SIZE)
    before = copy.deepcopy(masks)
    remove_masked(parent, masks, SIZE)
    assert masks.keys() == before.keys()
    for path, targets in masks.items():
        assert all(torch.equal(mask, before[path][name]) for name, mask in targets.items())


def test_taylor_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="taylor"):
        channel_masks(lively({"classes": 5, "channels": CHANNELS}), {"stem.conv": 8}, "taylor", SIZE)


def test_a_layer_of_which_half_does_nothing_loses_half_for_nothing():
    arguments = {"classes": 5, "channels": CHANNELS}
    parent = lively(arguments)
    idle = slice(0, 20)
    with torch.no_grad():
        for name in ("conv.weight", "norm.weight", "norm.bias"):
            parent.get_parameter(f"blocks.6.pointwise.{name}")[idle] = 0.0
            parent.get_parameter(f"blocks.7.depthwise.{name}")[idle] = 0.0
    images = torch.rand(2, 8, 3, SIZE, SIZE)
    settled = copy.deepcopy(parent)
    norms.reestimate(settled, images)
    answers = settled(images[0])

    @torch.no_grad()
    def distance(module: nn.Module) -> float:
        return float((module(images[0]) - answers).abs().mean() / answers.std())

    found = surgery.sensitivity(
        parent, arguments, ratios=(0.25, 0.5), images=list(images), score=distance, criterion="l2"
    )
    assert list(found) == ["stem", *(f"blocks.{n}.pointwise" for n in range(13))]
    assert found["blocks.6.pointwise"][0.5] < 1e-3
    others = [ratios[0.5] for path, ratios in found.items() if path != "blocks.6.pointwise"]
    assert min([found["blocks.6.pointwise"][0.25], *others]) > 1e-2


@pytest.mark.parametrize("then", ["pruned", "pruned and quantised"])
def test_a_new_process_rebuilds_it_from_card_and_tensors_with_the_same_logits(tmp_path, then):
    parent = student(InputContract(64))
    module, arguments = surgery.cut(
        parent.module,
        parent.card.arguments,
        [8, 8, 16, 24, 40, 56, 64, 88, 96, 104, 104, 120, 200, 248],
        size=64,
        criterion="fpgm",
    )
    model = Model(module, replace(parent.card, arguments=arguments, variant="pruned", op="prune"))
    if then == "pruned and quantised":
        model = quantized(model)
    storage.save(tmp_path, model)
    images = torch.rand(4, 3, 64, 64)
    np.save(tmp_path / "images.npy", images.numpy())
    subprocess.run([sys.executable, "-c", REBUILD, str(tmp_path)], check=True)
    network = simulate(model.module, model.quantization) if model.quantization else model.module
    with torch.no_grad():
        expected = network(images)
    assert expected.std() > 0.1
    assert np.array_equal(np.load(tmp_path / "logits.npy"), expected.numpy())


def test_channels_that_never_fire_are_not_taken_for_masked_ones():
    arguments = {"classes": 5, "channels": CHANNELS}
    parent = lively(arguments)
    with torch.no_grad():
        parent.get_parameter("blocks.3.pointwise.norm.bias")[:20] = -100.0
    pruned, kept = surgery.prune(parent, arguments, size=SIZE, macs=0.6, criterion="l1", multiple=8)
    assert widths.output_channels(pruned) == tuple(kept["channels"])


def test_parent_without_explicit_channels_is_left_as_it_was():
    parent = lively({"classes": 3})
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    arguments = {"classes": 3}
    pruned, kept = surgery.prune(parent, arguments, size=SIZE, macs=0.25, criterion="l1", multiple=8)
    assert arguments == {"classes": 3}
    assert set(kept) == {"classes", "channels"}
    assert count_macs(pruned, SIZE) <= 0.25 * count_macs(parent, SIZE)
    assert before.keys() == parent.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())


def test_a_network_that_computes_something_else_is_refused_with_the_figure():
    parent = lively({"classes": 5, "channels": CHANNELS})
    other = lively({"classes": 5, "channels": CHANNELS}, seed=1)
    with pytest.raises(surgery.PruningError, match=r"differ by \S+ of their spread .* at most 1e-04"):
        surgery.check_same_logits(parent, other, SIZE)


@pytest.mark.parametrize(
    ("macs", "message"),
    [(0.01, "narrowest network with multiples of 8"), (1.5, "macs is 1.5"), (0.0, "macs is 0.0")],
)
def test_a_budget_out_of_reach_is_refused(macs, message):
    arguments = {"classes": 5, "channels": CHANNELS}
    with pytest.raises(widths.BudgetError, match=message):
        within(macs, students.build("mobilenet_v1", arguments), arguments, size=SIZE, multiple=8)


def test_nni_leaves_no_noise_and_no_traces(capfd):
    arguments = {"classes": 5, "channels": CHANNELS}
    torch.manual_seed(0)
    parent = lively(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surgery.prune(parent, arguments, size=SIZE, macs=0.5, criterion="l1", multiple=8)
    logging.getLogger("pipeline").warning("ours")
    assert capfd.readouterr().out == ""
    for kind in (immutable_dict, immutable_list):
        assert _pytree.SUPPORTED_NODES[kind].flatten_with_keys_fn is not None
