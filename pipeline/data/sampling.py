"""Seeded samples of a split, stratified by class."""

import hashlib

import numpy as np
from jaxtyping import Int64

from pipeline.data.store import ImageSet
from pipeline.tasks import MULTI_LABEL


def choose(images: ImageSet, count: int, seed: int) -> Int64[np.ndarray, " selection"]:
    """Choose ``count`` images, spread over the classes as evenly as their sizes allow.

    Images with attributes are all equally likely. Images without a label are never chosen.

    Returns:
        Indices in shuffled order: sorted by class, images would show a running range one class at the end.
    """
    random = np.random.default_rng(seed)
    if images.task is MULTI_LABEL:
        return random.permutation(np.flatnonzero(images.has_label))[:count]
    by_class = [
        random.permutation(np.flatnonzero(images.labels == c))
        for c in np.unique(images.labels[images.has_label])
    ]
    # Every class's first image comes first, then every class's second, and so on.
    turn = np.concatenate([np.arange(len(members)) for members in by_class])
    alternating = np.concatenate(by_class)[np.argsort(turn, kind="stable")]
    return random.permutation(alternating[:count])


def fingerprint(images: ImageSet, indices: Int64[np.ndarray, " selection"]) -> str:
    """Compute the SHA-256 over the content hashes of the images in ``indices``, whatever their order."""
    return hashlib.sha256("".join(sorted(images.hashes[index] for index in indices)).encode()).hexdigest()
