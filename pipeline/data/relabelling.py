"""Other names, labels and splits for what a folder of images holds, as the settings of the data give them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from pipeline.data import names as alike
from pipeline.data import reading, tables, trees
from pipeline.data.listing import Listing, SourceError
from pipeline.data.settings import LabelTable
from pipeline.data.trees import printable
from pipeline.errors import did_you_mean


def rename(contents: Listing, names: Mapping[str, str]) -> Listing:
    """Give classes other names than those of their folders. Their order stays that of the folders.

    Args:
        contents: what the folder holds.
        names: name by the name of the folder.

    Raises:
        SourceError: there is no such folder, or two classes have one name.
    """
    unknown = [name for name in names if name not in contents.classes]
    if unknown:
        hint = did_you_mean(unknown[0], contents.classes, lambda near: f"`{printable(near)}`")
        raise SourceError(
            f"data.names: no class folder is called {trees.quote(unknown)}{hint} (there are "
            f"{trees.quote(contents.classes)})"
        )
    classes = tuple(names.get(folder, folder) for folder in contents.classes)
    for name in classes:
        if name != name.strip() or not name.isprintable():
            raise SourceError(
                f"data.names: '{printable(name)}' is not a valid name; blanks around it and control "
                "characters are not allowed"
            )
    equal = [(name,) for name, count in Counter(classes).items() if count > 1]
    for group in [*equal, *alike.same(classes)]:
        folders = [folder for folder in contents.classes if names.get(folder, folder) in group]
        raise SourceError(
            f"data.names: the class folders {trees.quote(folders)} would both be called "
            f"{trees.quote(group)}; give each class a name of its own"
        )
    for folder, name in names.items():
        if name != folder and name in contents.classes:
            raise SourceError(
                f"data.names: the class folder `{printable(folder)}` would have the name of another one, "
                f"`{printable(name)}`, which in a table or of a logit could mean either; rename the folders"
            )
    notes = [note for note in contents.notes if note not in alike.notes(contents.classes)]
    return replace(contents, classes=classes, folders=contents.classes, notes=(*notes, *alike.notes(classes)))


def relabel(contents: Listing, path: Path, settings: LabelTable, *, verified: bool = False) -> Listing:
    """Read labels for training from a table.

    Args:
        contents: what the folder holds.
        path: the folder, ``data.path``.
        settings: place of the table and its columns.
        verified: whether these are the labels that are known to be right, ``data.verified``, which a table
            may give for a part of the images; otherwise they are ``data.labels``.

    Raises:
        SourceError: the table is not in the folder, lacks a column, names no image of the folder, gives a
            label that is no class, or gives two labels to one image.
    """
    key = "data.verified" if verified else "data.labels"
    place = PurePath(settings.table)
    file = path / place
    if place.is_absolute() or ".." in place.parts or not file.is_file():
        raise SourceError(
            f"{key}.table (={printable(settings.table)}) must be a file in data.path "
            f"(={printable(path)}); copy it there, so that DVC notices when it changes"
        )
    table = tables.read(file, settings.files)
    if settings.column not in table.columns:
        raise SourceError(
            f"{key}.column (={printable(settings.column)}): {printable(file)} has no such column; "
            f"allowed: {', '.join(map(printable, table.columns))}"
        )
    numbers = {name: number for number, name in enumerate(contents.classes)}
    numbers |= {folder: number for number, folder in enumerate(contents.folders)}
    labels: dict[str, tuple[int, str]] = {}
    for line, row in table.rows:
        where = f"{printable(file)}, line {line}"
        source = reading.place(path, tables.below(file.parent, row[settings.files], where, settings.files))
        label = numbers.get(row[settings.column].strip())
        if label is None:
            raise SourceError(
                f"{where}: {settings.column} = {row[settings.column]!r} is no class; the classes are "
                f"{trees.quote(contents.folders or contents.classes)}"
            )
        first, earlier = labels.setdefault(source, (label, where))
        if first != label:
            raise SourceError(f"{where}: {source} has another label than in {earlier}")
    labelled = [
        replace(image, training_label=labels[image.source][0], verified=verified)
        if image.source in labels
        else image
        for image in contents.labelled
    ]
    matching = sum(image.source in labels for image in labelled)
    if not matching:
        raise SourceError(
            f"{printable(file)}: no file of its column {settings.files} is an image of {printable(path)}, as "
            f"{contents.labelled[0].source} is"
        )
    missing = 0 if verified else _without(contents, labels)
    return replace(
        contents,
        labelled=labelled,
        rejected=[item for item in contents.rejected if item.source != reading.place(path, file)],
        notes=(*contents.notes, *_gaps(file, len(labels) - matching, missing)),
    )


def _without(contents: Listing, labels: Mapping[str, object]) -> int:
    """Number of images that may be used for training and that the table does not name."""
    return sum(image.split in ("train", None) and image.source not in labels for image in contents.labelled)


def _gaps(file: Path, unused: int, missing: int) -> Sequence[str]:
    name = printable(file.name)
    notes = []
    if unused:
        notes.append(f"{name}: {unused:,} of its files are not among the images that can be read")
    if missing:
        notes.append(f"{name} lacks {missing:,} images, which keep the labels of their folders for training")
    return notes


def hold_out_val(contents: Listing) -> Listing:
    """Make the published validation split the test split.

    Raises:
        SourceError: the folder has no validation split, or has a test split.
    """
    splits = {image.split for image in contents.labelled}
    if "val" not in splits or "test" in splits:
        found = ", ".join(sorted(split for split in splits if split)) or "none"
        raise SourceError(
            "data.splits = 'val_as_test' needs a validation split and no test split; the folder has these "
            f"splits: {found}; set data.splits to `original` or `new`"
        )
    names: dict[str | None, str] = {"val": "test"}
    return replace(
        contents,
        labelled=[replace(image, split=names.get(image.split, image.split)) for image in contents.labelled],
        empty=tuple((names.get(split, split), label) for split, label in contents.empty),
    )
