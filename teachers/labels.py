"""Names of classes, and when two of them are the same name."""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from teachers.errors import TeacherError, one_line

SYNSET = re.compile(r"\s*(n\d{8})(?=[\s_:.-]|$)")
"""Id of a WordNet synset, as in the names of ImageNet's folders."""
DIGITS = "0123456789"
LISTED = 5
"""Number of labels that a message lists."""


class LabelsError(TeacherError):
    """It is not certain which logit is whose."""


def normalise(name: str) -> str:
    """Return the form in which names of classes are compared.

    Two names are the same if they differ only by case, by the Unicode form of their characters (NFC, NFD,
    full width), or by blanks, underscores, hyphens and slashes between words and around the name: the name of
    a folder can have no slash.
    """
    # Case folding can undo the composed form, so that the form is taken again.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_/\\-]+", " ", folded).strip()


def natural(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names so that numbers within them count by value: 1, 2, 10 instead of 1, 10, 2."""
    return tuple(sorted(names, key=_parts))


def match(classes: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """Find the logit of every class of the data among the labels of a teacher.

    A label can hold several names: parts between commas, and a synset id of WordNet before a name. Two names
    are compared by ``normalise``. Labels that are the classes themselves, in this order, need no search.

    Returns:
        The index of the label of each class, no index twice.

    Raises:
        LabelsError: a class has no label or several, or two classes have the same one; the message gives the
            candidates.
    """
    if tuple(labels) == tuple(classes) and len(set(classes)) == len(classes):
        return tuple(range(len(classes)))
    known: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        for name in _names(label):
            known.setdefault(name, []).append(index)
    indices: dict[int, str] = {}
    for name in classes:
        candidates = known.get(normalise(name), [])
        if not candidates:
            raise LabelsError(f"no {name!r} among {listing(labels)}")
        if len(candidates) > 1:
            pairs = ", ".join(f"{index}: {labels[index]!r}" for index in candidates[:LISTED])
            raise LabelsError(f"{len(candidates)} logits for the class {name!r}: {pairs}")
        index = candidates[0]
        if index in indices:
            raise LabelsError(f"one logit, {index}: {labels[index]!r}, for {indices[index]!r} and {name!r}")
        indices[index] = name
    return tuple(indices)


def read(file: Path) -> tuple[str, ...]:
    """Read names from a file in UTF-8: a JSON list, or one name per line.

    Raises:
        LabelsError: the file is missing or has another form.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        names = json.loads(text) if file.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise LabelsError(f"teacher.labels = {str(file)!r} could not be read: {one_line(error)}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise LabelsError(f"teacher.labels = {str(file)!r}: a list of names is expected, none of them empty")
    return tuple(names)


def _names(label: str) -> set[str]:
    """All names that a label holds, normalised: the label, its parts between commas, and for a synset id
    before a name (``n01440764 tench``) each of the two."""
    names = {label, *label.split(",")}
    for name in list(names):
        if synset := SYNSET.match(name):
            names |= {synset[1], name[synset.end() :]}
    return {normalise(name) for name in names} - {""}


def listing(labels: Sequence[str]) -> str:
    """The first labels in quotes, for a message."""
    return ", ".join(repr(label) for label in labels[:LISTED]) + (", ..." if len(labels) > LISTED else "")


def _parts(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Texts and numbers of a name in turn, which can be compared, and the name for a last difference."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return [(False, int(part), "") if part[0] in DIGITS else (True, 0, part) for part in parts], name
