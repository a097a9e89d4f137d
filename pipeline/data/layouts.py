"""The layout of a folder of images: which of its folders are splits, and which are classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from pipeline.data import names, reading, trees
from pipeline.data.listing import SourceError
from pipeline.data.trees import Tree, printable

LayoutName = Literal["auto", "classes", "splits"]

WRAPPERS = {"data", "dataset", "image", "images", "img", "imgs", "jpeg", "jpg", "photos", "pictures", "png"}
"""Names of a folder that stands between a split and its classes."""

DRAWN = {
    *(
        "annotation",
        "annotations",
        "ground truth",
        "groundtruth",
        "gt",
        "mask",
        "masks",
        "seg",
        "segmentation",
    ),
    *("segmentations", "trimap", "trimaps"),
}
"""Names of a folder with pictures that are drawn over photographs, and are none themselves."""

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

    def parts(self, folder: Path) -> list[str]:
        """Names of the folders into which a folder divides its pictures, also below the only folder in it.

        Wrappers are none of them, and a folder most of whose pictures are in no folder of it has none.
        """
        inner = self.classes(folder)
        while len(inner) == 1 and not self.direct[folder]:
            folder = inner[0]
            inner = self.classes(folder)
        if 2 * self.direct[folder] > self.below[folder]:
            return []
        return [part.name for part in inner if names.normalise(part.name) not in WRAPPERS]

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
                f"or like it; its folders are {_list(children)}. Rename the one with the training images to "
                "`train`, and the others to `val` and `test`"
            )
        if layout == "auto":
            _check_no_splits_below(tree, root, contents)
            _check_names(tree, root, contents)
            _check_not_alike(tree, root, contents)
            _check_drawn(tree, contents, [root], "classes")
            notes += _pooled(contents, _candidates(root, contents))
        return Layout(root, {root: None}, notes)
    roots = {child: contents.unwrapped(child, split) for child, split in named.items()}
    nested = [child for child in named if contents.classes(roots[child])]
    others = [child for child in _candidates(root, contents) if child not in named]
    if layout == "auto":
        _check_clear(tree, root, contents, named, nested, others, roots)
        _check_beside(tree, root, contents, named, others, roots)
        _check_drawn(tree, contents, [roots[child] for child in nested], "splits")
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
                f"{called(tree, child)}: its {below:,} images are not in class folders, so that they have no "
                f"labels and are not used for {named[child]}; the folder `{reading.UNLABELLED}` takes such "
                "images for training"
            )
    if others:
        total = sum(contents.below[child] for child in others)
        notes.append(
            f"{_list(others)} beside the splits {_list(list(named))}: {total:,} images that are not used"
        )
    return Layout(root, {roots[child]: named[child] for child in nested}, notes)


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
        notes = [f"{called(tree, root)} is the only folder with images; its folders are read"]


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


def _check_names(tree: Tree, root: Path, contents: _Contents) -> None:
    """Refuse folders whose names all hold words of splits (``trainA``, ``testA``)."""
    candidates = _candidates(root, contents)
    if splits := names.mixed_splits([child.name for child in candidates]):
        raise SourceError(
            f"{_where(tree, root)}: {_list(candidates)} can be splits or classes, since their names hold "
            f"the words of {' and '.join(splits)}. As splits, the folders must be called so, or like it, and "
            f"hold class folders; as classes, there are {len(candidates)} classes. Rename them, or set "
            "data.layout to `classes`"
        )


def _check_not_alike(tree: Tree, root: Path, contents: _Contents) -> None:
    """Refuse folders that hold folders of each other's names: splits can have names that are not known."""
    parts = {child: contents.parts(child) for child in _candidates(root, contents)}
    divided = [child for child in parts if len(parts[child]) > 1]
    for child in divided:
        beside = [other.name for other in parts if other != child]
        if len(both := names.shared(beside, parts[child])) > 1:
            raise SourceError(
                f"{_where(tree, root)}: {_list([child])} can be a split or a class, since it holds folders "
                f"of the names of those beside it ({trees.quote(both)}). As a split, it must be called val "
                "or test, or like it, and the folders beside it must be in a folder `train`. As a class, it "
                f"is one of {len(parts)} ({_list(list(parts))}). Rename or move it, or set data.layout to "
                "`classes`"
            )
    for one, other in combinations(divided, 2):
        if len(both := names.shared(parts[one], parts[other])) < 2:
            continue
        alike = [child for child in divided if len(names.shared(parts[one], parts[child])) > 1]
        within = sorted({part for child in alike for part in parts[child]})
        raise SourceError(
            f"{_where(tree, root)}: {_list(alike)} can be splits or classes, since they hold folders of the "
            f"same names ({trees.quote(both)}). As splits, there are {len(within)} classes "
            f"({trees.quote(within)}), and the folders must be called train, val or test, or like it. As "
            f"classes, there are {len(parts)} classes ({_list(list(parts))}), and the images of the folders "
            "in each are pooled. Rename them, or set data.layout to `classes`"
        )


