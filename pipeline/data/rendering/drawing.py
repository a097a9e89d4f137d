"""Views and mixtures of many images at once: the very numbers that ``views.draw`` and ``views.draw_mixture``
give one by one.

NumPy's generator is made anew for every view, which takes longer than to render a small one on a GPU. Here
Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") runs on arrays.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from pipeline.data import views
from pipeline.data.views import Mixture, ViewSpace

MULTIPLIERS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], np.uint64)
"""Constants of Philox-4x64: the factors of the first and the third word of a counter."""
STEPS = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], np.uint64)
"""What is added to both words of the key after every round."""
ROUNDS = 10
BLOCK = 4
"""Number of words per value of the counter."""
FIRST_ATTEMPTS = 3
"""Number of draws of a crop that are computed for all images; few need more."""
LOW, HALF = np.uint64(2**32 - 1), np.uint64(32)


@dataclass(frozen=True)
class Views:
    """One view of each of some images."""

    boxes: Float64[np.ndarray, "views 4"]
    """Left, top, right and bottom in pixels of the image."""
    flips: Bool[np.ndarray, " views"]
    colours: Float64[np.ndarray, "views 3"]
    """Factors of brightness, contrast and saturation."""

    def of(self, rows: Int64[np.ndarray, " some"]) -> "Views":
        """Some of the views."""
        return Views(self.boxes[rows], self.flips[rows], self.colours[rows])


@dataclass(frozen=True)
class Mixtures:
    """What each of some views is mixed with."""

    partners: Int64[np.ndarray, " views"]
    """Index of the other image; -1 for a view that shows one image only."""
    weights: Float64[np.ndarray, " views"]
    """Share of the view that shows the image itself; 1 for a view that shows one image only."""
    patches: Float64[np.ndarray, "views 4"]
    """Rectangle that the partner covers, in fractions of the view; NaN if there is none."""

    def of(self, rows: Int64[np.ndarray, " some"]) -> "Mixtures":
        """Those of some of the views."""
        return Mixtures(self.partners[rows], self.weights[rows], self.patches[rows])

    def at(self, row: int) -> Mixture | None:
        """The mixture of one view; None if it shows one image only."""
        if self.partners[row] < 0:
            return None
        left, top, right, bottom = self.patches[row].tolist()
        patch = None if math.isnan(left) else (left, top, right, bottom)
        return Mixture(int(self.partners[row]), float(self.weights[row]), patch)


def draw(
    space: ViewSpace,
    keys: UInt64[np.ndarray, " views"],
    numbers: Int64[np.ndarray, " views"],
    widths: Int64[np.ndarray, " views"],
    heights: Int64[np.ndarray, " views"],
) -> Views:
    """Draw a view of each image, as ``views.draw`` does.

    Args:
        space: distribution of the views.
        keys: first 64 bits of the content hash of each image.
        numbers: number of each view.
        widths: width of each image in pixels.
        heights: height of each image in pixels.
    """
    uniform = _uniform(space, keys, numbers, stream=0, count=1 + 2 * FIRST_ATTEMPTS + 5)
    flips = uniform[:, 0] < space.flip
    boxes, places, fits = _crops(space, uniform, widths, heights, FIRST_ATTEMPTS)
    colours = _colours(space, uniform, places)
    if not fits.all():
        rest = np.flatnonzero(~fits)
        more = _uniform(space, keys[rest], numbers[rest], stream=0, count=1 + 2 * views.ATTEMPTS + 5)
        boxes[rest], places, _ = _crops(space, more, widths[rest], heights[rest], views.ATTEMPTS)
        colours[rest] = _colours(space, more, places)
    return Views(boxes, flips, colours)


def draw_mixtures(
    space: ViewSpace,
    keys: UInt64[np.ndarray, " views"],
    numbers: Int64[np.ndarray, " views"],
    images: Int64[np.ndarray, " views"],
) -> Mixtures:
    """Draw what each view is mixed with, as ``views.draw_mixture`` does.

    Args:
        space: distribution of the views.
        keys: first 64 bits of the content hash of each image.
        numbers: number of each view.
        images: number of images of which one can be the partner, per view.
    """
    words = _words(space, keys, numbers, stream=1, count=5)
    # A whole number takes one word, of which the lower half counts (Lemire 2019); of one image, none.
    product = (words[:, 1] & LOW) * images.astype(np.uint64)
    choice = images > 1
    partners = np.where(choice, product >> HALF, np.uint64(0)).astype(np.int64)
    places = 1 + choice[:, None] + np.arange(3)
    weights, x, y = np.take_along_axis(_fractions(words), places, axis=1).T
    kinds = _fractions(words[:, 0])
    blended = kinds < space.mixup
    patched = ~blended & (kinds < space.mixup + space.cutmix)

    half = np.sqrt(1 - weights) / 2
    patches = np.stack(
        [np.maximum(0, x - half), np.maximum(0, y - half), np.minimum(1, x + half), np.minimum(1, y + half)],
        axis=1,
    )
    left, top, right, bottom = patches.T
    weights = np.where(patched, 1 - (right - left) * (bottom - top), np.where(blended, weights, 1.0))
    partners[~(blended | patched)] = -1
    patches[~patched] = np.nan
    # A product whose lower half is small may be drawn again, once in thousands of views at most.
    for row in np.flatnonzero(choice & ((product & LOW) < images.astype(np.uint64))):
        mixture = views.draw_mixture(space, int(keys[row]), int(numbers[row]), int(images[row]))
        if mixture is not None:
            partners[row], weights[row] = mixture.partner, mixture.weight
            patches[row] = mixture.patch or np.nan
    return Mixtures(partners, weights, patches)


def _crops(
    space: ViewSpace,
    uniform: Float64[np.ndarray, "views words"],
    widths: Int64[np.ndarray, " views"],
    heights: Int64[np.ndarray, " views"],
    attempts: int,
) -> tuple[Float64[np.ndarray, "views 4"], Int64[np.ndarray, " views"], Bool[np.ndarray, " views"]]:
    """The crop of each image, the place of the word after those that it took, and whether it fits the image;
    one that does not is the whole image."""
    low, high = (math.log(ratio) for ratio in space.crop_ratio)
    boxes = np.stack([np.zeros_like(widths), np.zeros_like(widths), widths, heights], axis=1).astype(float)
    places = np.full(len(uniform), 1 + 2 * attempts)
    fits = np.zeros(len(uniform), bool)
    rest = np.arange(len(uniform))
    for attempt in range(attempts):
        scale, ratio, x, y = uniform[rest, 1 + 2 * attempt : 5 + 2 * attempt].T
        width, height = widths[rest], heights[rest]
        area = width * height * views.between(*space.crop_scale, scale)
        # NumPy's exponential function differs in the last bit from that of Python.
        ratio = np.array([math.exp(value) for value in views.between(low, high, ratio).tolist()])
        w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
        fit = (w <= width) & (h <= height)
        left, top = views.between(0, width - w, x), views.between(0, height - h, y)
        rows = rest[fit]
        boxes[rows] = np.stack([left, top, left + w, top + h], axis=1)[fit]
        places[rows], fits[rows] = 5 + 2 * attempt, True
        rest = rest[~fit]
        if not len(rest):
            break
    return boxes, places, fits


def _colours(
    space: ViewSpace, uniform: Float64[np.ndarray, "views words"], places: Int64[np.ndarray, " views"]
) -> Float64[np.ndarray, "views 3"]:
    if not space.colour:
        return np.ones((len(uniform), 3))
    factors = np.take_along_axis(uniform, places[:, None] + np.arange(3), axis=1)
    return views.between(1 - space.colour, 1 + space.colour, factors)


def _uniform(
    space: ViewSpace,
    keys: UInt64[np.ndarray, " views"],
    numbers: Int64[np.ndarray, " views"],
    stream: int,
    count: int,
) -> Float64[np.ndarray, "views words"]:
    return _fractions(_words(space, keys, numbers, stream, count))


def _fractions(words: UInt64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Numbers from 0 to below 1 with 53 bits, as ``Generator.random`` gives them."""
    return (words >> np.uint64(11)) * 2.0**-53


