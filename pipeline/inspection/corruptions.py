"""The 15 common corruptions of ImageNet-C at their 5 severities (Hendrycks and Dietterich 2019).

https://arxiv.org/abs/1903.12261. The definitions are those of `imagecorruptions`, in a release that runs with
today's NumPy; its only importer is this file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from imagecorruptions import corrupt, get_corruption_names
from jaxtyping import UInt8
from torch.utils.data import DataLoader, Dataset

from pipeline.running import affinity

LIBRARY = f"imagecorruptions-imaug {version('imagecorruptions-imaug')}"
GROUPS = {name: tuple(get_corruption_names(name)) for name in ("noise", "blur", "weather", "digital")}
"""Kinds of corruptions by their cause."""
KINDS = tuple(get_corruption_names("common"))
SEVERITIES = (1, 2, 3, 4, 5)

SEEDED_BY_ARGUMENT = ("glass_blur", "impulse_noise")
"""Kinds that take their seed as an argument; all others draw from NumPy's global generator."""


class Corruption(NamedTuple):
    """A kind at a severity from 1 to 5."""

    kind: str
    severity: int


ALL = tuple(Corruption(kind, severity) for kind in KINDS for severity in SEVERITIES)


def apply(
    images: UInt8[np.ndarray, "batch side side 3"], corruption: Corruption, seeds: Sequence[int]
) -> UInt8[np.ndarray, "batch side side 3"]:
    """Corrupt each image with its own seed; the result depends on nothing else."""
    state = np.random.get_state()
    try:
        return np.stack([_corrupt(*pair, corruption) for pair in zip(images, seeds, strict=True)])
    finally:
        np.random.set_state(state)


def _corrupt(
    image: UInt8[np.ndarray, "side side 3"], seed: int, corruption: Corruption
) -> UInt8[np.ndarray, "side side 3"]:
    sequence = np.random.SeedSequence([seed, *map(int, map(ord, corruption.kind)), corruption.severity])
    image_seed = int(sequence.generate_state(1)[0])
    np.random.seed(image_seed)
    options = {"seed": image_seed} if corruption.kind in SEEDED_BY_ARGUMENT else {}
    return corrupt(image, corruption.severity, corruption.kind, **options)


@dataclass(frozen=True)
class _CorruptedSets(Dataset[UInt8[np.ndarray, "images side side 3"]]):
    """The same images under each corruption of ``ALL``."""

    images: UInt8[np.ndarray, "images side side 3"]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(ALL)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "images side side 3"]:
        return apply(self.images, ALL[index], self.seeds)


def batches(
    images: UInt8[np.ndarray, "images side side 3"], seeds: Sequence[int], workers: int = 0
) -> Iterator[UInt8[np.ndarray, "images side side 3"]]:
    """Yield all images under each corruption of ``ALL``, in order, made in at most ``workers`` processes."""
    processes = affinity.limit_workers(workers)
    for made in DataLoader(_CorruptedSets(images, seeds), batch_size=None, num_workers=processes):
        yield made.numpy()
