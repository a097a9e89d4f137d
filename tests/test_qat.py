import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import students
from pipeline.models.layers import Network
from pipeline.models.storage import Model, Quantization
from pipeline.quantization import aware_training, post_training, simulator, wrappers
from pipeline.quantization.post_training import Judgement, Workbench
from pipeline.training.optimisation import Averages
from teachers.contract import InputContract
from tests import tiny_students

CHANNELS = (16,) * 8 + (24,) * 6
ARGUMENTS = {"classes": 4, "channels": CHANNELS}
SIZE = 64
FLOAT = ("stem", "blocks.0.depthwise")


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy whole-byte pictures of four classes that differ in colour and stripes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    position = torch.arange(SIZE)
    stripes = ((position[:, None] * (labels % 2 + 1).view(-1, 1, 1) // 4) % 2).float()
    images = torch.rand(count, 3, SIZE, SIZE, generator=generator) * 0.3
    images[:, 0] += 0.6 * stripes.expand(-1, SIZE, SIZE)
    images[:, 2] += 0.5 * (labels // 2).view(-1, 1, 1)
    images = images.clamp(0, 1).mul(255).round().div(255)
    return images.contiguous(memory_format=torch.channels_last), labels


def train(module: nn.Module, steps: int, rate: float, optimizer=None, first: int = 0) -> list[float]:
    optimizer = optimizer or torch.optim.AdamW(module.parameters(), rate)
    module.train()
    losses = []
    for step in range(first, first + steps):
        images, labels = pictures(32, step)
        loss = nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    module.eval()
    return losses


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def parents() -> dict[str, nn.Module]:
    """Students trained for a moment, so that their logits tell images apart."""
    found = {}
    for activation in ("relu", "relu6"):
        torch.manual_seed(0)
        found[activation] = students.build(
            "mobilenet_v1", {**ARGUMENTS, "activation": activation, "norm_momentum": 0.3}
        )
        train(found[activation], 80, 1e-2)
        train(found[activation], 20, 1e-3, first=80)
    return found


def calibration() -> list[torch.Tensor]:
    return [pictures(32, 1000 + seed)[0] for seed in range(3)]


def quantized(
    parent: nn.Module, limit: int = 127, float_layers: tuple[str, ...] = (), **arguments: Any
) -> tuple[Network, Quantization]:
    """The result of post-training quantisation with adaptive rounding."""
    card = tiny_students.card({**ARGUMENTS, **arguments}, InputContract(SIZE))
    bench = Workbench(Model(parent, card), calibration, weight_limit=limit, float_layers=float_layers)
    return bench.make(("adaptive_rounding",))


def prepare(
    parent: nn.Module,
    limit: int = 127,
    float_layers: tuple[str, ...] = (),
    learn: bool = False,
    **arguments: Any,
) -> aware_training.Prepared:
    return aware_training.prepare(*quantized(parent, limit, float_layers, **arguments), learn_steps=learn)


@pytest.mark.parametrize(
    ("limit", "float_layers", "activation"),
    [
        (127, (), "relu"),
        (63, FLOAT, "relu"),
        (127, ("classifier",), "relu"),
        (63, (), "relu6"),
        (7, (), "relu6"),
    ],
)
def test_training_begins_with_the_integers_of_post_training_quantisation(
    parents, limit, float_layers, activation
):
    network, quantization = quantized(parents[activation], limit, float_layers, activation=activation)
    prepared = aware_training.prepare(network, quantization)
    images, _ = pictures(16, 5)
    with torch.no_grad():
        wanted = simulator.fake_quantize(network, quantization)(images)
        torch.testing.assert_close(
            prepared.module(images), wanted, rtol=0, atol=1e-3 * float(wanted.std(dim=0).mean())
        )
    same, found = aware_training.finish(prepared)
    assert found.activation_scales == pytest.approx(quantization.activation_scales, rel=1e-6)
    for name, part in network.parts.items():
        torch.testing.assert_close(same.part(name).weight, part.weight, rtol=1e-6, atol=0)
        torch.testing.assert_close(same.part(name).bias, part.bias, rtol=1e-6, atol=0)
        if name in found.weight_scales:
            torch.testing.assert_close(found.weight_scales[name], quantization.weight_scales[name])


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize(
    ("limit", "float_layers", "activation"),
    [(127, (), "relu"), (63, FLOAT, "relu"), (127, ("classifier",), "relu"), (63, (), "relu6")],
)
def test_shipped_module_agrees_with_the_trained_one_on_every_image(
    parents, limit, float_layers, activation, learn
):
    prepared = prepare(parents[activation], limit, float_layers, learn, activation=activation)
    train(prepared.module, 4, 1e-2, first=100)
    folded, found = aware_training.finish(prepared)
    images, _ = pictures(64, 77)
    with torch.no_grad():
        trained = prepared.module(images)
        shipped = simulator.fake_quantize(folded, found)(images)
        integers = simulator.simulate(folded, found)(images)
    spread = float(trained.std(dim=0).mean())
    assert spread > 0.5
    assert len(trained.argmax(1).unique()) == 4
    assert torch.equal(trained.argmax(1), shipped.argmax(1))
    torch.testing.assert_close(trained, shipped, rtol=0, atol=1e-3 * spread)
    # int32 biases move a few values over a tie, by one step each
    torch.testing.assert_close(trained, integers, rtol=0, atol=0.3 * spread)
    top = trained.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 0.3 * spread
    assert clear.sum() > 16
    assert torch.equal(trained.argmax(1)[clear], integers.argmax(1)[clear])


def test_tensorflows_padding_is_trained_and_shipped_alike() -> None:
    torch.manual_seed(0)
    arguments = {"padding": "same", "size": SIZE}
    parent = students.build("mobilenet_v1", {**ARGUMENTS, **arguments})
    train(parent, 8, 1e-2)
    prepared = prepare(parent, 63, FLOAT, **arguments)
    train(prepared.module, 2, 1e-2)
    folded, found = aware_training.finish(prepared)
    assert sum(isinstance(part, nn.ZeroPad2d) for part in folded.module.modules()) == 5
    images, _ = pictures(16, 77)
    with torch.no_grad():
        trained, shipped = prepared.module(images), simulator.fake_quantize(folded, found)(images)
    torch.testing.assert_close(trained, shipped, rtol=0, atol=1e-3 * float(trained.std(dim=0).mean()))


@pytest.mark.parametrize("limit", [127, 63, 7])
def test_weights_lie_on_their_grid_within_its_limit(parents, limit):
    prepared = prepare(parents["relu"], limit)
    train(prepared.module, 2, 0.2)
    folded, found = aware_training.finish(prepared)
    assert set(found.weight_scales) == set(folded.layers)
    greatest = []
    for name, layer in folded.parts.items():
        steps = layer.weight.detach().flatten(1) / found.weight_scales[name][:, None]
        assert torch.allclose(steps, steps.round(), atol=1e-4)
        greatest.append(float(steps.abs().max()))
    assert max(greatest) == pytest.approx(limit)
    assert found.weight_limit == limit


def test_one_rate_moves_the_weights_of_all_layers_by_the_same_share_of_their_step(parents):
    network, quantization = quantized(parents["relu"], 63)
    steps = torch.cat([step.flatten() for step in quantization.weight_scales.values()])
    assert steps.max() > 8 * steps.min()
    prepared = aware_training.prepare(network, quantization)
    # Adam's first update is the rate, where there is a gradient.
    train(prepared.module, 1, 2.0, torch.optim.Adam(prepared.module.parameters(), 2.0))
    for name, step in quantization.weight_scales.items():
        latent = prepared.module.get_parameter(f"{network.layers[name].weights}._nni_wrapper.weight")
        moved = latent.detach().flatten(1) - network.part(name).weight.detach().flatten(1) / step[:, None]
        assert float(moved.abs().max()) == pytest.approx(2.0, rel=0.02), name


def test_training_lowers_the_loss_and_reaches_every_parameter_of_the_int8_layers(parents):
    prepared = prepare(parents["relu"], 63, FLOAT)
    trainable = {n: v for n, v in prepared.module.named_parameters() if v.requires_grad}
    before = {name: value.detach().clone() for name, value in prepared.module.named_parameters()}
    assert len(trainable) == 2 * (len(prepared.network.layers) - len(FLOAT))
    optimizer = torch.optim.AdamW(trainable.values(), 0.05, weight_decay=0)
    images, labels = pictures(32, 500)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(prepared.module.train()(images), (labels + 1) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, value in prepared.module.named_parameters():
        assert torch.equal(value, before[name]) == (name not in trainable), name


@pytest.mark.parametrize("learn", [False, True])
def test_resumed_training_goes_on_bit_for_bit(parents, learn):
    start = quantized(parents["relu"], 63, FLOAT)
    prepared = aware_training.prepare(*start, learn_steps=learn)
    optimizer = torch.optim.AdamW(prepared.module.parameters(), 1e-2)
    train(prepared.module, 3, 1e-2, optimizer)
    state = copy.deepcopy(prepared.module.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())
    losses = train(prepared.module, 3, 1e-2, optimizer, first=3)

    resumed = aware_training.prepare(*start, learn_steps=learn)
    resumed.module.load_state_dict(state)
    optimizer = torch.optim.AdamW(resumed.module.parameters(), 1e-2)
    optimizer.load_state_dict(moments)
    assert train(resumed.module, 3, 1e-2, optimizer, first=3) == losses
    expected = prepared.module.state_dict()
    assert expected.keys() == resumed.module.state_dict().keys()
    for name, value in resumed.module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_evaluation_changes_nothing(parents):
    prepared = prepare(parents["relu"])
    train(prepared.module, 1, 1e-2)
    before = copy.deepcopy(prepared.module.state_dict())
    with torch.no_grad():
        first = prepared.module(pictures(8, 3)[0])
        prepared.module(pictures(8, 4)[0] * 5)
        assert torch.equal(prepared.module(pictures(8, 3)[0]), first)
    after = prepared.module.state_dict()
    assert len(after) > 100
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_network_that_training_begins_with_is_left_as_it_was(parents):
    network, quantization = quantized(parents["relu"])
    before = copy.deepcopy(network.module.state_dict())
    prepared = aware_training.prepare(network, quantization)
    train(prepared.module, 1, 0.5)
    assert before.keys() == network.module.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    assert not network.module.training


def test_gradients_pass_where_nothing_is_clipped():
    values = torch.tensor([-1.0, 0.0, 0.1, 1.0, 2.56, 9.0], requires_grad=True)
    rounded = wrappers._RoundToGrid.apply(values, torch.tensor(0.01), 0, 255)
    (gradient,) = torch.autograd.grad(rounded.sum(), values)
    assert gradient.tolist() == [0, 0, 1, 1, 0, 0]
    per_channel = torch.tensor([[-0.9, 0.5], [0.1, -2.0]], requires_grad=True)
    limits = torch.tensor([[0.01], [0.02]])
    rounded = wrappers._RoundToGrid.apply(per_channel, limits, -63, 63)
    (gradient,) = torch.autograd.grad(rounded.sum(), per_channel)
    assert gradient.tolist() == [[0, 1], [1, 0]]


def learned_gradient(values: torch.Tensor, step: torch.Tensor, least: int, greatest: int) -> torch.Tensor:
    """LSQ by PyTorch's own differentiation; a value within half a step of the limits is not clipped."""
    damping = 1 / (values[0].numel() * greatest) ** 0.5
    scaled = (step - step * damping).detach() + step * damping
    exact = values / scaled
    integers = exact.detach().round().clamp(least, greatest)
    inside = (exact > (least and least - 0.5)) & (exact < greatest + 0.5)
    return torch.where(inside, integers - exact.detach() + exact, integers) * scaled


def test_a_step_learns_by_the_gradient_of_lsq():
    torch.manual_seed(0)
    for values, step, least, greatest in (
        (torch.randn(4, 3, 5, 5), torch.tensor(0.004), 0, 255),
        (torch.randn(6, 8, 1, 1), torch.rand(6, 1, 1, 1) * 0.03 + 0.005, -63, 63),
    ):
        weights = torch.randn_like(values)
        found, wanted = [], []
        for compute, into in ((wrappers._RoundToGrid.apply, found), (learned_gradient, wanted)):
            leaf = step.clone().requires_grad_()
            into += [compute(values, leaf, least, greatest), leaf]
            (into[0] * weights).sum().backward()
        torch.testing.assert_close(found[0], wanted[0])
        assert found[1].grad.abs().min() > 0
        torch.testing.assert_close(found[1].grad, wanted[1].grad, rtol=1e-4, atol=1e-5)


def test_learned_steps_begin_where_quantisation_set_them_and_stay_positive(parents):
    prepared = prepare(parents["relu"], 63, FLOAT, learn=True)
    _, start = aware_training.finish(prepared)
    for name, scale in start.activation_scales.items():
        assert scale == pytest.approx(prepared.quantization.activation_scales[name], rel=1e-5)
    train(prepared.module, 3, 0.5)  # at such a rate a step itself would turn negative
    folded, found = aware_training.finish(prepared)
    assert len(found.weight_scales) == len(folded.layers) - len(FLOAT)
    for name, step in found.weight_scales.items():
        assert step.min() > 0
        assert not torch.equal(step, start.weight_scales[name])
    assert min(found.activation_scales.values()) > 0


def test_a_learned_range_never_outgrows_relu6(parents):
    prepared = prepare(parents["relu6"], learn=True, activation="relu6")
    with torch.no_grad():
        for name, parameter in prepared.module.named_parameters():
            if name.endswith("_output_0_log_step"):
                parameter.add_(3.0)
    _, found = aware_training.finish(prepared)
    greatest = [scale for name, scale in found.activation_scales.items() if name not in ("images", "pool")]
    assert greatest == pytest.approx([6 / 255] * len(greatest))


def test_averaged_weights_are_what_ships(parents):
    prepared = prepare(parents["relu"], 63, FLOAT, learn=True)
    averaged = copy.deepcopy(prepared.module)
    train(prepared.module, 3, 1e-2)
    Averages(averaged, prepared.module).update(0.5)
    images, _ = pictures(16, 77)
    with torch.no_grad():
        wanted = averaged.eval()(images)
        assert not torch.equal(wanted, prepared.module(images))
        prepared.module.load_state_dict(averaged.state_dict())
        assert torch.equal(prepared.module(images), wanted)


def test_a_quantisation_of_another_network_is_refused(parents):
    network, quantization = quantized(parents["relu"])
    lacking = {name: step for name, step in quantization.weight_scales.items() if name != "classifier"}
    with pytest.raises(ValueError, match=r"weight steps and int8 layers differ in \['classifier'\]"):
        aware_training.prepare(network, replace(quantization, weight_scales=lacking))


def judgement(losses: list[float], score: float) -> Judgement:
    return Judgement(np.zeros(len(losses)), np.array(losses), score)


def test_training_is_kept_where_it_lowers_the_loss_beyond_noise_and_loses_no_score():
    noise = np.random.default_rng(0).normal(0, 0.1, 200)
    before = judgement(list(0.5 + noise), 0.9)
    assert post_training.is_better(judgement(list(0.4 + noise), 0.9), before)
    assert not post_training.is_better(judgement(list(0.4 + noise), 0.89), before)
    assert not post_training.is_better(judgement(list(0.5 - noise), 0.95), before)
    assert not post_training.is_better(judgement(list(0.6 + noise), 0.95), before)
    assert not post_training.is_better(before, before)
