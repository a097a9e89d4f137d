"""Views: random crops, flips, colours and mixtures, a pure function of (seed, image, view number).

The teacher's stored answer for a view is therefore the answer for the very pixels that the student
gets, however often and in whatever process they are rendered again (Beyer et al. 2022, "function
matching"; Shen and Xing 2022, FKD).
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.data.settings import Augmentation
from teachers.contract import Box, InputContract

ATTEMPTS = 10
"""Draws of a crop that does not fit the image, before the whole image is taken."""

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
        """The same crops and flips, without colours and mixtures."""
        return self.model_copy(update={"colour": 0.0, "mixup": 0.0, "cutmix": 0.0})


def space(settings: Augmentation, seed: int) -> ViewSpace:
    """The views that the settings describe, drawn with ``seed``."""
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
    """What a view shows of another image."""

    partner: int
    """The other image's number in the split; it is shown as in its own view of the same number."""
    weight: float
    """Share of the image itself."""
    patch: Box | None
    """The rectangle that the partner covers, in fractions of the view; None blends the two."""


def draw(space: ViewSpace, key: int, number: int, width: int, height: int) -> View:
    """View ``number`` of the image whose content hash starts with the 64-bit ``key``.

    The crop is drawn as Szegedy et al. 2015 do (Inception crops), in fractions of a pixel.
    """
    random = _generator(space, key, number, stream=0)
    flip = bool(random.random() < space.flip)
    box = _crop(space, random, width, height)
    if not space.colour:
        return View(box, flip)
    low, high = 1 - space.colour, 1 + space.colour
    return View(box, flip, (random.uniform(low, high), random.uniform(low, high), random.uniform(low, high)))


def draw_mixture(space: ViewSpace, key: int, number: int, images: int) -> Mixture | None:
    """Which of the split's ``images`` view ``number`` is mixed with, and how; None leaves it alone.

    Mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) and CutMix (Yun et al. 2019,
    https://arxiv.org/abs/1905.04899), both with a weight that is uniform from 0 to 1.
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
    """The pixels of a view, as a classifier with this contract takes them."""
    pixels = contract.render(image, view.box)
    if view.flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhancer, factor in zip(ENHANCERS, view.colour, strict=True):
        if factor != 1:
            pixels = enhancer(pixels).enhance(factor)
    return pixels


def mix(pixels: Image.Image, partner: Image.Image, mixture: Mixture) -> Image.Image:
    """Two rendered views of one size as a mixture shows them."""
    if mixture.patch is None:
        return Image.blend(partner, pixels, mixture.weight)
    side = pixels.width
    left, top, right, bottom = (round(edge * side) for edge in mixture.patch)
    mixed = pixels.copy()
    mixed.paste(partner.crop((left, top, right, bottom)), (left, top))
    return mixed


def _generator(space: ViewSpace, key: int, number: int, stream: int) -> np.random.Generator:
    words = np.array([key, (space.seed << 32) | number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words, counter=[0, 0, 0, stream]))


def _crop(space: ViewSpace, random: np.random.Generator, width: int, height: int) -> Box:
    low, high = math.log(space.crop_ratio[0]), math.log(space.crop_ratio[1])
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*space.crop_scale)
        ratio = math.exp(random.uniform(low, high))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            return left, top, left + w, top + h
    return 0.0, 0.0, float(width), float(height)
