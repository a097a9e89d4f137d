"""Names of folders: which ones mean a split, and which names of classes are one name or nearly so."""

import re
from collections import defaultdict
from collections.abc import Sequence

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


def split_of(name: str) -> str | None:
    """Return the split that a folder's name means, in any case and with usual additions; None if none.

    Such names are ``Training``, ``test_set``, ``trainset``, ``images-val``, ``train2017`` and ``02 Test``.
    """
    plain = re.sub(r"\s*\(\d+\)$", "", normalise(name.replace(".", " ")))
    return next((split for split, pattern in _SPLIT.items() if pattern.fullmatch(plain)), None)


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


def same(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the groups of different names that are one name but for case, Unicode form and separators."""
    return _groups(names, normalise)


def similar(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the groups of names that differ by a plural's ending or by punctuation only."""
    alike = {frozenset(group) for group in same(names)}
    return [group for group in _groups(names, _stem) if frozenset(group) not in alike]


def _stem(name: str) -> str:
    letters = re.sub(r"\W", "", normalise(name))
    return re.sub(r"(?<=[^\W\d]{2})(?:(?:(?<=ss)|(?<=[csz]h)|(?<=x))es|(?<!s)s)$", "", letters)


def _groups(names: Sequence[str], key) -> list[tuple[str, ...]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        groups[key(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