def _words(
    space: ViewSpace,
    keys: UInt64[np.ndarray, " views"],
    numbers: Int64[np.ndarray, " views"],
    stream: int,
    count: int,
) -> UInt64[np.ndarray, "views words"]:
    """The first words of the generator of each view: at least ``count`` of them."""
    shape = len(keys), math.ceil(count / BLOCK)
    seed = np.uint64(space.seed << 32)
    first = np.broadcast_to(keys[:, None], shape)
    second = np.broadcast_to((seed | numbers.astype(np.uint64))[:, None], shape)
    # NumPy counts up before it takes the first block.
    counter = np.broadcast_to(np.arange(1, shape[1] + 1, dtype=np.uint64), shape)
    zero = np.zeros(shape, np.uint64)
    words = [counter, zero, zero, np.full(shape, stream, np.uint64)]
    for _ in range(ROUNDS):
        upper, lower = _product(MULTIPLIERS[0], words[0])
        other_upper, other_lower = _product(MULTIPLIERS[1], words[2])
        words = [other_upper ^ words[1] ^ first, other_lower, upper ^ words[3] ^ second, lower]
        first, second = first + STEPS[0], second + STEPS[1]
    return np.stack(words, axis=2).reshape(len(keys), -1)


def _product(
    factor: np.uint64, values: UInt64[np.ndarray, "views blocks"]
) -> tuple[UInt64[np.ndarray, "views blocks"], UInt64[np.ndarray, "views blocks"]]:
    """Upper and lower 64 bits of the products."""
    high, low = factor >> HALF, factor & LOW
    value_high, value_low = values >> HALF, values & LOW
    one, other = high * value_low, low * value_high
    carry = ((low * value_low) >> HALF) + (one & LOW) + (other & LOW)
    return high * value_high + (one >> HALF) + (other >> HALF) + (carry >> HALF), factor * values
