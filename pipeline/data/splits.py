"""Assigning images to train, val and test: stratified, seeded, and disjoint by content."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.data.listing import Listing, Rejected, SourceError, SourceFile, contradiction_notes
from pipeline.data.names import similar
from pipeline.data.reading import UNLABELLED
from pipeline.data.trees import head, printable

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Splits:
    """The images of each split, and those left out because their content is already in another one."""

    train: list[SourceFile]
    val: list[SourceFile]
    test: list[SourceFile]
    unlabelled: list[SourceFile]
    rejected: list[Rejected]
    leaked: int
    """Number of images in train or val whose content is in test or val, too."""
    repeated: int
    """Number of repetitions within train and within val; test is left as the source has it."""
    relabelled: int = 0
    """Number of training images to which a table gives another class than their folder."""

    @property
    def verified(self) -> int:
        """Number of training images whose labels are known to be right."""
        return sum(image.verified for image in self.train)

    def items(self) -> list[tuple[str, list[SourceFile]]]:
        """The three splits with their names, and the unlabelled images if there are any."""
        splits = [("train", self.train), ("val", self.val), ("test", self.test)]
        return [*splits, (UNLABELLED, self.unlabelled)] if self.unlabelled else splits


def assign(
    labelled: Sequence[SourceFile],
    unlabelled: Sequence[SourceFile] = (),
    *,
    train: int | None,
    val: int | float,
    test: int | float,
    seed: int,
    anew: bool = False,
    verified: int | float | None = None,
) -> Splits:
    """Split images by class and content hash.

    An image whose content is in test is taken out of val and train, and one whose content is in val out of
    train. Unlabelled images whose content is in any split are left out. The choice depends on contents and
    seed alone, not on the order of the files, and not on the labels that a table gives: they are those of the
    training images in the end.

    Args:
        labelled: images with labels.
        unlabelled: images without labels.
        train: number of training images; None takes all that are left.
        val: number (int) or share (float) of images for val.
        test: number (int) or share (float) of images for test.
        seed: seed of the choice.
        anew: whether to split again images that the source has split already.
        verified: number (int) or share (float) of the training images whose own labels are known to be right
            and take precedence over those of a table; None draws none.

    Raises:
        SourceError: a split is empty, or there are fewer images than requested.
    """
    by_split: dict[str | None, list[SourceFile]] = defaultdict(list)
    for image in labelled:
        by_split[None if anew else image.split].append(image)
    rejected: list[Rejected] = []
    pool, repeated = _drop_repeats(by_split["train"] + by_split[None], rejected)
    testing = by_split["test"] or stratified(pool, _count(test, pool), seed, "data.test")
    if not by_split["test"]:
        pool = _without(pool, testing)
    validation, repeated_val = _drop_repeats(by_split["val"], rejected)
    before = len(pool) + len(validation)
    validation = _drop_content_of(validation, testing, "test", rejected)
    whole = len(pool)
    pool = _drop_content_of(_drop_content_of(pool, testing, "test", rejected), validation, "val", rejected)
    if whole and not pool and (by_split["test"] or by_split["val"]):
        raise SourceError(
            f"the train split is empty: the content of all its {whole} images is also in test or val; is one "
            "a copy of the other?"
        )
    leaked = before - len(pool) - len(validation)
    if by_split["val"] and not validation:
        raise SourceError(
            f"the val split is empty: the content of all its {len(by_split['val'])} images is also in test"
        )
    if not validation:
        validation = stratified(pool, _count(val, pool), seed, "data.val")
        pool = _without(pool, validation)
    training = pool if train is None else stratified(pool, train, seed, "data.train")
    extra, repeated_extra = _drop_repeats(unlabelled, rejected)
    for name, others in (("test", testing), ("val", validation), ("train", training)):
        extra = _drop_content_of(extra, others, name, rejected)
    repeats = repeated + repeated_val + repeated_extra
    taken = f" (test has {len(testing)}, val has {len(validation)})" if labelled else ""
    if verified is not None:
        right = stratified(training, _count(verified, training), seed, "data.verified")
        hashes = {image.sha256 for image in right}
        training = [
            replace(image, training_label=None, verified=True) if image.sha256 in hashes else image
            for image in training
        ]
    relabelled = [
        image if image.training_label is None else replace(image, label=image.training_label)
        for image in training
    ]
    changed = sum(new.label != old.label for new, old in zip(relabelled, training, strict=True))
    splits = Splits(relabelled, validation, testing, extra, rejected, leaked, repeats, changed)
    for name, images in splits.items():
        if not images:
            raise SourceError(
                f"the {name} split is empty: {len(labelled)} labelled images are too few{taken}"
            )
    return splits


def check(listing: Listing, splits: Splits, *, anew: bool = False) -> list[str]:
    """Check the splits class by class.

    Args:
        listing: everything that the source holds.
        splits: its images by split.
        anew: whether the images were split again, whatever the source's splits.

    Returns:
        One sentence per pair of classes that hold the same pictures, per class that val or test lack, and per
        attribute that no training image has or all have.

    Raises:
        SourceError: a class has no training image, is empty in a split that the source has, or has fewer
            images than there are splits to draw; the message has one line per class. Or no image of val or
            test has any attribute.
    """
    if listing.task != "single_label":
        shares = [image.label for image in splits.train if isinstance(image.label, tuple)]
        for split, images in (("val", splits.val), ("test", splits.test)):
            if not any(max(image.label) >= 0.5 for image in images if isinstance(image.label, tuple)):
                raise SourceError(f"no {split} image has any attribute; without one, nothing can be scored")
        return [
            *contradiction_notes(listing),
            *(
                f"{who} training image has the attribute '{printable(name)}'"
                for index, name in enumerate(listing.classes)
                if (who := _constant([share[index] >= 0.5 for share in shares]))
            ),
        ]
    given = set() if anew else {image.split for image in listing.labelled}
    in_source = Counter((None if anew else image.split, image.label) for image in listing.labelled)
    empty = set() if anew else set(listing.empty)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    counts = {name: Counter(image.label for image in images) for name, images in parts.items()}
    drawn = [split for split in ("val", "test") if split not in given]
    problems, notes = [], contradiction_notes(listing)
    for label, name in enumerate(listing.classes):
        numbers = ", ".join(f"{counts[split][label]} {split}" for split in SPLITS)
        if not counts["train"][label]:
            like = [
                other
                for group in similar(listing.classes)
                if name in group
                for other in group
                if other != name
            ]
            hint = f"; is it '{printable(like[0])}'?" if like else ""
            hint += _elsewhere(splits, listing, label)
            problems.append(
                f"class '{printable(name)}' has no training images ({numbers}){hint}{_lost(listing, label)}"
            )
        elif (total := in_source[None, label] + in_source["train", label]) < 1 + len(drawn):
            problems.append(
                f"class '{printable(name)}' has {total} images, of which {' and '.join(drawn)} are drawn; at "
                f"least {1 + len(drawn)} are needed{_lost(listing, label)}"
            )
        for split in ("val", "test"):
            if counts[split][label]:
                continue
            if (split, label) in empty:
                problems.append(
                    f"class '{printable(name)}': its folder in {split} holds no image that can be read"
                )
            elif split in given and in_source[split, label]:
                problems.append(
                    f"class '{printable(name)}': the content of all its {in_source[split, label]} images of "
                    f"{split} is also in test"
                )
            elif counts["train"][label]:
                cause = "it is small" if split in drawn else f"the folder of {split} lacks it"
                notes.append(f"class '{printable(name)}' has no {split} images, because {cause} ({numbers})")
    if problems:
        raise SourceError(*head(problems))
    return notes


def _constant(present: Sequence[bool]) -> str | None:
    """Return which training images have an attribute, if it is all of them or none; else None."""
    return "no" if not any(present) else "every" if all(present) else None


def _elsewhere(splits: Splits, listing: Listing, label: int) -> str:
    """Return a clause about training images of a class that are copies of images of test or val."""
    taken = {image.sha256: (name, image.source) for name, images in splits.items() for image in images}
    copies = [
        (image.source, *taken[image.sha256])
        for image in listing.labelled
        if image.label == label and image.split in ("train", None) and image.sha256 in taken
    ]
    copies = [copy for copy in copies if copy[0] != copy[2] and copy[1] in ("val", "test")]
    if not copies:
        return ""
    source, split, original = copies[0]
    return (
        f"; {len(copies):,} of its images are left out because their content is in another split, such as "
        f"{source}, which is {original} of {split}"
    )


def _lost(listing: Listing, label: int) -> str:
    return "".join(f"; {loss.sentence}" for loss in listing.lost if loss.label == label)


def fingerprint(splits: Splits) -> str:
    """Compute the SHA-256 over every image's split, label and content, which identifies the prepared data.

    Whether a label is known to be right counts, too.
    """
    digest = hashlib.sha256()
    for name, images in splits.items():
        for image in images:
            mark = " verified" if image.verified else ""
            digest.update(f"{name} {image.label} {image.sha256}{mark}\n".encode())
    return digest.hexdigest()


def _drop_repeats(images: Sequence[SourceFile], rejected: list[Rejected]) -> tuple[list[SourceFile], int]:
    first: dict[str, SourceFile] = {}
    for image in images:
        if image.sha256 in first:
            earlier = first[image.sha256]
            suffix = ", which has another label" if image.label != earlier.label else ""
            rejected.append(Rejected(image.source, f"same content as {earlier.source}{suffix}", "duplicate"))
        else:
            first[image.sha256] = image
    return list(first.values()), len(images) - len(first)


def _drop_content_of(
    images: Sequence[SourceFile], others: Sequence[SourceFile], split: str, rejected: list[Rejected]
) -> list[SourceFile]:
    sources = {image.sha256: image.source for image in others}
    rejected += [
        Rejected(image.source, f"same content as {sources[image.sha256]} of {split}", "duplicate")
        for image in images
        if image.sha256 in sources
    ]
    return [image for image in images if image.sha256 not in sources]


def _count(number: int | float, images: Sequence[SourceFile]) -> int:
    return number if isinstance(number, int) else round(number * len(images))


def _without(images: Sequence[SourceFile], others: Sequence[SourceFile]) -> list[SourceFile]:
    hashes = {image.sha256 for image in others}
    return [image for image in images if image.sha256 not in hashes]


def stratified(images: Sequence[SourceFile], count: int, seed: int, key: str) -> list[SourceFile]:
    """Draw ``count`` images in the classes' proportions (largest remainders); return them in the source's
    order.

    Images with attributes are all equally likely, since there may be as many combinations of attributes as
    images. The key is that of the parameter that gives the count, for errors.

    Raises:
        SourceError: there are fewer images.
    """
    if count > len(images):
        share = (
            "null takes all that are left" if key == "data.train" else "a share such as 0.2 fits any number"
        )
        raise SourceError(f"{key} (={count}) requests {count} images; only {len(images)} are left; {share}")
    sizes = Counter(_stratum(image) for image in images)
    exact = {label: count * size / len(images) for label, size in sizes.items()}
    quota = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (quota[label] - exact[label], label))
    for label in by_remainder[: count - sum(quota.values())]:
        quota[label] += 1
    selection: set[str] = set()
    for image in sorted(images, key=lambda image: _rank(seed, image)):
        if quota[_stratum(image)]:
            quota[_stratum(image)] -= 1
            selection.add(image.sha256)
    return [image for image in images if image.sha256 in selection]


def _stratum(image: SourceFile) -> int:
    return image.label if isinstance(image.label, int) else 0


def _rank(seed: int, image: SourceFile) -> bytes:
    return hashlib.sha256(f"{seed}:{image.sha256}".encode()).digest()
