"""Eight-bit arithmetic: folding, steps, ranges and the simulator."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import students
from pipeline.models.storage import Affine, Card, Model, Quantization
from pipeline.quantization.post_training import quantize
from pipeline.quantization.simulator import (
    RAW_PIXELS,
    activation_ranges,
    bake,
    correct_biases,
    fold_batch_norm,
    int8_activations,
    integer_bias,
    layer_inputs,
    layers,
    simulate,
    weight_scales,
)
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract

SIZE = 32
FLOAT_LAYERS = ("stem", "blocks.0.depthwise")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def photographs(count: int) -> Tensor:
    """Smooth random images in [0, 1]."""
    coarse = torch.rand(count, 3, 4, 4)
    return nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)


@functools.cache
def student(activation: str = "relu") -> Model:
    """A small MobileNetV1 whose batch norms have seen data."""
    torch.manual_seed(0)
    arguments = {"classes": 4, "channels": list(scaled_channels(0.25)), "activation": activation}
    module = students.build("mobilenet_v1", arguments)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, mean=1.0, std=0.3)
    assert isinstance(module.classifier, nn.Linear)
    nn.init.normal_(module.classifier.weight, std=0.3)
    with torch.no_grad():
        module.train()(photographs(32))
    card = Card(
        variant="fp32",
        parent="teacher",
        op="distill",
        architecture="mobilenet_v1",
        arguments=arguments,
        input=InputContract(SIZE),
        labels=("a", "b", "c", "d"),
        teacher="none",
        data_sha256="",
        license="CC0-1.0",
        settings={},
    )
    return Model(module.eval(), card)


def folded(model: Model) -> nn.Module:
    return fold_batch_norm(model.module, model.card.architecture, model.card.arguments)[0]


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_folding_batch_norms_keeps_every_logit(activation: str) -> None:
    model = student(activation)
    module, arguments = fold_batch_norm(model.module, "mobilenet_v1", model.card.arguments)
    assert arguments["norm"] is False
    assert not any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    images = photographs(8)
    torch.testing.assert_close(module(images), model.module(images), rtol=1e-4, atol=1e-4)


def test_every_layer_reads_the_output_of_the_one_before() -> None:
    inputs = layer_inputs(folded(student()))
    assert len(inputs) == 28
    assert inputs["stem"] == "images"
    assert inputs["blocks.3.pointwise"] == "blocks.3.depthwise"
    assert inputs["blocks.4.depthwise"] == "blocks.3.pointwise"
    assert inputs["classifier"] == "pool"


def test_only_activations_that_an_int8_layer_touches_are_quantised() -> None:
    module = folded(student())
    assert {"images", "stem", "pool"} <= set(int8_activations(module, ()))
    partly = int8_activations(module, FLOAT_LAYERS)
    assert "images" not in partly
    assert "stem" not in partly
    assert "blocks.0.depthwise" in partly
    assert "classifier" not in partly


def test_an_unknown_float_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"blocks\.99"):
        int8_activations(folded(student()), ["blocks.99"])


@pytest.mark.parametrize("limit", [127, 63])
def test_baked_weights_are_whole_steps_within_the_limit_and_the_rest_is_untouched(limit: int) -> None:
    module = folded(student())
    scales = weight_scales(module, limit, FLOAT_LAYERS)
    baked = layers(bake(module, scales, limit))
    for name, layer in layers(module).items():
        if name in FLOAT_LAYERS:
            assert name not in scales
            assert torch.equal(baked[name].weight, layer.weight)
            continue
        integers = baked[name].weight.flatten(1) / scales[name][:, None]
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
        assert integers.abs().max() < limit + 0.5


def test_a_weight_limit_other_than_127_or_63_is_refused() -> None:
    with pytest.raises(ValueError, match=r"64.*127.*63"):
        weight_scales(folded(student()), 64)


@pytest.mark.parametrize("limit", [127, 63])
def test_searched_steps_err_less_than_the_full_range_does(limit: int) -> None:
    module = folded(student())
    layer = layers(module)["blocks.9.pointwise"]
    full = layer.weight.detach().flatten(1).abs().amax(dim=1) / limit

    def error(scale: Tensor) -> float:
        baked = bake(module, {"blocks.9.pointwise": scale}, limit)
        return (layers(baked)["blocks.9.pointwise"].weight - layer.weight).square().sum().item()

    assert error(weight_scales(module, limit)["blocks.9.pointwise"]) < error(full)


def test_a_channel_without_weights_keeps_a_step_that_its_bias_can_count() -> None:
    module = folded(student())
    with torch.no_grad():
        layers(module)["blocks.2.depthwise"].weight[0] = 0
    scale = weight_scales(module, 127)["blocks.2.depthwise"]
    assert scale.min() > 0
    assert integer_bias(torch.ones_like(scale), 0.01, scale).abs().max() < 2**31


def test_a_bias_beyond_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="2\\^31"):
        integer_bias(torch.ones(3), 1e-6, torch.full((3,), 1e-6))


def test_no_other_range_errs_less_on_the_calibration_images() -> None:
    module = folded(student()).requires_grad_(False)
    images = photographs(16)
    ranges = activation_ranges(module, lambda: iter(images.split(4)))
    values = module.get_submodule("stem")(images)

    def error(scale: float) -> float:
        return float((values - (values / scale).round().clamp(0, 255) * scale).square().mean())

    full = float(values.max()) / 255
    others = [error(full * ratio) for ratio in torch.linspace(0.2, 1.1, 50).tolist()]
    assert error(ranges["stem"].scale) < 1.02 * min(others)
    assert error(ranges["stem"].scale) < error(full)
    assert ranges["stem"].zero_point == 0
    assert ranges["images"] == RAW_PIXELS


def test_ranges_do_not_depend_on_the_order_or_the_size_of_batches() -> None:
    module = folded(student())
    images = photographs(12)
    one = activation_ranges(module, lambda: iter(images.split(12)))
    other = activation_ranges(module, lambda: iter(images.flip(0).split(5)))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].scale == pytest.approx(other[name].scale, rel=0.02)


def test_calibration_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="no calibration images"):
        activation_ranges(folded(student()), lambda: iter(()))


@functools.cache
def quantized(
    activation: str, limit: int = 127, float_layers: tuple[str, ...] = ()
) -> tuple[nn.Module, Quantization]:
    """The small student after post-training quantisation."""
    images = photographs(32)
    return quantize(
        student(activation), lambda: iter(images.split(8)), weight_limit=limit, float_layers=float_layers
    )


def relative_error(answers: Tensor, wanted: Tensor) -> float:
    return ((answers - wanted).square().mean().sqrt() / wanted.std()).item()


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("float_layers", [(), FLOAT_LAYERS])
def test_eight_bits_stay_near_the_float_student(activation: str, float_layers: tuple[str, ...]) -> None:
    model = student(activation)
    module, quantization = quantized(activation, 127, float_layers)
    images = (photographs(32) * 255).round() / 255
    error = relative_error(simulate(module, quantization)(images), model.module(images))
    assert 0 < error < 0.35


def test_a_layer_of_the_simulator_does_the_integer_sums_by_hand() -> None:
    module, quantization = quantized("relu")
    name = "blocks.1.pointwise"
    read, written = quantization.activations["blocks.1.depthwise"], quantization.activations[name]
    layer, step = layers(module)[name], quantization.weight_scales[name]
    integers = torch.randint(0, 256, (2, layer.weight.shape[1], 3, 3))
    weight = (layer.weight.flatten(1) / step[:, None]).round().long()
    assert layer.bias is not None
    bias = integer_bias(layer.bias, read.scale, step)
    sums = torch.einsum("oc,bchw->bohw", weight, integers) + bias.view(-1, 1, 1)
    factor = torch.tensor(read.scale) * step / torch.tensor(written.scale)
    wanted = (sums.float() * factor.view(-1, 1, 1)).round().clamp(0, 255)
    unit = simulate(module, quantization).get_submodule(name)
    answer = unit(integers * read.scale) / written.scale
    torch.testing.assert_close(answer, wanted, rtol=0, atol=1e-3)


def test_bias_correction_brings_the_mean_of_every_channel_to_the_float_one() -> None:
    reference = folded(student())
    images = photographs(16)
    scales = weight_scales(reference, 63)
    ranges = activation_ranges(reference, lambda: iter(images.split(16)))
    quantization = Quantization(scales, 63, ranges)
    plain = bake(reference, scales, 63)
    corrected = correct_biases(plain, reference, quantization, images)

    def shift(module: nn.Module) -> float:
        return (simulate(module, quantization)(images) - reference(images)).mean(dim=0).abs().max().item()

    assert shift(corrected) < 0.05 * shift(plain)
    for name, layer in layers(plain).items():
        assert torch.equal(layer.weight, layers(corrected)[name].weight)


def _without_a_step(quantization: Quantization) -> Quantization:
    rest = {n: s for n, s in quantization.weight_scales.items() if n != "blocks.5.depthwise"}
    return replace(quantization, weight_scales=rest)


def _with(quantization: Quantization, name: str, affine: Affine) -> Quantization:
    return replace(quantization, activations={**quantization.activations, name: affine})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_a_step, "blocks.5.depthwise"),
        (lambda q: _with(q, "logits", Affine(1.0, 0)), "logits"),
        (lambda q: _with(q, "pool", Affine(0.1, 3)), "zero point 3"),
        (lambda q: _with(q, "images", Affine(0.1, 0)), "images"),
        (lambda q: _with(q, "blocks.5.pointwise", Affine(7 / 255, 0)), "reaches 7; its clip allows 6"),
    ],
)
def test_a_quantisation_that_does_not_fit_the_module_is_refused(change, message: str) -> None:
    module, quantization = quantized("relu6")
    with pytest.raises(ValueError, match=message):
        simulate(module, change(quantization))


def test_quantising_leaves_the_float_student_as_it_was() -> None:
    model = student()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    quantized.__wrapped__("relu")
    after = model.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(part._forward_hooks for part in model.module.modules())
