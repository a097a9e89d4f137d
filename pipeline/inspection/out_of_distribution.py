"""Out-of-distribution images: they belong to none of the classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.data.images import list_images
from pipeline.onnx.inference import Classifier, read_image, render

Images = UInt8[np.ndarray, "images side side 3"]

GRID = 8
"""Number of patches per side of an image whose patches are shuffled."""


def draw_noise(images: Images, random: np.random.Generator) -> Images:
    """Draw every value uniformly."""
    return random.integers(0, 256, images.shape, dtype=np.uint8)


def draw_plain_colours(images: Images, random: np.random.Generator) -> Images:
    """Fill each image with one random colour."""
    colours = random.integers(0, 256, (len(images), 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, images.shape).copy()


def shuffle_patches(images: Images, random: np.random.Generator) -> Images:
    """Cut images into 8 by 8 patches that change places: their texture stays, their shape goes."""
    side = images.shape[1] // GRID
    cut = images[:, : GRID * side, : GRID * side].reshape(len(images), GRID, side, GRID, side, 3)
    patches = cut.swapaxes(2, 3).reshape(len(images), GRID * GRID, side, side, 3)
    shuffled = np.stack([random.permutation(one) for one in patches])
    grid = shuffled.reshape(len(images), GRID, GRID, side, side, 3).swapaxes(2, 3)
    result = images.copy()
    result[:, : GRID * side, : GRID * side] = grid.reshape(cut.shape[0], GRID * side, GRID * side, 3)
    return result


KINDS: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "uniform noise": draw_noise,
    "plain colours": draw_plain_colours,
    "shuffled patches": shuffle_patches,
}
"""Function that makes as many images as it gets test images, by the name of their kind."""


def read_folder(path: Path, classifier: Classifier, most: int, random: np.random.Generator) -> Images:
    """Read the images of a folder as the classifier takes them.

    Args:
        path: the folder; images at any depth are read.
        classifier: renders the images.
        most: greatest number of images; of more, as many are drawn.
        random: draws them.

    Raises:
        ImageFileError: a file cannot be decoded.
    """
    files = list_images(path)
    indices = sorted(random.permutation(len(files))[:most].tolist())
    squares = [render(classifier, read_image(files[index])) for index in indices]
    side = classifier.contract.size
    return np.stack(squares) if squares else np.empty((0, side, side, 3), np.uint8)
