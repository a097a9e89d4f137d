import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import students
from pipeline.models import costs
from students.mobilenet_v1 import BASE_CHANNELS, MobileNetV1, Padding, leading_zeros, scaled_channels

SIZES = (224, 192, 160, 128)
PARAMETERS = {1.0: 4.24, 0.75: 2.59, 0.5: 1.34, 0.25: 0.47}
"""Millions of parameters with 1001 classes by width, from TF-slim's table."""
PAPER = {
    (1.0, 224): 569,
    (1.0, 192): 418,
    (1.0, 160): 291,
    (1.0, 128): 186,
    (0.75, 224): 325,
    (0.75, 192): 239,
    (0.5, 224): 149,
    (0.25, 224): 41,
}
"""Millions of multiply-accumulates by width and size, from the paper's tables 4, 6, 7 and 8."""
SLIM = {
    (0.5, 192): 110,
    (0.5, 160): 77,
    (0.5, 128): 49,
    (0.25, 160): 21,
    (0.25, 128): 14,
}
"""The same from TF-slim's table, rounded to millions, for those that the paper does not give."""
DIFFERENT_IN_SLIM = {(0.75, 160): 162, (0.75, 128): 104, (0.25, 192): 34}
"""Figures of TF-slim that do not agree with the architecture; docs/decisions.md explains why."""


@pytest.mark.parametrize("width", PARAMETERS)
def test_every_width_has_the_published_number_of_parameters(width: float) -> None:
    with torch.device("meta"):
        network = MobileNetV1(classes=1001, channels=scaled_channels(width))
    trainable = costs.count_parameters(network)
    channels = sum(part.num_features for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    assert trainable / 1e6 == pytest.approx(PARAMETERS[width], abs=0.01)
    # The table agrees to its last digit with three values per channel of batch norm instead of PyTorch's two.
    assert round((trainable + channels) / 1e6, 2) == PARAMETERS[width]


@pytest.mark.parametrize(("width", "size"), [(width, size) for width in PARAMETERS for size in SIZES])
def test_every_width_and_size_has_the_published_multiply_accumulates(width: float, size: int) -> None:
    counts = {
        padding: costs.count_macs(
            MobileNetV1(classes=1000, channels=scaled_channels(width), padding=padding, size=size), size
        )
        / 1e6
        for padding in ("symmetric", "same")
    }
    assert counts["symmetric"] == counts["same"]
    count, point = counts["symmetric"], (width, size)
    if point in PAPER:
        assert count == pytest.approx(PAPER[point], rel=0.01)
    elif point in SLIM:
        assert abs(count - SLIM[point]) <= 0.51
    else:
        # Convolutions scale with the area; the classifier does not.
        classifier = 1000 * scaled_channels(width)[-1] / 1e6
        convolutions = costs.count_macs(MobileNetV1(classes=1000, channels=scaled_channels(width)), 224) / 1e6
        assert count == pytest.approx((convolutions - classifier) * (size / 224) ** 2 + classifier, rel=1e-3)
        assert abs(count - DIFFERENT_IN_SLIM[point]) > 2


def test_multiply_accumulates_are_half_of_the_operations_that_pytorch_counts() -> None:
    network = MobileNetV1(classes=7, channels=scaled_channels(0.25))
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, 96, 96))
    network.train()
    assert 2 * costs.count_macs(network, 96) == counter.get_total_flops()
    assert network.training


@pytest.mark.parametrize("size", [32, 33, 50, 96, 101, 192])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_tensorflows(size: int, stride: int) -> None:
    from timm.layers.padding import get_same_padding

    zeros = get_same_padding(size, 3, stride, 1)
    leading = leading_zeros(size, stride, "same")
    assert (leading, leading_zeros(size, stride, "symmetric")) == (zeros // 2, 1)
    # TensorFlow puts the other zeros after the map; one is all that any output reads.
    assert zeros - leading in (0, 1)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("size", [32, 50, 101])
def test_any_size_from_32_pixels_gives_logits(padding: Padding, size: int) -> None:
    network = MobileNetV1(classes=3, channels=scaled_channels(0.25), padding=padding, size=size).eval()
    assert network(torch.rand(2, 3, size, size)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"`size` \(=31\) must be at least 32"):
        MobileNetV1(classes=3, size=31)


@pytest.mark.parametrize(("width", "stem", "last"), [(1.0, 32, 1024), (0.5, 16, 512), (0.25, 8, 256)])
def test_widths_scale_every_layer(width: float, stem: int, last: int) -> None:
    channels = scaled_channels(width)
    assert (channels[0], channels[-1], len(channels)) == (stem, last, len(BASE_CHANNELS))
    assert all(channel % 8 == 0 for channel in channels)


def test_irregular_widths_and_odd_sizes_give_logits() -> None:
    network = students.build("mobilenet_v1", {"classes": 3, "channels": range(8, 22)}).eval()
    assert network(torch.rand(2, 3, 96, 64)).shape == (2, 3)


def test_a_wrong_number_of_widths_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"`channels` must have 14 entries .* 3$"):
        MobileNetV1(classes=2, channels=(8, 8, 8))
