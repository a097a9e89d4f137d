"""Images that belong to no class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.data.images import below
from pipeline.onnx.inference import Classifier, read_image, render

Images = UInt8[np.ndarray, "images side side 3"]

GRID = 8
"""Patches a side."""


def noise(images: Images, random: np.random.Generator) -> Images:
    """Every value drawn uniformly."""
    return random.integers(0, 256, images.shape, dtype=np.uint8)


def plain(images: Images, random: np.random.Generator) -> Images:
    """One colour each."""
    colours = random.integers(0, 256, (len(images), 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, images.shape).copy()


def shuffled(images: Images, random: np.random.Generator) -> Images:
    """Test images cut into 8 by 8 patches that change places: their texture without their shape."""
    side = images.shape[1] // GRID
    cut = images[:, : GRID * side, : GRID * side].reshape(len(images), GRID, side, GRID, side, 3)
    patches = cut.swapaxes(2, 3).reshape(len(images), GRID * GRID, side, side, 3)
    mixed = np.stack([random.permutation(one) for one in patches])
    whole = mixed.reshape(len(images), GRID, GRID, side, side, 3).swapaxes(2, 3)
    result = images.copy()
    result[:, : GRID * side, : GRID * side] = whole.reshape(cut.shape[0], GRID * side, GRID * side, 3)
    return result


KINDS: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "uniform noise": noise,
    "plain colours": plain,
    "shuffled patches": shuffled,
}
"""Name to a function of test images, of which there come as many, and a generator."""


def folder(path: Path, classifier: Classifier, most: int, random: np.random.Generator) -> Images:
    """Images below a folder, as the classifier takes them; drawn where there are more than ``most``.

    Raises:
        ImageFileError: a file cannot be decoded.
    """
    files = below(path)
    chosen = sorted(random.permutation(len(files))[:most].tolist())
    squares = [render(classifier, read_image(files[index])) for index in chosen]
    side = classifier.contract.size
    return np.stack(squares) if squares else np.empty((0, side, side, 3), np.uint8)
