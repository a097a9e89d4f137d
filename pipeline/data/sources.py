"""Readers of labelled images. A new source is one function and one line in ``SOURCES``."""

import gzip
import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.data import folders, layouts, reading, tables, trees
from pipeline.data import names as alike
from pipeline.data.listing import LOST, Listing, Rejected, SourceError, SourceFile, content_hash

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

SYSTEM_FOLDERS = ("/proc", "/sys", "/dev")
"""Folders of the system whose files are no files on a disk."""


def read(source: str, path: Path, layout: layouts.LayoutName = "auto") -> Listing:
    """Read everything that a source holds, with the folder `unlabelled` beside its labelled images.

    Args:
        source: key of ``SOURCES``.
        path: folder of the source.
        layout: what the folders of the source `folder` are; see ``layouts.read_layout``.

    Raises:
        SourceError: the images are missing, or do not have the form that the source requires.
    """
    check_place(path)
    return SOURCES[source](path, layout)


def check_place(path: Path) -> None:
    """Check that a path is a folder that may hold images only, without looking into it.

    Raises:
        SourceError: it is no folder, or it holds this project, a home folder or the system.
    """
    shown = f"data.path (={trees.printable(path)})"
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{shown} must be a folder of images: {reason}") from error
    if not real.is_dir():
        raise SourceError(f"{shown} must be a folder of images; it is not a folder")
    for around, what in ((Path.cwd(), "this project"), (_home(), "a home folder")):
        if around is not None and around.resolve().is_relative_to(real):
            raise SourceError(f"{shown} must be a folder of images alone; it holds {what} ({around})")
    inside = next((place for place in SYSTEM_FOLDERS if real.is_relative_to(place)), None)
    if inside and not real.is_relative_to("/dev/shm"):
        raise SourceError(f"{shown} must be a folder of images; {inside} holds the system's state, not files")
    if not os.access(real, os.R_OK | os.X_OK):
        raise SourceError(f"{shown} may not be read")


def check_files(path: Path) -> list[str]:
    """Check that DVC can hash everything below a folder, without reading a file.

    Returns:
        Sentences about what DVC does not notice.

    Raises:
        SourceError: DVC would stop, or wait for ever; the message lists the files, one per line.
    """
    check_place(path)
    tree = trees.walk(path)
    if found := trees.obstacles(tree):
        raise SourceError(
            f"data.path (={trees.printable(path)}): DVC cannot hash {len(found):,} of its entries; "
            "remove or rename them:",
            *trees.head(found),
        )
    if not tree.linked:
        return []
    first = trees.printable(tree.linked[0].relative_to(path))
    return [
        f"data.path (={trees.printable(path)}) holds {len(tree.linked):,} links to folders, such as "
        f"{first}. Their images are read, but DVC does not notice when they change: run `dvc repro --force "
        "prepare` then"
    ]


def fashion_mnist(path: Path, _layout: layouts.LayoutName = "auto") -> Listing:
    """Read Fashion-MNIST's four gzipped IDX files (Xiao et al. 2017, https://arxiv.org/abs/1708.07747)."""
    labelled = []
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _read_idx(path / f"{stem}-images-idx3-ubyte.gz", dimensions=3)
        labels = _read_idx(path / f"{stem}-labels-idx1-ubyte.gz", dimensions=1)
        if len(images) != len(labels):
            raise SourceError(f"{path}: {len(images)} {split} images but {len(labels)} labels")
        if labels.size and labels.max() >= len(FASHION_MNIST_CLASSES):
            raise SourceError(
                f"{path}: a {split} label is {labels.max()}; the greatest is {len(FASHION_MNIST_CLASSES) - 1}"
            )
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
    unlabelled, rejected = reading.read_unlabelled(path, trees.walk(path))
    return Listing(FASHION_MNIST_CLASSES, labelled, rejected, unlabelled=unlabelled)


def folder(path: Path, layout: layouts.LayoutName = "auto") -> Listing:
    """Read class folders, or train/validation/test folders that hold class folders."""
    if not path.is_dir():
        raise SourceError(f"data.path (={path}) must be a folder of class folders")
    return folders.read(path, layout)


