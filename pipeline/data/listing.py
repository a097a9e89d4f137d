"""What a source of images holds: its classes, its images, and the files that are not used."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from pipeline.data.trees import head
from pipeline.errors import DistilleryError
from pipeline.tasks import TaskName

RejectionKind = Literal[
    "damaged", "missing", "no image", "duplicate", "hidden", "link", "unreadable", "unlabelled", "aside"
]

KINDS: dict[RejectionKind, str] = {
    "damaged": "damaged",
    "missing": "missing",
    "no image": "without the suffix of an image",
    "duplicate": "with the content of another",
    "hidden": "hidden",
    "link": "linked a second time",
    "unreadable": "unreadable, such as links to nothing",
    "unlabelled": "without a label",
    "aside": "in folders that are not used",
}
"""Description by the kind of reason for which files are not used."""

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


@dataclass(frozen=True)
class Rejected:
    """One file that is not used, with the reason."""

    source: str
    reason: str
    kind: RejectionKind


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
    notes: tuple[str, ...] = ()
    """What a person should know about how the source was read, one sentence each."""


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


def refuse_damage(listing: Listing, most: float) -> None:
    """Check that most of the image files can be read.

    Args:
        listing: everything that the source holds.
        most: greatest share, from 0 to 1, of image files that are damaged or missing. Files that are no
            images by their suffix, duplicates and hidden files do not count.

    Raises:
        SourceError: more cannot be read; the message lists the first of them, one per line.
    """
    bad = [item for item in listing.rejected if item.kind in ("damaged", "missing")]
    whole = len(bad) + len(listing.labelled) + len(listing.unlabelled)
    if not bad or len(bad) <= most * whole:
        return
    raise SourceError(
        f"{len(bad):,} of {whole:,} image files ({len(bad) / whole:.0%}) could not be read; "
        f"data.max_rejected (={most}) allows {most:.0%}. {count_kinds(bad)}:",
        *head([f"{item.source}: {item.reason}" for item in bad]),
    )
