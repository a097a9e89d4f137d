"""Names of folders: which ones mean a split, and which names of classes are one name or nearly so."""

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from pipeline.data import trees
from teachers.labels import normalise

SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout", "hold out", "heldout", "held out"),
}
"""Words that name a split, in lower case, by the split."""

_PLAIN = r"(?:the|my|all|data|datasets?|sets?|splits?|folder|images?|imgs?|pictures?|pics?|photos?|files|raw)"
_SPLIT = {
    split: re.compile(
        rf"(?:\d+ )?(?:{_PLAIN} ?)*(?:{'|'.join(sorted(words, key=len, reverse=True))})(?: ?{_PLAIN})* ?\d*"
    )
    for split, words in SPLIT_WORDS.items()
}

_UNLABELLED = re.compile(rf"(?:{_PLAIN} ?)*unlabell?ed(?: ?{_PLAIN})* ?\d*")

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+")
"""A word of a name, also where a capital begins it (``trainA``)."""

_LOOKS = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0455\u0456\u0458\u0501\u051b\u051d\u04bb\u04cf"
    "\u03b1\u03b2\u03b5\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u03f2\u03f3\u0585\u057d\u0570\u0578\u0131\u0261\u0251",
    "abekmhopctyxsijdqwhlabeikvoptuxcjouhniga",
)
"""Latin letter by each small letter, mostly Cyrillic and Greek, that looks like it or whose capital does."""

_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Characters without a picture that Unicode does not class as format characters."""

_FEW = 30
"""Most names among which misspelt ones are sought."""


DIFFERENCES = (
    "case, Unicode form, separators, dots at the end, zeros before a number, or characters that are "
    "invisible or look alike"
)
"""What names may differ by and still be one name."""


def split_of(name: str) -> str | None:
    """Return the split that a folder's name means, in any case and with usual additions; None if none.

    Such names are ``Training``, ``test_set``, ``trainset``, ``images-val``, ``train2017`` and ``02 Test``.
    """
    plain = _plain(name)
    return next((split for split, pattern in _SPLIT.items() if pattern.fullmatch(plain)), None)


def is_unlabelled(name: str) -> bool:
    """Return whether a folder's name means images without labels, such as ``unlabeled2017``."""
    return _UNLABELLED.fullmatch(_plain(name)) is not None


def splits_of(names: Sequence[str]) -> dict[str, str]:
    """Return the split by the name of each folder that means one, judged together with the folders beside it.

    Names of one family (``seg_train``, ``seg_test``) mean splits if the family holds a training split and
    another one.
    """
    splits = {name: split for name in names if (split := split_of(name))}
    families: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in names:
        words = normalise(name).split()
        for first, rest in ((words[:1], words[1:]), (words[-1:], words[:-1])):
            split = split_of(first[0]) if first and rest else None
            if split and name not in splits:
                families[" ".join(rest), "before" if rest == words[1:] else "after"][name] = split
    for family in families.values():
        if "train" in family.values() and len(set(family.values())) > 1:
            splits |= family
    return splits


def mixed_splits(names: Sequence[str]) -> list[str]:
    """Return the splits that the words of the names mean, if each name holds such a word and they differ.

    Such names are ``trainA`` and ``testA``.
    """
    splits = [
        next((split for word in _WORD.findall(name) if (split := split_of(word))), None) for name in names
    ]
    found = sorted({split for split in splits if split})
    return found if len(found) > 1 and all(splits) else []


