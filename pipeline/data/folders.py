"""The layout of a folder of images: which of its folders are splits, and which are classes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.data import names, reading, trees
from pipeline.data.listing import Listing, Rejected, SourceError
from pipeline.data.trees import MOST_NAMES, Tree, printable

LayoutName = Literal["auto", "classes", "splits"]

WRAPPERS = {"data", "dataset", "image", "images", "img", "imgs", "jpeg", "jpg", "photos", "pictures", "png"}
"""Names of a folder that stands between a split and its classes."""

SETTLE = "set data.layout to `splits` or to `classes`, or rename it"


@dataclass(frozen=True)
class Layout:
    """Which folders hold class folders."""

    root: Path
    """The folder that holds the classes or the splits: the given one, or the only one in it."""
    splits: dict[Path, str | None]
    """Split by each folder that holds class folders; None if the source is not split."""
    notes: list[str]
    """What a person should know about the choice."""


class _Contents:
    """The folders below a root, and the number of pictures in each."""

    def __init__(self, tree: Tree) -> None:
        pictures = [file for file in tree.files if reading.is_picture(file)]
        self.direct = Counter(file.parent for file in pictures)
        self.below: Counter[Path] = Counter()
        for folder, count in self.direct.items():
            self.below.update(dict.fromkeys((folder, *folder.parents), count))
        self._children: dict[Path, list[Path]] = {}
        for folder in tree.folders:
            self._children.setdefault(folder.parent, []).append(folder)

    def children(self, folder: Path) -> list[Path]:
        """The folders in a folder, in order."""
        return self._children.get(folder, [])

    def classes(self, folder: Path) -> list[Path]:
        """The folders in a folder that hold pictures at any depth."""
        return [child for child in self.children(folder) if self.below[child]]

    def unwrapped(self, folder: Path, split: str) -> Path:
        """The folder with the classes of a split: the split's own, or the only one in it (`train/images`)."""
        inner = self.classes(folder)
        while len(inner) == 1 and not self.direct[folder]:
            name = names.normalise(inner[0].name)
            if name not in WRAPPERS and inner[0].name != folder.name and names.split_of(name) != split:
                break
            folder = inner[0]
            inner = self.classes(folder)
        return folder


def read_layout(tree: Tree, layout: LayoutName = "auto") -> Layout:
    """Decide which folders are splits and which are classes.

    Args:
        tree: everything below the folder.
        layout: ``classes`` and ``splits`` settle what the folders next to each other are; ``auto`` judges by
            their names and contents.

    Raises:
        SourceError: the folders can be read in two ways, or not in the way that ``layout`` requires.
    """
    contents = _Contents(tree)
    root, notes = _find_root(tree, contents)
    children = [child for child in contents.children(root) if not reading.is_unlabelled(root, child)]
    splits = names.splits_of([child.name for child in children]) if layout != "classes" else {}
    named = {child: splits[child.name] for child in children if child.name in splits}
    if not named:
        if layout == "splits":
            raise SourceError(
                f"{_where(tree, root)}: data.layout = 'splits', but no folder is called train, val or test, "
                f"or like it; its folders are {_list(children)}"
            )
        if layout == "auto":
            _check_no_splits_below(tree, root, contents)
        return Layout(root, {root: None}, notes)
    roots = {child: contents.unwrapped(child, split) for child, split in named.items()}
    nested = [child for child in named if contents.classes(roots[child])]
    others = [child for child in contents.classes(root) if child not in named]
    if layout == "auto":
        _check_clear(tree, root, contents, named, nested, others, roots)
    elif not nested:
        raise SourceError(
            f"{_where(tree, root)}: data.layout = 'splits', but {_list(list(named))} hold no class folders"
        )
    if "train" not in (named[child] for child in nested):
        raise SourceError(
            f"{_where(tree, root)}: {_list(nested)} hold the class folders of "
            f"{' and '.join(sorted({named[child] for child in nested}))}, but no folder holds those of "
            "train; rename a folder to `train`, or set data.layout to `classes` if these are classes"
        )
    if empty := [child for child in named if not contents.below[child]]:
        raise SourceError(
            f"{_where(tree, root)}: {_list(empty)} must hold the images of "
            f"{' and '.join(named[child] for child in empty)}; no images are there{_troubles(tree, empty)}. "
            "Fill or remove it, or set data.layout to `classes`"
        )
    for child in named:
        below = contents.below[child]
        if child not in nested:
            notes.append(
                f"{_name(tree, child)}: its {below:,} images are not in class folders, so that they have no "
                f"labels and are not used for {named[child]}; the folder `{reading.UNLABELLED}` takes such "
                "images for training"
            )
    if others:
        total = sum(contents.below[child] for child in others)
        notes.append(
            f"{_list(others)} beside the splits {_list(list(named))}: {total:,} images that are not used"
        )
    return Layout(root, {roots[child]: named[child] for child in nested}, notes)