def _check_drawn(tree: Tree, contents: _Contents, roots: Sequence[Path], layout: LayoutName) -> None:
    """Refuse class folders with folders of masks (`cat/masks` beside `cat/images`), which would be pooled."""
    classes = {child for root in roots for child in contents.classes(root)}
    drawn = [
        folder
        for folder in tree.folders
        if names.normalise(folder.name) in DRAWN
        and any(
            parent in classes and contents.below[folder] < contents.below[parent] for parent in folder.parents
        )
    ]
    if total := sum(contents.direct[folder] for folder in drawn):
        raise SourceError(
            f"data.path (={printable(tree.root)}): class folders hold {total:,} pictures in folders called "
            f"{trees.quote(sorted({folder.name for folder in drawn}))}, such as {called(tree, drawn[0])}. "
            "Move them elsewhere if they are drawn over the photographs; if they are photographs of the "
            f"class, set data.layout to `{layout}`"
        )


def _check_beside(
    tree: Tree,
    root: Path,
    contents: _Contents,
    named: dict[Path, str],
    others: Sequence[Path],
    roots: dict[Path, Path],
) -> None:
    """Refuse a folder beside the splits that can be the split which is missing."""
    missing = sorted({"train", "val", "test"} - set(named.values()))
    within = sorted({inner.name for child in named for inner in contents.classes(roots[child])})
    alike = [child for child in others if len(names.shared(within, contents.parts(child))) > 1]
    if alike and missing:
        raise SourceError(
            f"{_where(tree, root)}: {_list(alike)} beside the splits {_list(list(named))} can be a "
            f"split or something else, since it holds folders of the same names ({trees.quote(within)}). As "
            f"a split, it must be called {' or '.join(missing)}, or like it; otherwise its images are not "
            f"used, and those of {' and '.join(missing)} are drawn from others. Rename or move it, or set "
            "data.layout to `splits` to leave it aside"
        )


def _pooled(contents: _Contents, classes: Sequence[Path]) -> list[str]:
    """Note classes all of which are divided into folders, as superclasses are."""
    if len(classes) < 2 or any(len(contents.parts(child)) < 2 for child in classes):
        return []
    first = classes[0]
    return [
        f"the classes are {_list(classes)}; the images of the folders in each, such as "
        f"{trees.quote(contents.parts(first))} in `{printable(first.name)}`, are pooled"
    ]


def _candidates(root: Path, contents: _Contents) -> list[Path]:
    return [child for child in contents.classes(root) if not reading.is_unlabelled(root, child)]


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
        classes = f"there are {len(within)} classes ({trees.quote(sorted(within))})"
    else:
        classes = (
            f"{_list(list(named))} would hold images of {', '.join(named.values())}, but no class folders"
        )
    unused = f", and the images in {_list(others)} are not used" if others else ""
    raise SourceError(
        f"{_where(tree, root)}: {_list(list(named))} can be splits or classes. As splits, {classes}{unused}. "
        f"As classes, there are {len(candidates)} classes ({_list(candidates)}). To settle it, {SETTLE}"
    )


def _troubles(tree: Tree, folders: Sequence[Path]) -> str:
    reasons = [item.reason for item in tree.skipped if item.path in folders]
    return f" ({reasons[0]})" if reasons else ""


def _where(tree: Tree, root: Path) -> str:
    inside = f" (in {called(tree, root)})" if root != tree.root else ""
    return f"data.path (={printable(tree.root)}){inside}"


def called(tree: Tree, folder: Path) -> str:
    """Return a folder's place below the root in quotes."""
    return f"`{printable(folder.relative_to(tree.root))}`"


def _list(folders: Sequence[Path]) -> str:
    return trees.quote([folder.name for folder in folders])
