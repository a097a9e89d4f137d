"""What a source of images holds: its classes, its images, and the files that are not used."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from PIL import Image

from pipeline.data.trees import MOST_NAMES, head, printable
from pipeline.errors import DistilleryError
from pipeline.tasks import TaskName

RejectionKind = Literal[
    "damaged",
    "missing",
    "format",
    "no image",
    "duplicate",
    "hidden",
    "link",
    "unreadable",
    "unlabelled",
    "aside",
]

KINDS: dict[RejectionKind, str] = {
    "damaged": "damaged",
    "missing": "missing",
    "format": "in a format, or with a suffix, that is not read",
    "no image": "without the suffix of an image",
    "duplicate": "with the content of another",
    "hidden": "hidden",
    "link": "linked a second time",
    "unreadable": "unreadable, such as links to nothing",
    "unlabelled": "without a label",
    "aside": "in folders that are not used",
}
"""Description by the kind of reason for which files are not used."""

LOST: tuple[RejectionKind, ...] = ("damaged", "missing", "format")
"""Kinds of pictures that were meant to be used."""

FEW_CONTRADICTIONS = 2
"""Number of pictures with two labels that a class may have, whatever its size, unless they are half of it."""

STRIP_PIXELS = 2**20
"""Most pixels that are copied at once to be hashed."""


class SourceError(DistilleryError):
    """The images are missing, or do not have the form that the source requires."""


@dataclass(frozen=True)
class SourceFile:
    """One image of a source that can be decoded, before it is assigned to a split."""

    split: str | None
    """``train``, ``val`` or ``test`` if the source is split; otherwise None."""
    label: int | tuple[float, ...]
    """Index of its class, or the share from 0 to 1 of each attribute that it has."""
    source: str
    """Place in the source, so that a person can find it again."""
    sha256: str
    """SHA-256 of the shape and the decoded RGB pixels."""
    read: Callable[[], bytes]
    """Function that returns the encoded image, or raises SourceError if it has changed."""
    training_label: int | None = None
    """Index of the class that a table gives it, which counts if it is a training image."""
    verified: bool = False
    """Whether that class, or its own if no table gives it one, is known to be right."""


@dataclass(frozen=True)
class Rejected:
    """One file that is not used, with the reason."""

    source: str
    reason: str
    kind: RejectionKind


@dataclass(frozen=True)
class Loss:
    """The pictures of one class folder that are not used."""

    label: int
    is_most: bool
    """Whether fewer pictures of the folder are used."""
    sentence: str


@dataclass(frozen=True)
class Listing:
    """Everything that a source holds."""

    classes: tuple[str, ...]
    """Names of the classes, or of the attributes."""
    labelled: list[SourceFile]
    rejected: list[Rejected]
    task: TaskName = "single_label"
    unlabelled: list[SourceFile] = field(default_factory=list)
    """Images of the same kind without labels."""
    empty: tuple[tuple[str, int], ...] = ()
    """Split and class of every class folder without an image that can be read."""
    lost: tuple[Loss, ...] = ()
    """Class folders with pictures that are not used."""
    notes: tuple[str, ...] = ()
    """What a person should know about how the source was read, one sentence each."""
    folders: tuple[str, ...] = ()
    """Names of the class folders in the order of the classes, if some classes have other names."""


def content_hash(image: Image.Image) -> str:
    """Compute the SHA-256 of an RGB image's shape and pixels, which does not depend on its encoding."""
    digest = hashlib.sha256(f"{image.size}".encode())
    rows = max(1, STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        digest.update(strip.tobytes())
    return digest.hexdigest()


def count_kinds(rejected: Iterable[Rejected]) -> str:
    """Count the files by the kind of their reason, such as "3 hidden, 1 without a label"."""
    counts: Counter[RejectionKind] = Counter(item.kind for item in rejected)
    return ", ".join(f"{count:,} {KINDS[kind]}" for kind, count in counts.most_common())


def refuse_losses(listing: Listing, most: float) -> None:
    """Check that most of the pictures can be read, and that few have two labels.

    Args:
        listing: everything that the source holds.
        most: greatest share, from 0 to 1, of pictures that are damaged, missing or in a format that is not
            read; and of the pictures of a class that are in another one, too. Files that are no pictures,
            duplicates and hidden files do not count.

    Raises:
        SourceError: more are lost; the message lists the first of them, one per line.
    """
    bad = [item for item in listing.rejected if item.kind in LOST]
    whole = len(bad) + len(listing.labelled) + len(listing.unlabelled)
    if len(bad) > most * whole:
        raise SourceError(
            f"{len(bad):,} of {whole:,} image files ({len(bad) / whole:.0%}) could not be read; "
            f"data.max_rejected (={most}) allows {most:.0%}. {count_kinds(bad)}:",
            *head([f"{item.source}: {item.reason}" for item in bad]),
        )
    sizes = Counter(label for _, label in {(image.sha256, image.label) for image in listing.labelled})
    shared: dict[int, Counter[int]] = {}
    for (one, other), count in contradictions(listing).items():
        shared.setdefault(one, Counter())[other] += count
        shared.setdefault(other, Counter())[one] += count
    problems = []
    for label, others in sorted(shared.items()):
        count, size = others.total(), sizes[label]
        if count > most * size and (count > FEW_CONTRADICTIONS or 2 * count >= size):
            named = " and ".join(
                f"{_quoted(listing, other)} ({number:,})" for other, number in others.items()
            )
            problems.append(
                f"class {_quoted(listing, label)}: {count:,} of its {size:,} pictures are also in "
                f"{named}; data.max_rejected (={most}) allows {most:.0%}. Keep each picture in one class"
            )
    if problems:
        raise SourceError(*head(problems))


def contradictions(listing: Listing) -> Counter[tuple[int, int]]:
    """Count the different pictures of one content that are in two classes, by the pair of classes."""
    labels: dict[str, set[int]] = {}
    for image in listing.labelled:
        if isinstance(image.label, int):
            labels.setdefault(image.sha256, set()).add(image.label)
    counts: Counter[tuple[int, int]] = Counter()
    for several in labels.values():
        counts.update(combinations(sorted(several), 2))
    return counts


def contradiction_notes(listing: Listing) -> list[str]:
    """Return one sentence per pair of classes that hold the same pictures, and one for attributes."""
    notes = [
        f"the classes {_quoted(listing, one)} and {_quoted(listing, other)} have "
        f"{'1 picture' if count == 1 else f'{count:,} pictures'} in common; training uses each once, with "
        "the label of the first that is listed"
        for (one, other), count in sorted(contradictions(listing).items())
    ]
    if listing.task != "single_label":
        distinct = {(image.sha256, image.label) for image in listing.labelled}
        count = len(distinct) - len({sha256 for sha256, _ in distinct})
        if count:
            notes.append(f"{count:,} pictures have the content of another one with other attributes")
    more = len(notes) - MOST_NAMES
    return [*notes[:MOST_NAMES], f"{more:,} more pairs of classes share pictures"] if more > 0 else notes


def _quoted(listing: Listing, label: int) -> str:
    return f"'{printable(listing.classes[label])}'"