def read(path: Path, layout: LayoutName = "auto") -> Listing:
    """Read class folders, or train/validation/test folders that hold class folders.

    Images at any depth below a class folder belong to the class. Every file that is not used is rejected with
    its reason.

    Args:
        path: the folder.
        layout: see ``read_layout``.

    Raises:
        SourceError: the folder has no such layout, two readings are possible, or a class has no image that
            can be read.
    """
    tree = trees.walk(path)
    found = read_layout(tree, layout)
    folders = {
        split_root: [
            child
            for child in tree.folders
            if child.parent == split_root and child.name.lower() not in reading.UNLABELLED_FOLDERS
        ]
        for split_root in found.splits
    }
    classes = tuple(sorted({child.name for children in folders.values() for child in children}))
    problems = list(_class_problems(tree, found, classes, path))
    if problems:
        raise SourceError(*trees.head(problems))
    numbers = {name: number for number, name in enumerate(classes)}
    places = {
        child: (found.splits[split_root], numbers[child.name])
        for split_root, children in folders.items()
        for child in children
    }
    files: list[reading.Labelled] = []
    for file in tree.files:
        place = next((places[parent] for parent in file.parents if parent in places), None)
        if place is not None:
            files.append((*place, file))
    # The order of splits is that of their folders, and the order of classes that of their names.
    labelled, rejected = reading.read_files(path, files)
    unlabelled, unread = reading.read_unlabelled(found.root, tree)
    used = {file for *_, file in files}
    used |= {file for file in tree.files if reading.is_unlabelled(found.root, file)}
    rejected += unread + reading.reject_skipped(tree)
    rejected += reading.reject_unused(tree, used, lambda file: _aside(tree, found, file))
    read_labels = {(image.split, image.label) for image in labelled}
    empty = [(folder, place) for folder, place in places.items() if place not in read_labels]
    _check_classes(path, classes, {label for _, label in read_labels}, empty, rejected)
    return Listing(
        classes,
        labelled,
        sorted(rejected, key=lambda item: item.source),
        unlabelled=unlabelled,
        empty=tuple((split, label) for _, (split, label) in empty if split is not None),
        notes=(*found.notes, *_similar(classes)),
    )


def _find_root(tree: Tree, contents: _Contents) -> tuple[Path, list[str]]:
    """Go down while a folder holds nothing but another one, which is how archives are often packed."""
    root, notes = tree.root, []
    while True:
        candidates = contents.classes(root)
        bare = [child for child in contents.children(root) if child not in candidates]
        if len(candidates) != 1 or contents.direct[root] or names.split_of(candidates[0].name):
            return root, notes
        [inner] = candidates
        if bare and names.normalise(inner.name) not in WRAPPERS:
            return root, notes
        if contents.direct[inner] or not contents.classes(inner):
            return root, notes
        root = inner
        notes = [f"{_name(tree, root)} is the only folder with images; its folders are read"]


def _check_no_splits_below(tree: Tree, root: Path, contents: _Contents) -> None:
    """Refuse classes that hold split folders (`cat/train`), which would be pooled without a word."""
    classes = contents.classes(root)
    below = {
        child: {split for inner in contents.classes(child) if (split := names.split_of(inner.name))}
        for child in classes
    }
    divided = [child for child in classes if below[child]]
    if any(len(splits) > 1 for splits in below.values()) or (len(divided) > 1 and divided == classes):
        splits = sorted(set().union(*below.values()))
        raise SourceError(
            f"{_where(tree, root)}: the class folders {_list(divided)} hold folders called like splits "
            f"({', '.join(splits)}). As classes, the images of all these folders are pooled and split anew; "
            "as splits, they would be kept apart, which needs the splits above the classes (`train/cat`, not "
            "`cat/train`). Set data.layout to `classes` to pool them, or move the folders"
        )


def _check_clear(
    tree: Tree,
    root: Path,
    contents: _Contents,
    named: dict[Path, str],
    nested: list[Path],
    others: list[Path],
    roots: dict[Path, Path],
) -> None:
    """Refuse folders that can be splits as well as classes."""
    splits = {named[child] for child in nested}
    within = {inner.name for child in nested for inner in contents.classes(roots[child])}
    several = len(nested) > 1 and len(splits) > 1
    clear = bool(nested) and (several or not others or (len(others) == 1 and len(within) > 1))
    if "train" not in splits and (others or len(nested) < len(named)):
        clear = False
    if all(names.split_of(name) for name in within):
        clear = False
    if clear:
        by_split: dict[str, list[Path]] = {}
        for child in nested:
            by_split.setdefault(named[child], []).append(child)
        for split, folders in by_split.items():
            if len(folders) > 1:
                raise SourceError(
                    f"{_where(tree, root)}: {_list(folders)} can each be the {split} split. As splits, they "
                    "are pooled; otherwise one of them is something else: rename or remove it, or set "
                    "data.layout to `splits` to pool them"
                )
        return
    candidates = [child for child in contents.children(root) if contents.below[child] or child in named]
    if nested:
        classes = f"there are {len(within)} classes ({_quote(sorted(within))})"
    else:
        classes = (
            f"{_list(list(named))} would hold images of {', '.join(named.values())}, but no class folders"
        )
    unused = f", and the images in {_list(others)} are not used" if others else ""
    raise SourceError(
        f"{_where(tree, root)}: {_list(list(named))} can be splits or classes. As splits, {classes}{unused}. "
        f"As classes, there are {len(candidates)} classes ({_list(candidates)}). To settle it, {SETTLE}"
    )


