"""Tables that list images: CSV with a column ``file_name``, and CelebA's lists."""

import codecs
import csv
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from pipeline.data import names as folder_names
from pipeline.data.listing import SourceError
from pipeline.data.trees import printable, quote
from pipeline.escaping import from_csv

METADATA = "metadata.csv"
FILE_NAME = "file_name"
CELEBA = "list_attr_celeba.txt"
CELEBA_IMAGES = "img_align_celeba"
CELEBA_PARTITION = "list_eval_partition.txt"
CELEBA_SPLITS = {"0": "train", "1": "val", "2": "test"}
NAMES = (METADATA, "metadata.jsonl", "metadata.parquet", CELEBA, CELEBA_PARTITION)
"""Names of tables, in lower case, of which those in JSON and Parquet are not read."""

DELIMITERS = ",;\t|"
"""Characters that may divide the columns of a table."""
_UNNAMED = re.compile(r"\s*|Unnamed: \d+(?:_level_\d+)?")
"""Names of the columns that have none."""

FEW_FOLDERS = 8
"""Most folders of a table's files that are noted; more are shards."""

LONGEST_FIELD = 2**27
"""Most characters of one field of a table."""


class TableError(SourceError):
    """A table cannot be read; the message names the file, the line and the reason."""


@dataclass(frozen=True)
class Table:
    """A CSV table with a column of places of images."""

    file: Path
    columns: tuple[str, ...]
    """Names of the other columns, in order."""
    rows: list[tuple[int, dict[str, str]]]
    """Number of the last line of each row, and its values by column."""


@dataclass(frozen=True)
class Row:
    """One image that a table lists."""

    split: str | None
    values: tuple[float, ...]
    """Share from 0 to 1 of each attribute."""
    file: Path
    where: str
    """Table and line."""


def read(file: Path, key: str = FILE_NAME) -> Table:
    """Read a CSV table in UTF-8 or UTF-16, whose columns are divided by commas, semicolons, tabs or bars.

    Args:
        file: the table.
        key: name of the column with the places of the images.

    Raises:
        TableError: the file cannot be read, lacks the column ``key`` or repeats a column, or a row has more
            or fewer values than there are columns.
    """
    content = text(file)
    first = next((line for line in content.splitlines() if line.strip()), "")
    names = {mark: [name.strip(' "') for name in first.split(mark)] for mark in DELIMITERS}
    delimiter = next((mark for mark in DELIMITERS if key in names[mark]), ",")
    # The limit belongs to the process; it protects from a quote that is never closed, which `strict` notices.
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] = []
    try:
        header = [name.strip() for name in next((row for row in reader if any(map(str.strip, row))), [])]
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                raise TableError(
                    f"{printable(file)}, line {reader.line_num}: {len(header)} values are expected, divided "
                    f"by {delimiter!r}; found {len(values)}"
                )
            rows.append((reader.line_num, dict(zip(header, map(from_csv, values), strict=True))))
    except csv.Error as error:
        raise TableError(f"{printable(file)}, line {reader.line_num}: not a CSV table: {error}") from error
    columns = tuple(name for name in header if name != key)
    if key not in header or not columns:
        raise TableError(
            f"{printable(file)}: must have the column {key} and at least one other; its columns are: "
            f"{', '.join(header) or 'none'}"
        )
    if unnamed := [number for number, name in enumerate(header, start=1) if _UNNAMED.fullmatch(name)]:
        raise TableError(
            f"{printable(file)}: column {unnamed[0]} has no name ({header[unnamed[0] - 1]!r}), like an index "
            "that pandas writes; remove it (`to_csv(index=False)`), or give it the name of an attribute"
        )
    if len(set(header)) < len(header):
        raise TableError(f"{printable(file)}: column names must differ; found {', '.join(header)}")
    check_names(file, columns)
    return Table(file, columns, rows)


def check_names(file: Path, names: Sequence[str]) -> None:
    """Check that no two attributes of a table have one name.

    Raises:
        TableError: two names differ by case, invisible characters or the like only.
    """
    for group in folder_names.same(names):
        raise TableError(
            f"{printable(file)}: the attributes {quote(group)} are one name but for "
            f"{folder_names.DIFFERENCES}{folder_names.look_alikes(group)}; give one attribute one name"
        )


