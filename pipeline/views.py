"""Views: random crops and flips that are a pure function of (seed, image, view number).

The teacher's stored answer for a view is therefore the answer for the very pixels that the student
gets, however often and in whatever process they are rendered again (Beyer et al. 2022, "function
matching"; Shen and Xing 2022, FKD).
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from teachers.contract import Box, InputContract

ATTEMPTS = 10
"""Draws of a crop that does not fit the image, before the whole image is taken."""


@dataclass(frozen=True)
class ViewSpace:
    """The distribution that views are drawn from."""

    seed: int
    crop_scale: tuple[float, float]
    """Least and greatest area of the crop, as a share of the image's."""
    crop_ratio: tuple[float, float]
    """Least and greatest aspect ratio of the crop: width over height."""
    flip: float
    """Probability of a horizontal flip."""


@dataclass(frozen=True)
class View:
    """One crop of one image."""

    box: Box
    flip: bool


def draw(space: ViewSpace, key: int, number: int, width: int, height: int) -> View:
    """View ``number`` of the image whose content hash starts with the 64-bit ``key``.

    The crop is drawn as Szegedy et al. 2015 do (Inception crops), in fractions of a pixel.
    """
    philox = np.random.Philox(key=np.array([key, (space.seed << 32) | number], dtype=np.uint64))
    random = np.random.Generator(philox)
    flip = bool(random.random() < space.flip)
    low, high = math.log(space.crop_ratio[0]), math.log(space.crop_ratio[1])
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*space.crop_scale)
        ratio = math.exp(random.uniform(low, high))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            return View((left, top, left + w, top + h), flip)
    return View((0.0, 0.0, float(width), float(height)), flip)


def render(image: Image.Image, view: View, contract: InputContract) -> Image.Image:
    """The pixels of a view, as a classifier with this contract takes them."""
    pixels = contract.render(image, view.box)
    return pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else pixels
