import copy
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

import students
from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import trace
from pipeline.models.storage import Model
from pipeline.quantization import aware_training, simulator, wrappers
from pipeline.quantization.grid import PIXEL_SCALE, weight_scales
from pipeline.quantization.ranges import activation_scales
from pipeline.training import loop
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


def prepare(
    parent: nn.Module, limit: int = 127, float_layers=(), learn: bool = False
) -> aware_training.Prepared:
    return aware_training.prepare(
        parent, weight_limit=limit, float_layers=float_layers, batches=calibration, learn_ranges=learn
    )


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize(
    ("limit", "float_layers", "activation"),
    [(127, (), "relu"), (63, FLOAT, "relu"), (127, ("classifier",), "relu"), (63, (), "relu6")],
)
def test_shipped_module_agrees_with_the_trained_one_on_every_image(
    parents, limit, float_layers, activation, learn
):
    prepared = prepare(parents[activation], limit, float_layers, learn)
    aware_training.freeze_norm(prepared.module)
    train(prepared.module, 4, 1e-3, first=100)
    arguments = {**ARGUMENTS, "activation": activation}
    folded, folded_arguments, found = aware_training.finish(prepared, "mobilenet_v1", arguments)
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
    assert folded_arguments == {**arguments, "norm": False}


def test_tensorflows_padding_is_trained_and_shipped_alike() -> None:
    torch.manual_seed(0)
    arguments = {**ARGUMENTS, "padding": "same", "size": SIZE}
    parent = students.build("mobilenet_v1", arguments)
    train(parent, 8, 1e-2)
    prepared = prepare(parent, 63, FLOAT)
    aware_training.freeze_norm(prepared.module)
    train(prepared.module, 2, 1e-3)
    folded, _, found = aware_training.finish(prepared, "mobilenet_v1", arguments)
    assert sum(isinstance(part, nn.ZeroPad2d) for part in folded.module.modules()) == 5
    images, _ = pictures(16, 77)
    with torch.no_grad():
        trained, shipped = prepared.module(images), simulator.fake_quantize(folded, found)(images)
    torch.testing.assert_close(trained, shipped, rtol=0, atol=1e-3 * float(trained.std(dim=0).mean()))


@pytest.mark.parametrize("limit", [127, 63])
def test_weights_lie_on_their_grid_and_reach_its_limit(parents, limit):
    prepared = prepare(parents["relu"], limit)
    train(prepared.module, 2, 1e-3)
    folded, _, found = aware_training.finish(prepared, "mobilenet_v1", ARGUMENTS)
    assert set(found.weight_scales) == set(folded.layers)
    greatest = []
    for name, layer in folded.parts.items():
        steps = layer.weight.detach().flatten(1) / found.weight_scales[name][:, None]
        assert torch.allclose(steps, steps.round(), atol=1e-4)
        greatest.append(float(steps.abs().max()))
    assert max(greatest) == pytest.approx(limit)
    assert found.weight_limit == limit


