"""The training images that set activation ranges."""

import hashlib

import numpy as np
from jaxtyping import Int64

from pipeline.data.store import ImageSet
from pipeline.tasks import MULTI_LABEL


def choose(images: ImageSet, count: int, seed: int) -> Int64[np.ndarray, " chosen"]:
    """Indices of ``count`` images, as even over the classes as they allow, in shuffled order.

    Images with attributes are drawn alike from all. Images that nobody labelled are left out.

    A class-sorted order would let a running range see one class last.
    """
    random = np.random.default_rng(seed)
    if images.task is MULTI_LABEL:
        return random.permutation(np.flatnonzero(images.known))[:count]
    by_class = [
        random.permutation(np.flatnonzero(images.labels == c)) for c in np.unique(images.labels[images.known])
    ]
    turn = np.concatenate([np.arange(len(members)) for members in by_class])
    in_turns = np.concatenate(by_class)[np.argsort(turn, kind="stable")]
    return random.permutation(in_turns[:count])


def fingerprint(images: ImageSet, chosen: Int64[np.ndarray, " chosen"]) -> str:
    """SHA-256 over the chosen images' content hashes, independent of their order."""
    return hashlib.sha256("".join(sorted(images.hashes[index] for index in chosen)).encode()).hexdigest()
