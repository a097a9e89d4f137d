import pytest
import torch

import students
from pipeline import costs
from students.mobilenet_v1 import BASE_CHANNELS, MobileNetV1, scaled_channels


def test_the_075_192_network_has_the_published_size_and_cost() -> None:
    with torch.device("meta"):
        network = MobileNetV1(classes=1000, channels=scaled_channels(0.75))
    assert costs.count_parameters(network) == 2_585_560
    network = network.to_empty(device="cpu")
    assert costs.count_macs(network, 192) == pytest.approx(239e6, rel=0.01)


@pytest.mark.parametrize(("width", "stem", "last"), [(1.0, 32, 1024), (0.5, 16, 512), (0.25, 8, 256)])
def test_widths_scale_every_layer(width: float, stem: int, last: int) -> None:
    channels = scaled_channels(width)
    assert (channels[0], channels[-1], len(channels)) == (stem, last, len(BASE_CHANNELS))
    assert all(channel % 8 == 0 for channel in channels)


def test_irregular_widths_and_odd_sizes_give_logits() -> None:
    network = students.build("mobilenet_v1", {"classes": 3, "channels": range(8, 22)}).eval()
    assert network(torch.rand(2, 3, 96, 64)).shape == (2, 3)


def test_a_wrong_number_of_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="channels has 3 entries; MobileNetV1 has 14"):
        MobileNetV1(classes=2, channels=(8, 8, 8))
