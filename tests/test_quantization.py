"""Eight-bit arithmetic: folding, steps, ranges and the simulator."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import Network, trace
from pipeline.models.storage import Model, Quantization
from pipeline.quantization import ranges
from pipeline.quantization.bias_correction import correct_biases
from pipeline.quantization.grid import PIXEL_SCALE, bake, int8_activations, integer_bias, weight_scales
from pipeline.quantization.ranges import activation_scales
from pipeline.quantization.simulator import simulate
from teachers.contract import InputContract
from tests import tiny_students
from tests.tiny_students import FLOAT_LAYERS, relative_error

CONTRACT = InputContract(32)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(count: int) -> Tensor:
    return CONTRACT.normalise(tiny_students.photographs(count, CONTRACT.size))


def student(activation: str = "relu") -> Model:
    return tiny_students.student(CONTRACT, activation)


def folded(activation: str = "relu") -> Network:
    return tiny_students.folded(student(activation))


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_folding_batch_norms_keeps_every_logit(activation: str) -> None:
    model = student(activation)
    network = fold_batch_norm(model)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.module.modules())
    assert network == trace(network.module)
    shown = images(8)
    torch.testing.assert_close(network.module(shown), model.module(shown), rtol=1e-4, atol=1e-4)


def test_only_activations_that_an_int8_layer_touches_are_quantised() -> None:
    network = folded()
    assert {"images", "stem", "pool"} <= set(int8_activations(network, ()))
    partly = int8_activations(network, FLOAT_LAYERS)
    assert "images" not in partly
    assert "stem" not in partly
    assert "blocks.0.depthwise" in partly
    assert "classifier" not in partly


def test_an_unknown_float_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"blocks\.99"):
        int8_activations(folded(), ["blocks.99"])


@pytest.mark.parametrize("limit", [127, 63])
def test_baked_weights_are_whole_steps_within_the_limit_and_the_rest_is_untouched(limit: int) -> None:
    network = folded()
    scales = weight_scales(network, limit, FLOAT_LAYERS)
    baked = bake(network, scales, limit).parts
    for name, layer in network.parts.items():
        if name in FLOAT_LAYERS:
            assert name not in scales
            assert torch.equal(baked[name].weight, layer.weight)
            continue
        integers = baked[name].weight.flatten(1) / scales[name][:, None]
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
        assert integers.abs().max() < limit + 0.5


def test_a_weight_limit_other_than_127_or_63_is_refused() -> None:
    with pytest.raises(ValueError, match=r"64.*127.*63"):
        weight_scales(folded(), 64)


@pytest.mark.parametrize("limit", [127, 63])
def test_searched_steps_err_less_than_the_full_range_does(limit: int) -> None:
    network = folded()
    layer = network.part("blocks.9.pointwise")
    full = layer.weight.detach().flatten(1).abs().amax(dim=1) / limit

    def error(scale: Tensor) -> float:
        baked = bake(network, {"blocks.9.pointwise": scale}, limit)
        return (baked.part("blocks.9.pointwise").weight - layer.weight).square().sum().item()

    assert error(weight_scales(network, limit)["blocks.9.pointwise"]) < error(full)


def test_a_channel_without_weights_keeps_a_step_that_its_bias_can_count() -> None:
    network = folded()
    network.part("blocks.2.depthwise").weight[0] = 0
    scale = weight_scales(network, 127)["blocks.2.depthwise"]
    assert scale.min() > 0
    assert integer_bias(torch.ones_like(scale), 0.01, scale).abs().max() < 2**31


def test_a_bias_beyond_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="2\\^31"):
        integer_bias(torch.ones(3), 1e-6, torch.full((3,), 1e-6))


def test_no_other_range_errs_less_on_the_calibration_images() -> None:
    network = folded()
    shown = images(16)
    scales = activation_scales(network, lambda: iter(shown.split(4)))
    values = network.module.get_submodule("stem")(shown)

    def error(scale: float) -> float:
        return float((values - (values / scale).round().clamp(0, 255) * scale).square().mean())

    full = float(values.max()) / 255
    others = [error(full * ratio) for ratio in torch.linspace(0.2, 1.1, 50).tolist()]
    assert error(scales["stem"]) < 1.02 * min(others)
    assert error(scales["stem"]) < error(full)
    assert scales["images"] == PIXEL_SCALE


def test_ranges_do_not_depend_on_the_order_or_the_size_of_batches() -> None:
    network = folded()
    shown = images(12)
    one = activation_scales(network, lambda: iter(shown.split(12)))
    other = activation_scales(network, lambda: iter(shown.flip(0).split(5)))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=0.02)


@pytest.mark.parametrize("shape", [(16, 48, 96, 96), (3, 30, 160, 160), (16, 768, 6, 6), (16, 10)])
def test_a_histogram_takes_equal_parts_of_all_channels_and_images(shape: tuple[int, ...]) -> None:
    size = torch.Size(shape)
    numbers = torch.arange(size.numel(), dtype=torch.float64).view(size)
    counted = ranges._spread(numbers).long()
    assert len(counted) <= ranges.COUNTED
    assert len(counted) > min(size.numel(), ranges.COUNTED) / 4
    places = numbers[0].numel()
    for part in (counted // places, counted % places // numbers[0, 0].numel()):
        counts = part.bincount()
        assert len(counts) in shape
        assert counts.max() - counts.min() <= 0.01 * counts.max() + 1


def test_calibration_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="no calibration images"):
        activation_scales(folded(), lambda: iter(()))


def quantized(
    activation: str, limit: int = 127, float_layers: tuple[str, ...] = ()
) -> tuple[Network, Quantization]:
    """The small student after post-training quantisation."""
    model = tiny_students.int8_student(limit, float_layers, activation, CONTRACT.size)
    assert model.quantization is not None
    return trace(model.module), model.quantization


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("float_layers", [(), FLOAT_LAYERS])
def test_eight_bits_stay_near_the_float_student(activation: str, float_layers: tuple[str, ...]) -> None:
    network, quantization = quantized(activation, 127, float_layers)
    shown = images(32)
    error = relative_error(simulate(network, quantization)(shown), student(activation).module(shown))
    assert 0 < error < 0.35


def test_a_layer_of_the_simulator_does_the_integer_sums_by_hand() -> None:
    network, quantization = quantized("relu")
    name = "blocks.1.pointwise"
    read = quantization.activation_scales["blocks.1.depthwise"]
    written = quantization.activation_scales[name]
    layer, step = network.part(name), quantization.weight_scales[name]
    integers = torch.randint(0, 256, (2, layer.weight.shape[1], 3, 3))
    weight = (layer.weight.flatten(1) / step[:, None]).round().long()
    assert layer.bias is not None
    bias = integer_bias(layer.bias, read, step)
    sums = torch.einsum("oc,bchw->bohw", weight, integers) + bias.view(-1, 1, 1)
    factor = torch.tensor(read) * step / torch.tensor(written)
    expected = (sums.float() * factor.view(-1, 1, 1)).round().clamp(0, 255)
    unit = simulate(network, quantization).get_submodule(name)
    answer = unit(integers * read) / written
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-3)


def test_bias_correction_brings_the_mean_of_every_channel_to_the_float_one() -> None:
    reference = folded()
    shown = images(16)
    steps = weight_scales(reference, 63)
    quantization = Quantization(steps, 63, activation_scales(reference, lambda: iter(shown.split(16))))
    plain = bake(reference, steps, 63)
    corrected = correct_biases(plain, reference, quantization, shown)

    def shift(network: Network) -> float:
        apart = simulate(network, quantization)(shown) - reference.module(shown)
        return apart.mean(dim=0).abs().max().item()

    assert shift(corrected) < 0.05 * shift(plain)
    for name, layer in plain.parts.items():
        assert torch.equal(layer.weight, corrected.part(name).weight)


def _without_a_step(quantization: Quantization) -> Quantization:
    rest = {n: s for n, s in quantization.weight_scales.items() if n != "blocks.5.depthwise"}
    return replace(quantization, weight_scales=rest)


def _with(name: str, scale: float) -> Callable[[Quantization], Quantization]:
    return lambda q: replace(q, activation_scales={**q.activation_scales, name: scale})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_a_step, r"blocks\.5\.depthwise"),
        (_with("logits", 1.0), "logits"),
        (_with("images", 0.1), "images.* 0.1"),
        (_with("blocks.5.pointwise", 7 / 255), r"blocks\.5\.pointwise .* 7; .* 6"),
    ],
)
def test_a_quantisation_that_does_not_fit_the_network_is_refused(
    change: Callable[[Quantization], Quantization], message: str
) -> None:
    network, quantization = quantized("relu6")
    with pytest.raises(ValueError, match=message):
        simulate(network, change(quantization))


def test_quantising_leaves_the_float_student_as_it_was() -> None:
    model = student()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    tiny_students.quantized(model)
    after = model.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(part._forward_hooks for part in model.module.modules())
