"""Photographs of the test split with their right answers, for whoever tries a model for the first time."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import files
from pipeline.data import sampling
from pipeline.data.store import ImageSet
from pipeline.tasks import SINGLE_LABEL

MOST = 12
MOST_PER_CLASS = 3
SIDE = 384
"""Pixels of the shorter side of a sample. A larger photograph is reduced, and becomes a JPEG."""


@dataclass(frozen=True)
class Sample:
    """One photograph, whose file says neither where it was taken nor what it is called."""

    file: Path
    labels: tuple[str, ...]
    """The class, or all attributes that the photograph has."""


def draw(test: ImageSet, folder: Path, seed: int) -> list[Sample]:
    """Draw a few photographs, as many of each class, and write them into a folder that holds nothing else.

    Args:
        test: the test split.
        folder: what it contains is removed.
        seed: seed of the choice.
    """
    classes = len(test.classes)
    single = test.task is SINGLE_LABEL
    count = classes * min(MOST_PER_CLASS, MOST // classes) if single and classes <= MOST else MOST
    chosen = sampling.choose(test, count, seed)
    if single:
        chosen = chosen[np.argsort(test.labels[chosen], kind="stable")]
    shutil.rmtree(folder, ignore_errors=True)
    samples = []
    for number, index in enumerate(chosen.tolist(), 1):
        image = test.image(index)
        scale = SIDE / min(image.size)
        name, kind = (f"sample-{number:02}.png", "PNG") if scale >= 1 else (f"sample-{number:02}.jpg", "JPEG")
        if scale < 1:
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        with files.replacing(folder / name) as fresh:
            image.save(fresh, kind, quality=95)
        label = test.labels[index]
        known = [label] if single else np.flatnonzero(label >= 0.5)
        samples.append(Sample(folder / name, tuple(test.classes[int(one)] for one in known)))
    return samples
