"""Readers of labelled images. A new source is one function and one line in ``SOURCES``."""

import gzip
import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

FOLDER_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
"""Names of split folders, and the split that each means."""

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

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


class SourceError(Exception):
    """The images are not there, or not in the form that was named."""


@dataclass(frozen=True)
class Candidate:
    """One image that was read and decoded, not yet assigned to a split."""

    split: str | None
    """``train``, ``val`` or ``test`` where the source says so."""
    label: int
    source: str
    """Where it lies, for a person to find it again."""
    sha256: str
    """Hash of the decoded RGB pixels and their shape."""
    read: Callable[[], bytes]
    """The encoded image."""


@dataclass(frozen=True)
class Rejected:
    """One file that could not be used, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """All that a source holds."""

    classes: tuple[str, ...]
    candidates: list[Candidate]
    rejected: list[Rejected]


def decode(encoded: bytes | Path) -> Image.Image:
    """An RGB image, turned upright as its EXIF orientation says."""
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def content_hash(image: Image.Image) -> str:
    """SHA-256 of an RGB image's shape and pixels: equal for the same picture in another encoding."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def fashion_mnist(path: Path) -> Listing:
    """Fashion-MNIST's four gzipped IDX files (Xiao et al. 2017, https://arxiv.org/abs/1708.07747)."""
    candidates = []
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _read_idx(path / f"{stem}-images-idx3-ubyte.gz", dimensions=3)
        labels = _read_idx(path / f"{stem}-labels-idx1-ubyte.gz", dimensions=1)
        if len(images) != len(labels):
            raise SourceError(f"{path}: {len(images)} {split} images but {len(labels)} labels")
        candidates += [
            Candidate(
                split=split,
                label=int(label),
                source=f"{stem}[{index}]",
                sha256=content_hash(Image.fromarray(pixels).convert("RGB")),
                read=lambda pixels=pixels: _encode_png(pixels),
            )
            for index, (pixels, label) in enumerate(zip(images, labels, strict=True))
        ]
    return Listing(FASHION_MNIST_CLASSES, candidates, [])


def folder(path: Path) -> Listing:
    """Class folders, or train/validation/test folders that hold class folders.

    Files that are no images or cannot be decoded are rejected with their reason.
    """
    if not path.is_dir():
        raise SourceError(f"{path} is not a folder; data.path takes a folder of class folders")
    below = sorted(child for child in path.iterdir() if child.is_dir())
    split_folders = [child for child in below if child.name.lower() in FOLDER_SPLITS]
    roots: list[tuple[str | None, Path]] = [(FOLDER_SPLITS[c.name.lower()], c) for c in split_folders]
    if not roots:
        roots = [(None, path)]
    classes = tuple(sorted({child.name for _, root in roots for child in root.iterdir() if child.is_dir()}))
    if len(classes) < 2:
        raise SourceError(
            f"{path} holds {len(classes)} class folders; at least 2 are needed, "
            "directly or below train/validation/test"
        )
    files = [
        (split, label, file)
        for split, root in roots
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.is_file()
    ]
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(lambda item: _read_file(path, *item), files))
    return Listing(
        classes,
        [item for item in read if isinstance(item, Candidate)],
        [item for item in read if isinstance(item, Rejected)],
    )


SOURCES: dict[str, Callable[[Path], Listing]] = {"fashion_mnist": fashion_mnist, "folder": folder}
"""Name of a source (``data.source``) to its reader."""


def _read_file(root: Path, split: str | None, label: int, file: Path) -> Candidate | Rejected:
    source = str(file.relative_to(root))
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        return Rejected(source, f"not an image: suffix {file.suffix or 'missing'}")
    try:
        image = decode(file)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        return Rejected(source, f"cannot be decoded: {error}")
    return Candidate(split, label, source, content_hash(image), file.read_bytes)


def _read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    if not path.is_file():
        raise SourceError(f"{path} is missing; `python -m pipeline fetch` brings Fashion-MNIST")
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
