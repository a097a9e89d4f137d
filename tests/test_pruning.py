import logging
import warnings

import pytest
import torch
from torch import nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree

import students
from pipeline import compressors, pruning, widths
from pipeline.costs import count_macs

CHANNELS = (16, 16, 24, 24, 32, 32, 40, 40, 40, 40, 40, 40, 48, 48)
SIZE = 32


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
    ("criterion", "activation"), [("l1", "relu"), ("l2", "relu"), ("fpgm", "relu"), ("l1", "relu6")]
)
def test_pruned_logits_are_those_of_the_masked_parent(criterion, activation):
    arguments = {"classes": 5, "channels": CHANNELS, "activation": activation}
    parent = lively(arguments)
    pruned, kept = pruning.prune(parent, arguments, size=SIZE, macs=0.5, criterion=criterion, multiple=8)
    masks = compressors.channel_masks(
        parent,
        {n: m.out_channels for n, m in pruned.named_modules() if isinstance(m, nn.Conv2d)},
        criterion,
        SIZE,
    )
    masked = compressors.apply_masks(parent, masks)
    assert pruning.check_same_logits(masked, pruned, SIZE) <= pruning.TOLERANCE
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
    masks = compressors.channel_masks(
        parent, {**wanted, "stem.conv": 8, "blocks.0.depthwise.conv": 8}, "l1", SIZE
    )
    stem, partner = (masks[n]["weight"].flatten(1).amax(1) for n in ("stem.conv", "blocks.0.depthwise.conv"))
    assert torch.equal(stem, partner)
    assert stem.sum() == 8
    for norm in ("stem.norm", "blocks.0.depthwise.norm"):
        assert torch.equal(masks[norm]["weight"], stem)
        assert torch.equal(masks[norm]["bias"], stem)


def test_channels_that_go_are_those_of_least_norm():
    arguments = {"classes": 5, "channels": CHANNELS}
    parent = lively(arguments)
    last = parent.get_parameter("blocks.12.pointwise.conv.weight")
    weakest = [3, 7, 8, 20, 21, 30, 41, 47]
    with torch.no_grad():
        last[weakest] *= 0.01
    masks = compressors.channel_masks(parent, {"blocks.12.pointwise.conv": 40}, "l1", SIZE)
    gone = (masks["blocks.12.pointwise.conv"]["weight"].flatten(1).amax(1) == 0).nonzero().flatten().tolist()
    assert gone == weakest


def test_channels_that_never_fire_are_not_taken_for_masked_ones():
    arguments = {"classes": 5, "channels": CHANNELS}
    parent = lively(arguments)
    with torch.no_grad():
        parent.get_parameter("blocks.3.pointwise.norm.bias")[:20] = -100.0
    pruned, kept = pruning.prune(parent, arguments, size=SIZE, macs=0.6, criterion="l1", multiple=8)
    assert widths.output_channels(pruned) == tuple(kept["channels"])


def test_parent_without_explicit_channels_is_left_as_it_was():
    parent = lively({"classes": 3})
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    arguments = {"classes": 3}
    pruned, kept = pruning.prune(parent, arguments, size=SIZE, macs=0.25, criterion="l1", multiple=8)
    assert arguments == {"classes": 3}
    assert set(kept) == {"classes", "channels"}
    assert count_macs(pruned, SIZE) <= 0.25 * count_macs(parent, SIZE)
    assert before.keys() == parent.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())


def test_a_network_that_computes_something_else_is_refused_with_the_figure():
    parent = lively({"classes": 5, "channels": CHANNELS})
    other = lively({"classes": 5, "channels": CHANNELS}, seed=1)
    with pytest.raises(pruning.PruningError, match=r"differ by \S+ of their spread .* at most 1e-04"):
        pruning.check_same_logits(parent, other, SIZE)


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
        pruning.prune(parent, arguments, size=SIZE, macs=0.5, criterion="l1", multiple=8)
    logging.getLogger("pipeline").warning("ours")
    assert capfd.readouterr().out == ""
    for kind in (immutable_dict, immutable_list):
        assert _pytree.SUPPORTED_NODES[kind].flatten_with_keys_fn is not None
