"""Sixteen-bit sums of processors without VNNI."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.layers import Network
from pipeline.onnx import layout
from pipeline.parity import saturation
from pipeline.quantization.grid import integer_weight
from pipeline.quantization.simulator import Sums, simulate
from tests.tiny_students import uneven_student


def integer_layer(layer: nn.Conv2d | nn.Linear, limit: int) -> Sums:
    """A layer whose integer weights reach the limit in every channel."""
    channels = layer.weight.shape[0]
    weight = torch.randint(-limit, limit + 1, layer.weight.shape).float()
    layer.weight = nn.Parameter(weight)
    assert layer.bias is not None
    layer.bias = nn.Parameter(torch.randint(-1000, 1000, (channels,)).float())
    return Sums(layer, 1.0, torch.ones(channels), limit)


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


@pytest.mark.parametrize("zero_point", [0, 128])
@pytest.mark.parametrize(("size", "padding"), [(64, "symmetric"), (64, "same"), (50, "symmetric")])
def test_the_stem_is_cut_off_as_it_lies_in_the_file(size: int, padding: str, zero_point: int) -> None:
    """Four pixels at once where the size allows it; product by product with the weights of the file."""
    network, quantization = uneven_student(size, padding=padding)
    path = network.stem.weights
    zeros = layout.paired_stem(network, quantization, size)
    assert (zeros is not None) is (size == 64)
    simulated = simulate(network, quantization)
    saturating = saturation.saturate(simulated, {path: zeros[0]} if zeros else {}, {path: zero_point})
    # What lies above the zero point: zeros are the padding.
    images = torch.randint(200, 256, (1, size, size, 3)).float() - zero_point
    planes = _padded(network, images.permute(0, 3, 1, 2))
    exact, cut = (module.get_submodule(path)(planes / 255)[0] for module in (simulated, saturating))

    laid_out, wider, _ = layout.pair_columns(network, quantization, size)
    part = laid_out.part("stem")
    assert isinstance(part, nn.Conv2d)
    assert isinstance(part.padding, tuple)
    quads = images.reshape(1, size, size // 4, 12) if zeros else images
    read = _padded(laid_out, quads.permute(0, 3, 1, 2))
    read = nn.functional.pad(read, (part.padding[1],) * 2 + (part.padding[0],) * 2)[0] + zero_point
    weights = integer_weight(part.weight.detach(), wider.weight_scales["stem"], 127)
    (down, across), (height, width), channels = part.stride, part.kernel_size, len(cut)
    less = 0
    for y, x, number in itertools.product((0, 1, size // 2 - 1), (0, 3, 12), range(0, len(weights), 3)):
        window = read[:, down * y : down * y + height, across * x : across * x + width]
        lost = int((window * weights[number]).sum()) - added_in_16_bit(window, weights[number])
        column = 2 * x + number // channels if zeros else x
        assert exact[number % channels, y, column] - cut[number % channels, y, column] == lost
        less += lost != 0
    assert less, "some sums are cut off"


def _padded(network: Network, planes: Tensor) -> Tensor:
    """The input of the stem's convolution."""
    padding = network.stem.padding
    return planes if padding is None else network.module.get_submodule(padding)(planes)