def same(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the groups of different names that are one name.

    Their difference is case, Unicode form, invisible characters, separators, dots and blanks at the end,
    zeros before a number, or a letter of another script within a word that looks alike (a Cyrillic "a" in
    "cat").
    """
    return _groups(names, _identity)


def similar(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the groups of names that are nearly one.

    Their difference is a plural's ending, punctuation, accents, or whole words of another script whose
    letters look alike.
    """
    alike = {frozenset(group) for group in same(names)}
    return [group for group in _groups(names, _stem) if frozenset(group) not in alike]


def notes(names: Sequence[str], what: str = "class") -> list[str]:
    """Return one sentence per group of names that are nearly one."""
    return [
        f"the {what} names {trees.quote(group)} are nearly the same{look_alikes(group)}"
        for group in similar(names)
    ]


def look_alikes(names: Sequence[str]) -> str:
    """Return a clause that names the letters which look like Latin ones, if another name is without them."""
    letters = [{c for c in name if c.isalpha() and ord(c.lower()) in _LOOKS} for name in names]
    odd = sorted(set().union(*letters) - set.intersection(*letters))
    shown = ", ".join(f"U+{ord(c):04X} {unicodedata.name(c).lower()}" for c in odd[: trees.MOST_NAMES])
    return f" (one holds {shown})" if odd else ""


def shared(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the names that are, or nearly are, among the others.

    If there is one such name, misspelt ones without numbers count as well.
    """
    stems = {_stem(name): name for name in sorted(names, reverse=True)}
    among = {_stem(name) for name in others}
    both = {stem for stem in stems if stem in among}
    rest = [stem for stem in among - both if not re.search(r"\d", stem)]
    if len(both) == 1 and len(stems) <= _FEW and len(among) <= _FEW:
        both |= {
            stem
            for stem in stems
            if not re.search(r"\d", stem) and difflib.get_close_matches(stem, rest, 1, cutoff=0.8)
        }
    return sorted(stems[stem] for stem in both)


def _plain(name: str) -> str:
    """Return a folder's name normalised, without the number that a second download gets."""
    return re.sub(r"\s*\(\d+\)$", "", _visible(name.replace(".", " ")))


def _identity(name: str) -> str:
    words = _visible(name)
    folded = " ".join(_look(word) if _is_mixed(word) else word for word in words.split())
    numbers = re.sub(r"(?<!\d)(?<!\d[.,])0+(?=\d)", "", folded)
    return re.sub(r"^(\+(?=\d))?(\d+)(?:\.0*|(\.\d*[1-9])0*)?$", r"\2\3", numbers)


def _visible(name: str) -> str:
    """Return a normalised name without invisible characters, and without dots at its end as on Windows."""
    dashes = "".join("-" if unicodedata.category(c) == "Pd" else c for c in name)
    plain = normalise("".join(c for c in normalise(dashes) if not _is_invisible(c)))
    return plain.rstrip(". ") or plain


def _is_invisible(c: str) -> bool:
    return unicodedata.category(c) in ("Cf", "Cc") or c in _INVISIBLE or "\ufe00" <= c <= "\ufe0f"


def _is_mixed(word: str) -> bool:
    """Return whether a word has letters of several of the scripts whose letters look alike."""
    scripts = {unicodedata.name(c, "").partition(" ")[0] for c in word if c.isalpha()}
    return len(scripts & {"LATIN", "CYRILLIC", "GREEK", "ARMENIAN"}) > 1


def _look(text: str) -> str:
    """Return a text with the Latin letters that others look like, without accents."""
    letters = unicodedata.normalize("NFKD", text.translate(_LOOKS))
    return "".join(c for c in letters if not unicodedata.combining(c)).translate(_LOOKS)


@lru_cache(2**16)
def _stem(name: str) -> str:
    # A point between digits is part of a number: 1.5 is not 15.
    # Names of signs alone, such as "+" or an emoji, have nothing else.
    letters = re.sub(r"(?!(?<=\d)[.,](?=\d))\W", "", _look(_identity(name))) or _identity(name)
    return re.sub(r"(?<=[^\W\d]{2})(?:(?:(?<=ss)|(?<=[csz]h)|(?<=x))es|(?<!s)s)$", "", letters)


def _groups(names: Sequence[str], key) -> list[tuple[str, ...]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        groups[key(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