def test_training_lowers_the_loss_and_reaches_every_parameter(parents):
    prepared = prepare(parents["relu"], 63, FLOAT)
    before = {name: value.detach().clone() for name, value in prepared.module.named_parameters()}
    assert len(before) == len(list(parents["relu"].parameters()))
    optimizer = torch.optim.AdamW(prepared.module.parameters(), 2e-3)
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
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("learn", [False, True])
def test_resumed_training_goes_on_bit_for_bit(parents, learn):
    prepared = prepare(parents["relu"], 63, FLOAT, learn)
    optimizer = torch.optim.AdamW(prepared.module.parameters(), 1e-3)
    train(prepared.module, 3, 1e-3, optimizer)
    state = copy.deepcopy(prepared.module.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())
    losses = train(prepared.module, 3, 1e-3, optimizer, first=3)

    torch.manual_seed(5)
    stranger = students.build("mobilenet_v1", ARGUMENTS)
    train(stranger, 2, 1e-3)
    resumed = prepare(stranger, 63, FLOAT, learn)
    resumed.module.load_state_dict(state)
    # the momentum of batch norm is an argument, not state
    for norm in resumed.module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.3
    optimizer = torch.optim.AdamW(resumed.module.parameters(), 1e-3)
    optimizer.load_state_dict(moments)
    assert train(resumed.module, 3, 1e-3, optimizer, first=3) == losses
    expected = prepared.module.state_dict()
    assert expected.keys() == resumed.module.state_dict().keys()
    for name, value in resumed.module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_running_moments_are_those_of_plain_batch_norm(parents):
    every = tuple(trace(parents["relu"]).layers)
    prepared = prepare(parents["relu"], 127, every)
    images, _ = pictures(32, 5)
    plain = copy.deepcopy(parents["relu"].get_submodule("stem")).train()
    plain(images)
    prepared.module.train()(images)
    before = parents["relu"].get_buffer("stem.norm.running_mean")
    assert not torch.allclose(plain.get_buffer("norm.running_mean"), before, rtol=1e-3)
    for name in ("running_mean", "running_var"):
        found, wanted = prepared.module.get_buffer(f"stem.norm.{name}"), plain.get_buffer(f"norm.{name}")
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_all_layers_in_float_compute_what_the_parent_does(parents):
    every = tuple(trace(parents["relu"]).layers)
    prepared = prepare(parents["relu"], 127, every)
    images, _ = pictures(16, 5)
    with torch.no_grad():
        torch.testing.assert_close(prepared.module(images), parents["relu"](images), rtol=1e-4, atol=1e-4)
    assert prepared.activations == ()


def test_frozen_moments_stay_while_weights_move(parents):
    prepared = prepare(parents["relu"], 127, FLOAT)
    aware_training.freeze_norm(prepared.module)
    before = copy.deepcopy(prepared.module.state_dict())
    train(prepared.module, 2, 1e-3)
    after = prepared.module.state_dict()
    moments = [name for name in after if name.endswith(("running_mean", "running_var"))]
    assert len(moments) == 2 * 27
    assert all(torch.equal(after[name], before[name]) for name in moments)
    assert not torch.equal(after["stem.norm.weight"], before["stem.norm.weight"])


def test_evaluation_changes_nothing(parents):
    prepared = prepare(parents["relu"])
    train(prepared.module, 1, 1e-3)
    before = copy.deepcopy(prepared.module.state_dict())
    with torch.no_grad():
        first = prepared.module(pictures(8, 3)[0])
        prepared.module(pictures(8, 4)[0] * 5)
        assert torch.equal(prepared.module(pictures(8, 3)[0]), first)
    after = prepared.module.state_dict()
    assert len(after) > 100
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_float_layers_have_activations_only_where_int8_reads_them(parents):
    prepared = prepare(parents["relu"], 127, FLOAT)
    _, _, found = aware_training.finish(prepared, "mobilenet_v1", ARGUMENTS)
    assert found.float_layers == FLOAT
    assert set(FLOAT).isdisjoint(found.weight_scales)
    assert {"images", "stem"}.isdisjoint(found.activation_scales)
    assert {"blocks.0.depthwise", "blocks.12.pointwise", "pool"} <= set(found.activation_scales)
    _, _, whole = aware_training.finish(prepare(parents["relu"]), "mobilenet_v1", ARGUMENTS)
    assert whole.activation_scales["images"] == PIXEL_SCALE
    assert len(whole.activation_scales) == 1 + 27 + 1


def test_ranges_start_at_least_squared_error_and_follow_the_activations(parents, monkeypatch):
    prepared = prepare(parents["relu"])
    wanted = activation_scales(trace(parents["relu"]), calibration)
    _, _, found = aware_training.finish(prepared, "mobilenet_v1", ARGUMENTS)
    assert found.activation_scales.keys() == wanted.keys()
    for name, scale in found.activation_scales.items():
        assert scale == pytest.approx(wanted[name], rel=1e-6)
    prepared.module.train()
    monkeypatch.setattr(wrappers, "RANGE_SHARE", 0.5)
    with torch.no_grad():
        prepared.module(pictures(32, 9)[0] * 3)
    _, _, wider = aware_training.finish(prepared, "mobilenet_v1", ARGUMENTS)
    assert wider.activation_scales["stem"] > 1.05 * found.activation_scales["stem"]


