"""Views: random crops, flips, colours and mixtures, a pure function of (seed, image, view number).

A mixture also depends on which images the split holds, in their order, since its partner is one of them.

The teacher's stored answer for a view is therefore the answer for the very pixels that the student
gets, however often and in whatever process they are rendered again (Beyer et al. 2022, "function
matching"; Shen and Xing 2022, FKD).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.data.settings import Augmentation
from teachers.contract import Box, InputContract

ATTEMPTS = 10
"""Number of draws of a crop that does not fit the image before the whole image is taken."""

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class ViewSpace(Augmentation):
    """The distribution that views are drawn from, with its seed."""

    seed: int
    """Seed of all views, below 2**32."""

    @property
    def mixes(self) -> bool:
        """Whether a view can show two images."""
        return self.mixup + self.cutmix > 0

    def plain(self) -> "ViewSpace":
        """Return the same space without changes of colour and without mixtures."""
        return self.model_copy(update={"colour": 0.0, "mixup": 0.0, "cutmix": 0.0})


def space(settings: Augmentation, seed: int) -> ViewSpace:
    """Return the space that the settings describe, with its seed."""
    return ViewSpace(seed=seed, **{name: getattr(settings, name) for name in Augmentation.model_fields})


@dataclass(frozen=True)
class View:
    """One crop of one image."""

    box: Box
    flip: bool
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors of brightness, contrast and saturation."""


@dataclass(frozen=True)
class Mixture:
    """The part of a view that shows another image."""

    partner: int
    """Index of the other image in the split, of which the view with the same number is shown."""
    weight: float
    """Share of the view that shows the image itself."""
    patch: Box | None
    """Rectangle that the partner covers, in fractions of the view; None if the two are blended."""


def draw(space: ViewSpace, key: int, number: int, width: int, height: int) -> View:
    """Draw view ``number`` of the image whose content hash starts with the 64-bit ``key``.

    The crop is drawn as by Szegedy et al. 2015 (Inception crops), in fractions of a pixel.

    Args:
        space: distribution of the views.
        key: first 64 bits of the image's content hash.
        number: number of the view.
        width: width of the image in pixels.
        height: height of the image in pixels.
    """
    random = _generator(space, key, number, stream=0)
    flip = bool(random.random() < space.flip)
    box = _crop(space, random, width, height)
    if not space.colour:
        return View(box, flip)
    brightness, contrast, saturation = (
        between(1 - space.colour, 1 + space.colour, random.random()) for _ in range(3)
    )
    return View(box, flip, (brightness, contrast, saturation))


def draw_mixture(space: ViewSpace, key: int, number: int, images: int) -> Mixture | None:
    """Draw which of the split's ``images`` view ``number`` is mixed with, and how; None if it is not mixed.

    Mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) and CutMix (Yun et al. 2019,
    https://arxiv.org/abs/1905.04899), both with a weight that is uniform between 0 and 1.
    """
    if not space.mixes:
        return None
    random = _generator(space, key, number, stream=1)
    kind, partner, weight = random.random(), int(random.integers(images)), random.random()
    if kind < space.mixup:
        return Mixture(partner, weight, None)
    if kind < space.mixup + space.cutmix:
        half = math.sqrt(1 - weight) / 2
        x, y = random.random(), random.random()
        patch = max(0.0, x - half), max(0.0, y - half), min(1.0, x + half), min(1.0, y + half)
        return Mixture(partner, 1 - (patch[2] - patch[0]) * (patch[3] - patch[1]), patch)
    return None


def render(image: Image.Image, view: View, contract: InputContract) -> Image.Image:
    """Render a view of an image, in RGB or grey, as a classifier with this input contract takes it."""
    pixels = contract.render(image, view.box)
    if view.flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if pixels.mode != "RGB":
        pixels = pixels.convert("RGB")
    for enhancer, factor in zip(ENHANCERS, view.colour, strict=True):
        if factor != 1:
            pixels = enhancer(pixels).enhance(factor)
    return pixels


def mix(pixels: Image.Image, partner: Image.Image, mixture: Mixture) -> Image.Image:
    """Mix two rendered views of the same size."""
    if mixture.patch is None:
        return Image.blend(partner, pixels, mixture.weight)
    side = pixels.width
    left, top, right, bottom = (round(edge * side) for edge in mixture.patch)
    mixed = pixels.copy()
    mixed.paste(partner.crop((left, top, right, bottom)), (left, top))
    return mixed


def between(low: Any, high: Any, fraction: Any) -> Any:
    """The number, or the array of numbers, at a fraction of the way from ``low`` to ``high``.

    It is not ``Generator.uniform``, which rounds once less where a processor adds and multiplies in one step.
    """
    return low + (high - low) * fraction


def _generator(space: ViewSpace, key: int, number: int, stream: int) -> np.random.Generator:
    words = np.array([key, (space.seed << 32) | number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words, counter=[0, 0, 0, stream]))


def _crop(space: ViewSpace, random: np.random.Generator, width: int, height: int) -> Box:
    low, high = math.log(space.crop_ratio[0]), math.log(space.crop_ratio[1])
    for _ in range(ATTEMPTS):
        area = width * height * between(*space.crop_scale, random.random())
        ratio = math.exp(between(low, high, random.random()))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = between(0, width - w, random.random()), between(0, height - h, random.random())
            return left, top, left + w, top + h
    return 0.0, 0.0, float(width), float(height)