def _class_problems(tree: Tree, found: Layout, classes: Sequence[str], path: Path) -> Iterator[str]:
    if len(classes) < 2:
        loose = sum(
            file.parent in (found.root, *found.splits) for file in tree.files if reading.is_picture(file)
        )
        outside = f"; {loose:,} images are not in class folders" if loose else ""
        held = f" ({_quote(classes)})" if classes else ""
        yield (
            f"data.path (={printable(path)}) must hold at least 2 class folders, directly or below "
            f"train/validation/test{outside}; number of its class folders{held}: {len(classes)}"
        )
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            yield f"{printable(path)}: the name of the class folder `{printable(name)}` is not in UTF-8"
    for group in names.same(classes):
        places = [
            _name(tree, folder)
            for folder in tree.folders
            if folder.parent in found.splits and folder.name in group
        ]
        yield (
            f"{printable(path)}: the class names {_quote(group)} differ only by case, Unicode form or "
            f"separators ({', '.join(places)}); give one class one name"
        )


def _check_classes(
    path: Path,
    classes: Sequence[str],
    read: set,
    empty: Sequence[tuple[Path, tuple[str | None, int]]],
    rejected: Sequence[Rejected],
) -> None:
    """Check that each class has an image that can be read."""
    problems = []
    for folder, (_, label) in empty:
        if label in read:
            continue
        start = f"{reading.place(path, folder)}/"
        reasons = [item for item in rejected if f"{item.source}/".startswith(start)]
        detail = "it holds no files"
        if reasons:
            counts = Counter(item.reason for item in reasons).most_common(3)
            detail = "; ".join(
                f"{reason} ({count:,} files)" if count > 1 else reason for reason, count in counts
            )
        problems.append(
            f"{printable(path)}: the class folder {printable(classes[label])!r} must hold at least one image "
            f"that can be read ({reading.place(path, folder)}: {detail})"
        )
    if problems:
        raise SourceError(*trees.head(problems))


def _aside(tree: Tree, found: Layout, file: Path) -> Rejected:
    """Give the rejection of an image that is in no class folder."""
    source = reading.place(tree.root, file)
    inside = found.root if file.is_relative_to(found.root) else tree.root
    parts = file.relative_to(inside).parts
    split_names = " and ".join(
        printable(root.relative_to(found.root)) for root, split in found.splits.items() if split
    )
    if any(part.lower() in reading.UNLABELLED_FOLDERS for part in parts[:-1]):
        reason = f"`{reading.UNLABELLED}` is read directly in data.path only, not in {printable(parts[0])}"
        return Rejected(source, reason, "aside")
    if file.parent in found.splits or len(parts) == 1:
        return Rejected(source, "not in a class folder, so that it has no label", "unlabelled")
    if names.split_of(parts[0]):
        return Rejected(
            source, f"{printable(parts[0])} has no class folders, so that it has no label", "unlabelled"
        )
    beside = f"a folder beside {split_names}" if split_names else "a folder beside the class folders"
    return Rejected(source, f"in {printable(parts[0])}, {beside}; its images are not used", "aside")


def _troubles(tree: Tree, folders: Sequence[Path]) -> str:
    reasons = [item.reason for item in tree.skipped if item.path in folders]
    return f" ({reasons[0]})" if reasons else ""


def _similar(classes: Sequence[str]) -> list[str]:
    return [f"the class names {_quote(group)} are nearly the same" for group in names.similar(classes)]


def _where(tree: Tree, root: Path) -> str:
    inside = f" (in {_name(tree, root)})" if root != tree.root else ""
    return f"data.path (={printable(tree.root)}){inside}"


def _name(tree: Tree, folder: Path) -> str:
    return f"`{printable(folder.relative_to(tree.root))}`"


def _list(folders: Sequence[Path]) -> str:
    return _quote([folder.name for folder in folders])


def _quote(texts: Sequence[str]) -> str:
    shown = ", ".join(f"`{printable(text)}`" for text in texts[:MOST_NAMES])
    return f"{shown} and {len(texts) - MOST_NAMES:,} more" if len(texts) > MOST_NAMES else shown or "none"
