"""The ranges of activations: histograms over the calibration images, and where each is clipped."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.models.layers import IMAGES, Network
from pipeline.quantization.grid import LEVELS, PIXEL_SCALE, int8_activations
from pipeline.quantization.observation import Batches, observe

ACTIVATION_RATIOS = torch.logspace(0, -1, 181).tolist()
"""Shares of the full range that the search for a clip tries, in steps of 1.3 %. They reach farther down than
those of weights, since activations have longer tails."""
BINS = 4096
"""Bins of a histogram, 16 for each of the 256 levels."""
COUNTED = 2**20
"""Number of values per batch that enter a histogram; of more, every n-th. To count all would take longer than
to compute them."""


@dataclass(frozen=True)
class Histogram:
    """The positive values of an activation over all calibration images; zeros are exact at any scale."""

    counts: Float[Tensor, " bins"]
    greatest: float
    """End of the last bin; the first begins at 0."""

    @property
    def centres(self) -> Float[Tensor, " bins"]:
        """The middle of each bin."""
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * (self.greatest / BINS)


Clip = Callable[[Histogram], float]
"""Chooses the value that an activation's greatest integer stands for."""


def activation_scales(
    network: Network, batches: Batches, float_layers: Collection[str] = ()
) -> dict[str, float]:
    """The scale of least expected squared error of every activation that is quantised.

    Raises:
        ValueError: see ``activation_histograms``.
    """
    histograms = activation_histograms(network, batches, float_layers)
    return clipped_scales(network, histograms, float_layers, least_squares_clip)


def clipped_scales(
    network: Network, histograms: Mapping[str, Histogram], float_layers: Collection[str], clip: Clip
) -> dict[str, float]:
    """The scale of every activation that is quantised, from its histogram.

    Ranges start at 0, since every activation follows a ReLU. ``images`` are raw bytes.
    """
    return {
        name: PIXEL_SCALE if name == IMAGES else _clip(histograms[name], clip) / LEVELS
        for name in int8_activations(network, float_layers)
    }


def _clip(histogram: Histogram, clip: Clip) -> float:
    """The clip of an activation; of one that no image wakes, whose integers are 0 at any scale, its end."""
    return clip(histogram) if histogram.counts.any() else histogram.greatest


@torch.no_grad()
def activation_histograms(
    network: Network, batches: Batches, float_layers: Collection[str] = ()
) -> dict[str, Histogram]:
    """The values of every activation that is quantised, except ``images``.

    Runs through the calibration images twice, once for the greatest value of each activation and once for the
    histogram of an even part of its values, so that memory does not grow with their number.

    Raises:
        ValueError: there are no images, or an activation is negative or not a number.
    """
    observed = [name for name in int8_activations(network, float_layers) if name != IMAGES]
    greatest = dict.fromkeys(observed, 0.0)

    def widen(name: str, values: Tensor) -> None:
        low, high = map(float, torch.aminmax(values))
        if not 0 <= low <= high < math.inf:
            raise ValueError(
                f"activation {name} ranges from {low:.3g} to {high:.3g}; an activation must follow a ReLU "
                "and be finite"
            )
        greatest[name] = max(greatest[name], high)

    observe(network, batches, observed, widen)
    # A layer that no image wakes, as in a student that has learned nothing, has any range.
    greatest = {name: value or 1.0 for name, value in greatest.items()}
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in observed}

    def count(name: str, values: Tensor) -> None:
        counted = _spread(values).float().cpu()
        counts[name] += torch.histc(counted, BINS, 0, greatest[name]).double()
        counts[name][0] -= int((counted == 0).sum())

    observe(network, batches, observed, count)
    return {name: Histogram(counts[name], greatest[name]) for name in observed}


def _spread(values: Float[Tensor, "batch channels *map"]) -> Float[Tensor, " some"]:
    """At most ``COUNTED`` values, of all channels alike, and of all places about alike."""
    channels = values.shape[1]
    step = -(-values.numel() // COUNTED)
    while math.gcd(step, channels) > 1:  # which would leave out channels
        step += 1
    return values.movedim(1, -1).flatten()[::step]  # the order of the memory, which is read once


def least_squares_clip(histogram: Histogram) -> float:
    """The clip of least expected squared error, searched over shares of the range."""
    centres = histogram.centres
    best, best_error = histogram.greatest, float("inf")
    for ratio in ACTIVATION_RATIOS:
        clip = histogram.greatest * ratio
        step = clip / LEVELS
        apart = centres - (centres / step).round().clamp(0, LEVELS) * step
        error = float((histogram.counts * apart.square()).sum())
        if error < best_error:
            best, best_error = clip, error
    return best