def attributes(path: Path, _layout: layouts.LayoutName = "auto") -> Listing:
    """Read images with any number of attributes each, listed in a table.

    The table is Hugging Face's ``metadata.csv`` (https://huggingface.co/docs/datasets/image_dataset):
    ``file_name`` and one column per attribute, in the folder itself or in train/validation/test folders. Or
    it is CelebA's ``list_attr_celeba.txt`` beside ``img_align_celeba/`` and, for the splits,
    ``list_eval_partition.txt``, as torchvision keeps them. Values lie between 0 and 1; -1 means 0, as in
    CelebA. Images that no table names are rejected.
    """
    if not path.is_dir():
        raise SourceError(f"data.path (={path}) must be a folder with {tables.METADATA} or {tables.CELEBA}")
    is_celeba = (path / tables.CELEBA).is_file()
    found = tables.celeba(path) if is_celeba else tables.metadata(path)
    names = found.names
    if not found.rows:
        tables_read = ", ".join(map(trees.printable, found.files))
        raise SourceError(f"{tables_read}: no row names an image; one row per image is expected")
    rows, repeated = tables.once(found.rows)
    labelled, rejected = reading.read_files(path, [(row.split, row.values, row.file) for row in rows])
    tree = trees.walk(path)
    unlabelled, unread = reading.read_unlabelled(path, tree, len(names))
    used = {row.file for row in rows} | set(found.files)
    used |= {file for file in tree.files if reading.is_unlabelled(path, file)}
    others = [file for file in tree.files if file not in used and file.name.lower() in tables.NAMES]
    _check_tables(path, tree, others, used)
    rejected += unread + reading.reject_skipped(tree)
    rejected += [
        Rejected(reading.place(path, row.file), f"listed again in {row.where}", "duplicate")
        for row in repeated
    ]
    rejected += [Rejected(reading.place(path, file), "a table that is not read", "aside") for file in others]
    rejected += reading.reject_unused(
        tree,
        used | set(others),
        lambda file: Rejected(reading.place(path, file), "no table names it", "unlabelled"),
    )
    rejected.sort(key=lambda item: item.source)
    if not labelled:
        lines = [f"{item.source}: {item.reason}" for item in rejected if item.kind in LOST]
        raise SourceError(
            f"data.path (={trees.printable(path)}): none of the {len(rows):,} files that the tables name "
            "could be read:",
            *trees.head(lines),
        )
    notes = [f"{reading.place(path, file)} is a table that is not read" for file in others]
    return Listing(
        names,
        labelled,
        rejected,
        task="multi_label",
        unlabelled=unlabelled,
        notes=(*found.notes, *notes, *alike.notes(names, "attribute")),
    )


def _check_tables(path: Path, tree: trees.Tree, others: list[Path], used: set[Path]) -> None:
    """Check that no table which is not read is in a folder with pictures that no other one names."""
    for table in others:
        beside = [
            file for file in tree.files if reading.is_picture(file) and file.is_relative_to(table.parent)
        ]
        if table.parent != path and beside and used.isdisjoint(beside):
            folder = trees.printable(table.parent.relative_to(path))
            remedy = f"save it as {tables.METADATA}"
            if table.name == tables.METADATA:
                remedy = f"if it is a split, call `{folder}` train, val or test; otherwise move it elsewhere"
            raise SourceError(
                f"data.path (={trees.printable(path)}): {reading.place(path, table)} is not read, so that "
                f"the {len(beside):,} pictures in `{folder}` would be lost; {tables.METADATA} is read in "
                f"data.path itself, and in folders called train, val or test, or like it: {remedy}"
            )


SOURCES: dict[str, Callable[[Path, layouts.LayoutName], Listing]] = {
    "attributes": attributes,
    "fashion_mnist": fashion_mnist,
    "folder": folder,
}
"""Reader by the name of the source (``data.source``)."""


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # a user without a home
        return None


def _read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    if not path.is_file():
        raise SourceError(f"{path} is missing; `python -m pipeline fetch` downloads Fashion-MNIST")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
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