def text(file: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        TableError: the file cannot be read, or has another encoding.
    """
    try:
        content = file.read_bytes() if file.is_file() else None
    except OSError as error:
        raise TableError(f"{printable(file)} could not be read: {error.strerror}") from error
    if content is None:
        raise TableError(f"{printable(file)} is not a file")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        decoded = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise TableError(
            f"{printable(file)} is not in {'UTF-16' if wide else 'UTF-8'} (line {line}); save it in UTF-8"
        ) from error
    if "\0" in decoded:
        line = decoded[: decoded.index("\0")].count("\n") + 1
        raise TableError(
            f"{printable(file)} is not text in UTF-8 (line {line} holds a zero byte, as UTF-16 without its "
            "mark and files of spreadsheets do); save it as CSV in UTF-8"
        )
    # Excel reads the separator of a table from such a first line.
    return re.sub(r"\A\s*\"?sep=.\"?\r?\n", "\n", decoded)


def plain_name(name: str) -> str:
    """Return the name of a file with the separators of this system, without blanks around it."""
    return name.strip().replace("\\", "/")


@dataclass(frozen=True)
class Tables:
    """All that the tables of a source say."""

    names: tuple[str, ...]
    """Names of the attributes."""
    rows: list[Row]
    files: tuple[Path, ...]
    """The tables."""
    notes: tuple[str, ...] = ()


def metadata(path: Path) -> Tables:
    """Read Hugging Face's ``metadata.csv`` in a folder, or in its train, validation and test folders.

    Rows of the folder's own table have the split of the folder in which their files are (``train/1.jpg``), if
    those folders mean several splits. Source: https://huggingface.co/docs/datasets/image_dataset

    Raises:
        TableError: there is no table, or one is not valid.
    """
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    splits = folder_names.splits_of([child.name for child in folders])
    tables = [(None, path / METADATA)] if (path / METADATA).exists() else []
    tables += [
        (splits[child.name], child / METADATA)
        for child in folders
        if child.name in splits and (child / METADATA).exists()
    ]
    if not tables:
        raise TableError(
            f"data.path (={printable(path)}) must hold {METADATA}, directly or in train/validation/test, or "
            f"{CELEBA}"
        )
    names: tuple[str, ...] | None = None
    rows: list[Row] = []
    for split, file in tables:
        table = read(file)
        if table.columns != (names or table.columns):
            raise TableError(
                f"{printable(file)}: columns {FILE_NAME} and {', '.join(names or ())} are expected; "
                f"found {', '.join((FILE_NAME, *table.columns))}"
            )
        names = table.columns
        for line, row in table.rows:
            where = f"{printable(file)}, line {line}"
            values = tuple(_share(where, name, row[name]) for name in names)
            rows.append(Row(split, values, below(file.parent, row[FILE_NAME], where), where))
    given = {row.split for row in rows} - {None}
    tops, found = _splits_of_files(path, [row.file for row in rows if row.split is None])
    if len({*given, *found.values()}) < 2:
        found = {}  # One folder that holds all of them divides nothing.
    notes = []
    if not found and 1 < len(tops) <= FEW_FOLDERS:
        notes.append(
            f"{METADATA}: the rows name files in {quote(tops)}; they are pooled, and splits are drawn anew"
        )
    if found:
        folders = sorted(found)
        notes.append(
            f"{METADATA}: the rows of files in {quote(folders)} keep that split; data.splits = new draws "
            "others"
        )
        if rest := [row for row in rows if row.split is None and _top(path, row.file, found) is None]:
            notes.append(f"{METADATA}: {len(rest):,} rows of files in no folder of a split are in train")
    rows = [replace(row, split=row.split or found.get(_top(path, row.file, found) or "")) for row in rows]
    return Tables(names or (), rows, tuple(file for _, file in tables), tuple(notes))


def _splits_of_files(path: Path, files: Sequence[Path]) -> tuple[list[str], dict[str, str]]:
    """Return the places of the folders into which files are divided, and the split of each that means one."""
    if not files:
        return [], {}
    common = Path(os.path.commonpath([file.parent for file in files]))
    parts = sorted({file.relative_to(common).parts[0] for file in files if file.parent != common})
    inside = common.relative_to(path)
    splits = folder_names.splits_of(parts)
    return [str(inside / part) for part in parts], {str(inside / part): splits[part] for part in splits}


def _top(path: Path, file: Path, folders: Iterable[str]) -> str | None:
    """Return which of the folders holds a file."""
    parents = {str(parent) for parent in file.relative_to(path).parents}
    return next((folder for folder in folders if folder in parents), None)


def celeba(path: Path) -> Tables:
    """Read CelebA's ``list_attr_celeba.txt`` and ``list_eval_partition.txt``, as torchvision keeps them.

    Raises:
        TableError: a table is not valid.
    """
    lines = text(path / CELEBA).splitlines()
    partition = path / CELEBA_PARTITION
    splits: dict[str, str] = {}
    for number, line in enumerate(text(partition).splitlines() if partition.exists() else (), start=1):
        match line.split():
            case []:
                continue
            case [name, split] if split in CELEBA_SPLITS:
                splits[name] = CELEBA_SPLITS[split]
            case _:
                raise TableError(
                    f"{printable(partition)}, line {number}: a file and one of {', '.join(CELEBA_SPLITS)} "
                    f"are expected; found {line!r}"
                )
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    check_names(path / CELEBA, names)
    rows: list[Row] = []
    for number, line in enumerate(lines[2:], start=3):
        if not line.strip():
            continue
        where = f"{printable(path / CELEBA)}, line {number}"
        name, *values = line.split()
        if len(values) != len(names):
            raise TableError(f"{where}: {len(names)} values are expected; found {len(values)}")
        if splits and name not in splits:
            raise TableError(f"{where}: {name} is not in {printable(partition)}")
        shares = tuple(_share(where, *pair) for pair in zip(names, values, strict=True))
        rows.append(Row(splits.get(name), shares, below(path / CELEBA_IMAGES, name, where), where))
    files = (path / CELEBA, *([partition] if partition.exists() else []))
    return Tables(names, rows, files)


def once(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Divide rows into the first of each file, and the repetitions.

    Raises:
        TableError: two rows of one file have different values or splits.
    """
    first: dict[Path, Row] = {}
    repeated: list[Row] = []
    for row in rows:
        earlier = first.setdefault(row.file, row)
        if earlier is row:
            continue
        if (earlier.split, earlier.values) != (row.split, row.values):
            what = "another split" if earlier.values == row.values else "other values"
            raise TableError(f"{row.where}: {row.file.name!r} has {what} than in {earlier.where}")
        repeated.append(row)
    return list(first.values()), repeated


def below(folder: Path, name: str, where: str, key: str = FILE_NAME) -> Path:
    """Return the path of a file that a table names, which must be in or below the table's folder.

    Args:
        folder: the folder of the table.
        name: what the table says.
        where: table and line.
        key: name of the column.

    Raises:
        TableError: the path leads elsewhere, or to no file.
    """
    plain = plain_name(name)
    # Only Windows' paths have backslashes, except that a file here may have one in its name.
    if "\\" in name and "\0" not in name and (folder / name.strip()).exists():
        plain = name.strip()
    absolute = plain.startswith("/") or PureWindowsPath(plain).drive
    if not Path(plain).name or absolute or ".." in Path(plain).parts:
        raise TableError(f"{where}: {key} = {name!r}; a path below {printable(folder)} is expected")
    return folder / plain


def _share(where: str, name: str, value: str) -> float:
    try:
        number = math.nan if "_" in value else float(value)
    except ValueError:
        number = math.nan
    number = 0.0 if number == -1 else number
    if not 0 <= number <= 1:
        shown = value if len(value) <= 50 else f"{value[:50]}..."
        raise TableError(f"{where}: {name} = {shown!r}; a number from 0 to 1 (or -1 for 0) is expected")
    return number
