"""Out-of-distribution images: they belong to none of the classes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.data import images as image_files
from pipeline.data import trees
from pipeline.data.images import ImageFileError
from pipeline.errors import DistilleryError
from pipeline.onnx.inference import Classifier, render

Images = UInt8[np.ndarray, "images side side 3"]

GRID = 8
"""Number of patches per side of an image whose patches are shuffled."""
GLANCE = 20
"""Number of files, spread evenly over a folder, that are read before any work starts."""


class FolderError(DistilleryError):
    """A folder of out-of-distribution images has too few that can be read."""


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder as a classifier takes them."""

    images: Images
    unreadable: list[str]
    """Message on each file that could not be read, in order."""


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


def check_folder(folder: Path) -> None:
    """Read a few images of a folder, so that an unusable one is noticed before any training.

    Raises:
        FolderError: the folder has no image, or half or more of the few images cannot be read.
    """
    files = image_files.list_images(folder)
    sample = [files[index * len(files) // GLANCE] for index in range(GLANCE)] if files else []
    sample = list(dict.fromkeys(sample))
    reasons = [str(error) for file in sample if (error := _error(file)) is not None]
    if 2 * len(reasons) >= len(sample):
        raise FolderError(_refusal(folder, len(reasons), len(sample), reasons))


def read_folder(path: Path, classifier: Classifier, most: int, random: np.random.Generator) -> FolderImages:
    """Read the images of a folder as the classifier takes them; files that cannot be read are left out.

    Args:
        path: the folder; images at any depth are read.
        classifier: renders the images.
        most: greatest number of images; of more, as many are drawn.
        random: draws them.

    Raises:
        FolderError: no image can be read.
    """
    files = image_files.list_images(path)
    squares: dict[int, np.ndarray] = {}
    unreadable: dict[int, str] = {}
    for index in random.permutation(len(files)).tolist():
        if len(squares) == most:
            break
        try:
            with image_files.opened(files[index]) as image:
                squares[index] = render(classifier, image)
        except ImageFileError as error:
            unreadable[index] = str(error)
    reasons = [unreadable[index] for index in sorted(unreadable)]
    if not squares:
        raise FolderError(_refusal(path, len(reasons), len(files), reasons))
    return FolderImages(np.stack([squares[index] for index in sorted(squares)]), reasons)


def _error(file: Path) -> ImageFileError | None:
    try:
        image_files.decode(file)
    except ImageFileError as error:
        return error
    return None


def _refusal(folder: Path, unreadable: int, count: int, reasons: list[str]) -> str:
    where = f"probe.out_of_distribution = '{trees.printable(folder)}': the folder must hold images"
    if not reasons:
        return where
    return f"{where} that can be read; {unreadable} of {count} that were tried cannot: {reasons[0]}"
