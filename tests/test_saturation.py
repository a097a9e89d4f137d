"""Sixteen-bit sums of processors without VNNI."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.storage import Affine
from pipeline.onnx import layout
from pipeline.parity import saturation
from pipeline.quantization.simulator import Sums, integer_weight, simulate
from tests.test_onnx_layout import int8_student


def integer_layer(layer: nn.Conv2d | nn.Linear, limit: int) -> Sums:
    """A layer whose integer weights reach the limit in every channel."""
    channels = layer.weight.shape[0]
    weight = torch.randint(-limit, limit + 1, layer.weight.shape).float()
    layer.weight = nn.Parameter(weight)
    assert layer.bias is not None
    layer.bias = nn.Parameter(torch.randint(-1000, 1000, (channels,)).float())
    return Sums(layer, Affine(1.0, 0), torch.ones(channels), limit)


def added_in_16_bit(image: Tensor, weight: Tensor) -> int:
    """One output, product by product: neighbours are input channels, place after place of the kernel."""
    read = image.permute(1, 2, 0).flatten().long().tolist()
    taken = weight.permute(1, 2, 0).flatten().long().tolist()
    products = [a * w for a, w in zip(read, taken, strict=True)]
    pairs = itertools.zip_longest(products[::2], products[1::2], fillvalue=0)
    return sum(max(-32768, min(32767, first + second)) for first, second in pairs)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("channels", "kernel"), [(3, 3), (8, 1), (7, 1), (4, 3)])
def test_pairs_are_cut_off_as_one_product_after_the_other_would_be(channels: int, kernel: int) -> None:
    layer = integer_layer(nn.Conv2d(channels, 6, kernel, stride=2, padding=kernel // 2), 127)
    image = torch.randint(128, 256, (1, channels, 9, 9)).float()
    found = saturation.saturate(nn.Sequential(layer))(image)
    weights = layer.apply_weights
    assert weights.bias is not None
    padded = nn.functional.pad(image[0], [kernel // 2] * 4)
    wanted = torch.tensor(
        [
            [
                [
                    added_in_16_bit(
                        padded[:, 2 * y : 2 * y + kernel, 2 * x : 2 * x + kernel], weights.weight[o]
                    )
                    + int(weights.bias[o])
                    for x in range(5)
                ]
                for y in range(5)
            ]
            for o in range(6)
        ]
    )
    assert torch.equal(found[0].long(), wanted)
    assert not torch.equal(found, layer(image))


def test_a_linear_layer_adds_neighbouring_features() -> None:
    layer = integer_layer(nn.Linear(4, 1), 127)
    layer.apply_weights.weight = nn.Parameter(torch.tensor([[127.0, 127.0, -127.0, -127.0]]))
    layer.apply_weights.bias = nn.Parameter(torch.zeros(1))
    shown = torch.tensor([[255.0, 255.0, 255.0, 0.0]])
    assert saturation.saturate(nn.Sequential(layer))(shown).item() == 32767 - 127 * 255


@pytest.mark.parametrize(("limit", "safe"), [(63, True), (127, False)])
def test_seven_bits_are_proven_to_be_safe_and_eight_are_not(limit: int, safe: bool) -> None:
    layers = nn.Sequential(
        integer_layer(nn.Conv2d(8, 32, 1), limit), integer_layer(nn.Conv2d(32, 32, 3, groups=32), 127)
    )
    least, greatest = saturation.extremes(layers)
    assert (least >= -(2**15) and greatest <= 2**15 - 1) is safe
    images = torch.full((1, 8, 3, 3), 255.0)
    assert torch.equal(saturation.saturate(layers)(images), layers(images)) is safe


@pytest.mark.parametrize(("size", "padding"), [(64, "symmetric"), (64, "same"), (50, "symmetric")])
def test_the_stem_is_cut_off_as_it_lies_in_the_file(size: int, padding: str) -> None:
    """Four pixels at once where the size allows it; product by product with the weights of the file."""
    module, quantization = int8_student(size, padding=padding)
    stem = layout.paired_stem(module, quantization, size)
    assert (stem is not None) is (size == 64)
    simulated = simulate(module, quantization)
    cut = saturation.saturate(simulated, {stem[0]: stem[1][0]} if stem else {})
    images = torch.randint(200, 256, (1, size, size, 3)).float()
    planes = _padded(module, images.permute(0, 3, 1, 2))
    whole, found = (of.get_submodule("stem.conv")(planes / 255)[0] for of in (simulated, cut))

    laid_out, scales, _ = layout.pair_columns(module, quantization, size)
    part = laid_out.get_submodule("stem.conv")
    assert isinstance(part, nn.Conv2d)
    assert isinstance(part.padding, tuple)
    quads = images.reshape(1, size, size // 4, 12) if stem else images
    read = _padded(laid_out, quads.permute(0, 3, 1, 2))
    read = nn.functional.pad(read, (part.padding[1],) * 2 + (part.padding[0],) * 2)[0]
    weights = integer_weight(part.weight.detach(), scales.weight_scales["stem"], 127)
    (down, across), (height, width), channels = part.stride, part.kernel_size, len(found)
    less = 0
    for y, x, number in itertools.product((0, 1, size // 2 - 1), (0, 3, 12), range(0, len(weights), 3)):
        window = read[:, down * y : down * y + height, across * x : across * x + width]
        lost = int((window * weights[number]).sum()) - added_in_16_bit(window, weights[number])
        column = 2 * x + number // channels if stem else x
        assert whole[number % channels, y, column] - found[number % channels, y, column] == lost
        less += lost != 0
    assert less, "some sums are cut off"


def _padded(module: nn.Module, planes: Tensor) -> Tensor:
    """What the stem's convolution reads."""
    for part in module.get_submodule("stem").children():
        planes = part(planes) if isinstance(part, nn.ZeroPad2d) else planes
    return planes
