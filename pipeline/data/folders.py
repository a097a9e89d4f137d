"""Folders of images as people pack them: class folders, or splits that hold class folders."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.data import layouts, names, reading, trees
from pipeline.data.layouts import Layout, LayoutName
from pipeline.data.listing import KINDS, LOST, Listing, Loss, Rejected, SourceError, SourceFile
from pipeline.data.trees import Tree, printable


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
    if layout != "classes":
        _check_linked_splits(tree)
    found = layouts.read_layout(tree, layout)
    folders = {
        split_root: [
            child
            for child in tree.folders
            if child.parent == split_root and not names.is_unlabelled(child.name)
        ]
        for split_root in found.splits
    }
    classes = tuple(sorted({child.name for children in folders.values() for child in children}))
    problems, links = _judge_links(tree, found)
    problems += _class_problems(tree, found, classes, path)
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
    lost = tuple(_losses(tree, places, labelled, rejected))
    empty = [(folder, place) for folder, place in places.items() if place not in read_labels]
    _check_classes(path, classes, {label for _, label in read_labels}, empty, rejected)
    return Listing(
        classes,
        labelled,
        sorted(rejected, key=lambda item: item.source),
        unlabelled=unlabelled,
        empty=tuple((split, label) for _, (split, label) in empty if split is not None),
        lost=lost,
        notes=(
            *found.notes,
            *(loss.sentence for loss in lost if loss.is_most),
            *links,
            *names.notes(classes),
        ),
    )


def _class_problems(tree: Tree, found: Layout, classes: Sequence[str], path: Path) -> Iterator[str]:
    if len(classes) < 2:
        loose = sum(
            file.parent in (found.root, *found.splits) for file in tree.files if reading.is_picture(file)
        )
        outside = f"; {loose:,} images are not in class folders" if loose else ""
        held = f" ({trees.quote(classes)})" if classes else ""
        aside = [folder.name for folder in tree.folders if folder.parent in found.splits]
        if aside := [name for name in aside if name not in classes]:
            outside += f"; {trees.quote(aside)} is no class, but holds images without labels"
        yield (
            f"data.path (={printable(path)}) must hold at least 2 class folders, directly or below "
            f"train/validation/test{outside}; number of its class folders{held}: {len(classes)}"
            f"{_parent(path) if loose else ''}"
        )
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            yield f"{printable(path)}: the name of the class folder `{printable(name)}` is not in UTF-8"
    for group in names.same(classes):
        places = [
            layouts.called(tree, folder)
            for folder in tree.folders
            if folder.parent in found.splits and folder.name in group
        ]
        yield (
            f"{printable(path)}: the class names {trees.quote(group)} are one name but for "
            f"{names.DIFFERENCES}{names.look_alikes(group)}: {', '.join(places)}; give one class one name"
        )


def _parent(path: Path) -> str:
    """A hint at the folder above a class folder, where the classes beside it are."""
    with suppress(OSError):
        beside = [
            folder.name
            for folder in path.absolute().parent.iterdir()
            if folder.is_dir() and any(map(reading.is_picture, folder.iterdir()))
        ]
        if len(beside) > 1:
            parent = printable(path.absolute().parent)
            return f"; did you mean {parent}, which holds {trees.quote(sorted(beside))}?"
    return ""


def _check_linked_splits(tree: Tree) -> None:
    """Refuse splits that are links to another folder which is read itself."""
    with_splits = {folder.parent for folder in tree.folders if names.split_of(folder.name)}
    problems = [
        _linked(tree, item, "split")
        for item in tree.skipped
        if item.kind == "link" and names.split_of(item.path.name) and item.path.parent in with_splits
    ]
    if problems:
        raise SourceError(*trees.head(problems))


def _judge_links(tree: Tree, found: Layout) -> tuple[list[str], list[str]]:
    """Return the problems with classes that are links to folders which are read themselves, and a note per
    other link beside classes and splits that is not followed."""
    problems, notes = [], []
    for item in tree.skipped:
        parent, name = item.path.parent, item.path.name
        aside = name.startswith(".") or names.is_unlabelled(name)
        if item.kind != "link" or aside or parent not in (tree.root, found.root, *found.splits):
            continue
        if parent in found.splits and not tree.root.resolve().is_relative_to(item.path.resolve()):
            problems.append(_linked(tree, item, "class"))
        else:
            notes.append(f"{layouts.called(tree, item.path)} is not read: it is {item.reason}")
    return problems, notes


def _linked(tree: Tree, item: trees.Skipped, kind: str) -> str:
    return (
        f"data.path (={printable(tree.root)}): the {kind} folder {layouts.called(tree, item.path)} is "
        f"{item.reason}, so that both would hold the same images. Remove the link, or put other images there"
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
            f"{printable(path)}: the class folder '{printable(classes[label])}' must hold at least one image "
            f"that can be read ({reading.place(path, folder)}: {detail})"
        )
    if problems:
        raise SourceError(*trees.head(problems))


def _losses(
    tree: Tree,
    places: dict[Path, tuple[str | None, int]],
    labelled: Sequence[SourceFile],
    rejected: Sequence[Rejected],
) -> list[Loss]:
    """Count the pictures that are not used in each class folder."""
    entries = [*tree.files, *(item.path for item in tree.skipped)]
    folder_of = {
        reading.place(tree.root, entry): next((place for place in entry.parents if place in places), None)
        for entry in entries
    }
    read = Counter(folder_of[image.source] for image in labelled)
    lost: dict[Path, Counter[str]] = {}
    for item in rejected:
        if item.kind in LOST and (folder := folder_of.get(item.source)):
            lost.setdefault(folder, Counter())[KINDS[item.kind]] += 1
    return [
        Loss(
            places[folder][1],
            counts.total() > read[folder],
            f"{layouts.called(tree, folder)}: {counts.total():,} of {counts.total() + read[folder]:,} "
            "pictures are not used "
            f"({', '.join(f'{count:,} {kind}' for kind, count in counts.most_common())})",
        )
        for folder, counts in sorted(lost.items())
    ]


def _aside(tree: Tree, found: Layout, file: Path) -> Rejected:
    """Give the rejection of an image that is in no class folder."""
    source = reading.place(tree.root, file)
    inside = found.root if file.is_relative_to(found.root) else tree.root
    parts = file.relative_to(inside).parts
    split_names = " and ".join(
        printable(root.relative_to(found.root)) for root, split in found.splits.items() if split
    )
    if any(map(names.is_unlabelled, parts[:-1])):
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
