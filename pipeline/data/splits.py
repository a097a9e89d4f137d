"""Assigning images to train, val and test: stratified, seeded, and disjoint by content."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.sources import Candidate, Rejected, SourceError

SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Splits:
    """Which image goes where, and which were left out because their content is elsewhere already."""

    train: list[Candidate]
    val: list[Candidate]
    test: list[Candidate]
    unlabelled: list[Candidate]
    rejected: list[Rejected]
    leaked: int
    """Images that stood in train or val although test or val holds the same content."""
    repeated: int
    """Images that stood more than once in train or in val; test is left as the source has it."""

    def items(self) -> list[tuple[str, list[Candidate]]]:
        """The three splits with their names, and the unlabelled images where there are some."""
        splits = [("train", self.train), ("val", self.val), ("test", self.test)]
        return [*splits, (UNLABELLED, self.unlabelled)] if self.unlabelled else splits


def assign(
    candidates: Sequence[Candidate],
    unlabelled: Sequence[Candidate] = (),
    *,
    train: int | None,
    val: int | float,
    test: int | float,
    seed: int,
    anew: bool = False,
) -> Splits:
    """Split images by class and content hash; a split that the source has is kept, unless ``anew``.

    An image whose content is in test is taken out of val and train, and one whose content is in val
    out of train. Unlabelled images are left out whose content is in any split. ``train`` and integers are
    counts, fractions are shares. The choice depends on contents and seed alone, not on file order.

    Raises:
        SourceError: a split is empty, or fewer images are there than were asked for.
    """
    given: dict[str | None, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        given[None if anew else candidate.split].append(candidate)
    rejected: list[Rejected] = []
    pool, repeated = _drop_repeats(given["train"] + given[None], rejected)
    testing = given["test"] or stratified(pool, _count(test, pool), seed)
    if not given["test"]:
        pool = _without(pool, testing)
    validation, repeated_val = _drop_repeats(given["val"], rejected)
    before = len(pool) + len(validation)
    validation = _drop_known(validation, testing, "test", rejected)
    pool = _drop_known(_drop_known(pool, testing, "test", rejected), validation, "val", rejected)
    leaked = before - len(pool) - len(validation)
    if not validation:
        validation = stratified(pool, _count(val, pool), seed)
        pool = _without(pool, validation)
    training = pool if train is None else stratified(pool, train, seed)
    more, repeated_more = _drop_repeats(unlabelled, rejected)
    for name, known in (("test", testing), ("val", validation), ("train", training)):
        more = _drop_known(more, known, name, rejected)
    repeats = repeated + repeated_val + repeated_more
    splits = Splits(training, validation, testing, more, rejected, leaked, repeats)
    for name, images in splits.items():
        if not images:
            raise SourceError(f"the {name} split is empty: {len(candidates)} images are too few")
    return splits


def fingerprint(splits: Splits) -> str:
    """SHA-256 over every image's split, label and content: the identity of the prepared data."""
    digest = hashlib.sha256()
    for name, images in splits.items():
        for image in images:
            digest.update(f"{name} {image.label} {image.sha256}\n".encode())
    return digest.hexdigest()


def _drop_repeats(images: Sequence[Candidate], rejected: list[Rejected]) -> tuple[list[Candidate], int]:
    first: dict[str, Candidate] = {}
    for image in images:
        if image.sha256 in first:
            known = first[image.sha256]
            unlike = ", which has another label" if image.label != known.label else ""
            rejected.append(Rejected(image.source, f"same content as {known.source}{unlike}"))
        else:
            first[image.sha256] = image
    return list(first.values()), len(images) - len(first)


def _drop_known(
    images: Sequence[Candidate], known: Sequence[Candidate], split: str, rejected: list[Rejected]
) -> list[Candidate]:
    sources = {image.sha256: image.source for image in known}
    rejected += [
        Rejected(image.source, f"same content as {sources[image.sha256]} of {split}")
        for image in images
        if image.sha256 in sources
    ]
    return [image for image in images if image.sha256 not in sources]


def _count(wanted: int | float, images: Sequence[Candidate]) -> int:
    return wanted if isinstance(wanted, int) else round(wanted * len(images))


def _without(images: Sequence[Candidate], taken: Sequence[Candidate]) -> list[Candidate]:
    hashes = {image.sha256 for image in taken}
    return [image for image in images if image.sha256 not in hashes]


def stratified(images: Sequence[Candidate], count: int, seed: int) -> list[Candidate]:
    """``count`` images in the classes' own proportions (largest remainders), in the source's order.

    Images with attributes are drawn alike from all: of their combinations there may be as many as images.

    Raises:
        SourceError: there are fewer.
    """
    if count > len(images):
        raise SourceError(f"{count} images were asked for (data.train, data.val); {len(images)} are left")
    sizes = Counter(_stratum(image) for image in images)
    exact = {label: count * size / len(images) for label, size in sizes.items()}
    quota = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (quota[label] - exact[label], label))
    for label in by_remainder[: count - sum(quota.values())]:
        quota[label] += 1
    chosen: set[str] = set()
    for image in sorted(images, key=lambda image: _rank(seed, image)):
        if quota[_stratum(image)]:
            quota[_stratum(image)] -= 1
            chosen.add(image.sha256)
    return [image for image in images if image.sha256 in chosen]


def _stratum(image: Candidate) -> int:
    return image.label if isinstance(image.label, int) else 0


def _rank(seed: int, image: Candidate) -> bytes:
    return hashlib.sha256(f"{seed}:{image.sha256}".encode()).digest()
