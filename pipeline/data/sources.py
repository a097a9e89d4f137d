"""Readers of labelled images. A new source is one function and one line in ``SOURCES``."""

import csv
import gzip
import hashlib
import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from pipeline.data.images import SUFFIXES, ImageFileError, opened
from pipeline.errors import DistilleryError
from pipeline.tasks import TaskName

FOLDER_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
"""Split by the name of its folder."""

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

UNLABELLED = "unlabelled"
"""Name of the folder beside the labelled images that holds images without labels."""

METADATA = "metadata.csv"
FILE_NAME = "file_name"
CELEBA = "list_attr_celeba.txt"
CELEBA_SPLITS = {"0": "train", "1": "val", "2": "test"}


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
    """Function that returns the encoded image."""


@dataclass(frozen=True)
class Rejected:
    """One file that is not used, with the reason."""

    source: str
    reason: str


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


def content_hash(image: Image.Image) -> str:
    """Compute the SHA-256 of an RGB image's shape and pixels, which does not depend on its encoding."""
    digest = hashlib.sha256(f"{image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def read(source: str, path: Path) -> Listing:
    """Read everything that a source holds, with the folder `unlabelled` beside its labelled images.

    Args:
        source: key of ``SOURCES``.
        path: folder of the source.

    Raises:
        SourceError: the images are missing, or do not have the form that the source requires.
    """
    listing = SOURCES[source](path)
    unknown = -1 if listing.task == "single_label" else (math.nan,) * len(listing.classes)
    files = [file for file in sorted((path / UNLABELLED).rglob("*")) if file.is_file()]
    images, rejected = _read_files(path, [(None, unknown, file) for file in files])
    return replace(listing, rejected=[*listing.rejected, *rejected], unlabelled=images)


def fashion_mnist(path: Path) -> Listing:
    """Read Fashion-MNIST's four gzipped IDX files (Xiao et al. 2017, https://arxiv.org/abs/1708.07747)."""
    labelled = []
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _read_idx(path / f"{stem}-images-idx3-ubyte.gz", dimensions=3)
        labels = _read_idx(path / f"{stem}-labels-idx1-ubyte.gz", dimensions=1)
        if len(images) != len(labels):
            raise SourceError(f"{path}: {len(images)} {split} images but {len(labels)} labels")
        labelled += [
            SourceFile(
                split=split,
                label=int(label),
                source=f"{stem}[{index}]",
                sha256=content_hash(Image.fromarray(pixels).convert("RGB")),
                read=lambda pixels=pixels: _encode_png(pixels),
            )
            for index, (pixels, label) in enumerate(zip(images, labels, strict=True))
        ]
    return Listing(FASHION_MNIST_CLASSES, labelled, [])


def folder(path: Path) -> Listing:
    """Read class folders, or train/validation/test folders that hold class folders.

    Files that are not images or cannot be decoded are rejected with their reason.
    """
    if not path.is_dir():
        raise SourceError(f"data.path (={path}) must be a folder of class folders")
    below = _folders(path)
    split_folders = [child for child in below if child.name.lower() in FOLDER_SPLITS]
    roots: list[tuple[str | None, Path]] = [(FOLDER_SPLITS[c.name.lower()], c) for c in split_folders]
    beside = [child for child in below if roots and child not in split_folders]
    if not roots:
        roots = [(None, path)]
    classes = tuple(sorted({child.name for _, root in roots for child in _folders(root)}))
    if len(classes) < 2:
        raise SourceError(
            f"data.path (={path}) must hold at least 2 class folders, directly or below "
            f"train/validation/test; it holds {len(classes)}"
        )
    files = [
        (split, label, file)
        for split, root in roots
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.is_file()
    ]
    labelled, rejected = _read_files(path, files)
    if empty := sorted(set(range(len(classes))) - {image.label for image in labelled}):
        names = ", ".join(repr(classes[label]) for label in empty)
        raise SourceError(f"{path}: the class folders {names} must hold at least one image that can be read")
    split_names = " and ".join(child.name for child in split_folders)
    rejected += [
        Rejected(child.name, f"a folder beside {split_names}; its images are not used") for child in beside
    ]
    return Listing(classes, labelled, rejected)


def _folders(path: Path) -> list[Path]:
    """List the folders in order, except that of unlabelled images and those that programs leave behind."""
    return sorted(
        child
        for child in path.iterdir()
        if child.is_dir() and child.name not in (UNLABELLED, "__MACOSX") and not child.name.startswith(".")
    )


def attributes(path: Path) -> Listing:
    """Read images with any number of attributes each, listed in a table.

    The table is Hugging Face's ``metadata.csv`` (https://huggingface.co/docs/datasets/image_dataset):
    ``file_name`` and one column per attribute, in the folder itself or in train/validation/test folders. Or
    it is CelebA's ``list_attr_celeba.txt`` beside ``img_align_celeba/`` and, for the splits,
    ``list_eval_partition.txt``, as torchvision keeps them. Values lie between 0 and 1; -1 means 0, as in
    CelebA.
    """
    if not path.is_dir():
        raise SourceError(f"data.path (={path}) must be a folder with {METADATA} or {CELEBA}")
    if (path / CELEBA).is_file():
        names, rows = _celeba(path)
    else:
        names, rows = _metadata(path)
    return Listing(names, *_read_files(path, rows), task="multi_label")


SOURCES: dict[str, Callable[[Path], Listing]] = {
    "attributes": attributes,
    "fashion_mnist": fashion_mnist,
    "folder": folder,
}
"""Reader by the name of the source (``data.source``)."""


Labelled = tuple[str | None, tuple[float, ...], Path]
"""Split, attributes and file."""


def _metadata(path: Path) -> tuple[tuple[str, ...], list[Labelled]]:
    tables = [(None, path / METADATA)] if (path / METADATA).is_file() else []
    tables += [
        (FOLDER_SPLITS[child.name.lower()], child / METADATA)
        for child in sorted(path.iterdir())
        if child.name.lower() in FOLDER_SPLITS and (child / METADATA).is_file()
    ]
    if not tables:
        raise SourceError(f"{path} must hold {METADATA}, directly or in train/validation/test, or {CELEBA}")
    names: tuple[str, ...] | None = None
    rows: list[Labelled] = []
    for split, file in tables:
        reader = csv.DictReader(io.StringIO(_text(file), newline=""))
        header = list(reader.fieldnames or ())
        columns = tuple(name for name in header if name != FILE_NAME)
        if FILE_NAME not in header or not columns or columns != (names or columns):
            raise SourceError(
                f"{file}: columns {FILE_NAME} and {', '.join(names or ('at least one attribute',))} are "
                f"expected; found {', '.join(header) or 'none'}"
            )
        if len(set(header)) < len(header):
            raise SourceError(f"{file}: column names must differ; found {', '.join(header)}")
        names = columns
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            values = tuple(_share(where, name, row[name]) for name in columns)
            rows.append((split, values, _beside(file.parent, row[FILE_NAME], where)))
    return names or (), rows


def _celeba(path: Path) -> tuple[tuple[str, ...], list[Labelled]]:
    lines = _text(path / CELEBA).splitlines()
    partition = path / "list_eval_partition.txt"
    splits: dict[str, str] = {}
    for number, line in enumerate(_text(partition).splitlines() if partition.is_file() else (), start=1):
        match line.split():
            case []:
                continue
            case [name, split] if split in CELEBA_SPLITS:
                splits[name] = CELEBA_SPLITS[split]
            case _:
                raise SourceError(
                    f"{partition}, line {number}: a file and one of {', '.join(CELEBA_SPLITS)} are expected; "
                    f"found {line!r}"
                )
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    rows: list[Labelled] = []
    for number, line in enumerate(lines[2:], start=3):
        if not line.strip():
            continue
        where = f"{path / CELEBA}, line {number}"
        name, *values = line.split()
        if len(values) != len(names):
            raise SourceError(f"{where}: {len(names)} values are expected; found {len(values)}")
        if splits and name not in splits:
            raise SourceError(f"{where}: {name} is not in {partition}")
        shares = tuple(_share(where, *pair) for pair in zip(names, values, strict=True))
        rows.append((splits.get(name), shares, _beside(path / "img_align_celeba", name, where)))
    return names, rows


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{file} is not in UTF-8: {error}") from error


def _beside(folder: Path, name: str | None, where: str) -> Path:
    """Return the path of a file that a table names, which must be in or below the table's folder."""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise SourceError(f"{where}: {FILE_NAME} = {name!r}; a path below {folder} is expected")
    return folder / name


def _share(where: str, name: str, value: str | None) -> float:
    try:
        number = float(value or "")
    except ValueError:
        number = math.nan
    number = 0.0 if number == -1 else number
    if not 0 <= number <= 1:
        raise SourceError(f"{where}: {name} = {value!r}; a number from 0 to 1 (or -1 for 0) is expected")
    return number


def _read_files(
    root: Path, files: Sequence[tuple[str | None, int | tuple[float, ...], Path]]
) -> tuple[list[SourceFile], list[Rejected]]:
    with ThreadPoolExecutor() as pool:
        reading = pool.map(lambda item: _read_file(root, *item), files)
        read = list(
            tqdm(reading, "read", len(files), unit=" images", unit_scale=True, delay=5, mininterval=5)
        )
    return (
        [item for item in read if isinstance(item, SourceFile)],
        [item for item in read if isinstance(item, Rejected)],
    )


def _read_file(
    root: Path, split: str | None, label: int | tuple[float, ...], file: Path
) -> SourceFile | Rejected:
    source = os.fsencode(file.relative_to(root)).decode("utf-8", "backslashreplace")
    if file.suffix.lower() not in SUFFIXES:
        return Rejected(source, f"not an image: suffix {file.suffix or 'missing'}")
    try:
        with opened(file) as image:
            digest = content_hash(image)
    except ImageFileError as error:
        return Rejected(source, f"cannot be decoded: {error.reason}")
    return SourceFile(split, label, source, digest, file.read_bytes)


def _read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    if not path.is_file():
        raise SourceError(f"{path} is missing; `python -m pipeline fetch` downloads Fashion-MNIST")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise SourceError(f"{path} is damaged ({error}); delete it and fetch it again") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise SourceError(f"{path} is not an IDX file of {dimensions} dimensions of bytes")
    shape = np.frombuffer(content[4:header], dtype=">u4").astype(int)
    if len(content) - header != shape.prod():
        raise SourceError(f"{path} holds {len(content) - header} bytes; its header says {shape.prod()}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _encode_png(pixels: UInt8[np.ndarray, "height width"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