def test_relu6_is_never_outgrown(parents, monkeypatch):
    monkeypatch.setattr(wrappers, "RANGE_SHARE", 1.0)
    prepared = prepare(parents["relu6"])
    with torch.no_grad():
        for name, buffer in prepared.module.named_buffers():
            if name.endswith("range_kept"):
                buffer.fill_(1.5)
        prepared.module.train()(pictures(8, 9)[0] * 50)
    arguments = {**ARGUMENTS, "activation": "relu6"}
    _, _, found = aware_training.finish(prepared, "mobilenet_v1", arguments)
    assert max(found.activation_scales.values()) == pytest.approx(6 / 255)


def test_a_channel_without_gain_does_not_break_training(parents):
    parent = copy.deepcopy(parents["relu"])
    with torch.no_grad():
        parent.get_parameter("blocks.2.pointwise.norm.weight")[:3] = 0.0
    prepared = prepare(parent, 63)
    losses = train(prepared.module, 3, 1e-3)
    assert all(torch.isfinite(torch.tensor(losses)))
    folded, _, found = aware_training.finish(prepared, "mobilenet_v1", ARGUMENTS)
    images, _ = pictures(16, 3)
    with torch.no_grad():
        trained, shipped = prepared.module(images), simulator.fake_quantize(folded, found)(images)
    assert float((trained - shipped).abs().max()) < 0.1 * float(trained.std(dim=0).mean())


def test_the_parent_is_left_as_it_was(parents):
    parent = parents["relu"]
    before = copy.deepcopy(parent.state_dict())
    prepared = prepare(parent)
    train(prepared.module, 1, 1e-2)
    assert before.keys() == parent.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())
    assert not parent.training


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


def test_learned_steps_start_at_least_squared_error_and_stay_positive(parents):
    prepared = prepare(parents["relu"], 63, FLOAT, learn=True)
    folded, _, start = aware_training.finish(prepared, "mobilenet_v1", ARGUMENTS)
    wanted = activation_scales(trace(parents["relu"]), calibration, FLOAT)
    assert start.activation_scales.keys() == wanted.keys()
    for name, scale in start.activation_scales.items():
        assert scale == pytest.approx(wanted[name], rel=1e-5)
    card = tiny_students.card(ARGUMENTS, InputContract(SIZE))
    float_twin = fold_batch_norm(Model(parents["relu"], card))
    for name, step in weight_scales(float_twin, 63, FLOAT).items():
        torch.testing.assert_close(start.weight_scales[name], step, rtol=1e-4, atol=1e-8)
    train(prepared.module, 3, 0.5)  # at such a rate a step itself would turn negative
    _, _, found = aware_training.finish(prepared, "mobilenet_v1", ARGUMENTS)
    assert len(found.weight_scales) == len(folded.layers) - len(FLOAT)
    for name, step in found.weight_scales.items():
        assert step.min() > 0
        assert not torch.equal(step, start.weight_scales[name])
    assert min(found.activation_scales.values()) > 0


def test_averaged_weights_are_what_ships(parents):
    prepared = prepare(parents["relu"], 63, FLOAT, learn=True)
    averaged = copy.deepcopy(prepared.module)
    train(prepared.module, 3, 1e-3)
    loop._average(averaged, prepared.module, 0.5)
    images, _ = pictures(16, 77)
    with torch.no_grad():
        wanted = averaged.eval()(images)
        assert not torch.equal(wanted, prepared.module(images))
        prepared.module.load_state_dict(averaged.state_dict())
        assert torch.equal(prepared.module(images), wanted)


@pytest.mark.parametrize(
    ("limit", "float_layers", "message"),
    [
        (100, (), r"weight_limit is 100; allowed are \(127, 63\)"),
        (127, ("stam",), r"\['stam'\] do not exist"),
    ],
)
def test_wrong_values_are_refused(parents, limit, float_layers, message):
    with pytest.raises(ValueError, match=message):
        prepare(parents["relu"], limit, float_layers)


def test_steps_follow_the_weights_without_lag(parents):
    prepared = prepare(parents["relu"])
    scales = []
    for _ in range(2):
        prepared.module.train()(pictures(4, 0)[0])
        scales.append(prepared.aware.scale("classifier", "weight").flatten().clone())
        with torch.no_grad():
            prepared.module.get_parameter("classifier._nni_wrapper.weight").mul_(2)
    for first, second in pairwise(scales):
        torch.testing.assert_close(second, 2 * first)
