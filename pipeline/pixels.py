"""The pixels of an image file: the one rule for training, `predict`, and the served model.

docs/shipping.md states the rule, and the example in a shipped folder repeats it in a few lines. MLflow keeps
a copy of this module with each logged model, so it needs numpy and pillow, and nothing from this package.
"""

import ctypes
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

# Imported by name: an unregistered format would make Pillow load all of its plugins.
from PIL import (  # noqa: F401 - each import registers a format  # isort: skip
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""Formats that are read, whatever the suffix of a file; JPEG includes the MPO files of cameras and phones.

None of them starts a program, as EPS starts Ghostscript.
"""
PIXELS = 100_000_000
"""Most pixels that an image may have."""
WEBP_PIXELS = PIXELS // 2
"""The same for WebP, whose decoder takes twice the memory of the others."""
BYTES = 300 * 2**20
"""Most bytes that an encoded image may have: enough for as many pixels without compression."""
LARGE = 4_000_000
"""Pixels of an image before which memory that earlier images left unused is given back to the system."""
SCANNED_PIXELS = 40 * PIXELS
"""Most pixels times scans that a JPEG may have; a progressive photograph has about 10 scans."""
ORIENTATION = 0x0112
"""EXIF tag of the orientation."""
SIGNED = 2
"""Value of the TIFF tag of the sample format that means signed integers."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its orientation."""
OTHER_FORMATS = (
    (4, b"ftypheic", "a HEIC photograph"),
    (4, b"ftypheix", "a HEIC photograph"),
    (4, b"ftyphevc", "a HEIC sequence"),
    (4, b"ftypmif1", "a HEIF photograph"),
    (4, b"ftypmsf1", "a HEIF sequence"),
    (4, b"ftypavi", "an AVIF image with a damaged head"),
    (4, b"ftyp", "a film"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"JXL ", "a JPEG XL image"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (0, b"version https://git-lfs", "the pointer of Git LFS in place of the file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"<", "a page or a drawing in HTML or XML"),
)
"""Offset, bytes and name of what is found under the names of images; the first that fits counts."""
LONGEST_REASON = 200
"""Most characters of a decoder's words in a reason."""

# What Pillow warns of either makes an image unreadable here or does not change its pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())
# libtiff would print every damage, without the name of the file; Pillow's wheels bring it in this folder.
for library in Path(PIL.__file__).parents[1].glob("pillow.libs/libtiff*"):
    with suppress(OSError, AttributeError):
        ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)
        ctypes.CDLL(str(library)).TIFFSetWarningHandler(None)


# glibc keeps what a thread has freed for that thread, which adds up to gigabytes with large images.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class UnreadableImageError(ValueError):
    """The bytes are not an image that is read; the message is the reason, such as "it is empty"."""


class _Room:
    """Bound on the pixels that all threads of a process decode at the same time."""

    def __init__(self) -> None:
        self._condition, self._used = threading.Condition(), 0

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for as many pixels; an image alone always has room."""
        with self._condition:
            self._condition.wait_for(lambda: self._used == 0 or self._used + pixels <= PIXELS)
            self._used += pixels
        if pixels >= LARGE and _trim is not None:
            _trim(0)
        try:
            yield
        finally:
            with self._condition:
                self._used -= pixels
                self._condition.notify_all()


_room = _Room()
# A thread that decodes while the process forks does not exist in the child.
os.register_at_fork(after_in_child=lambda: _room.__init__())


@contextmanager
def opened(encoded: bytes, at_least: int | None = None) -> Iterator[Image.Image]:
    """Yield an image as RGB, upright, of 8 bits per value, on white where it is transparent.

    Threads that are inside this block hold at most ``PIXELS`` pixels together, so that whoever reads many
    large files at once stays within bounded memory; the image is closed at the end of the block. A thread may
    be inside one such block only.

    Args:
        encoded: the content of an image file.
        at_least: with it, a large JPEG is decoded at a half, a quarter or an eighth of its size, which takes
            less time and memory; no side gets fewer pixels than that.

    Raises:
        UnreadableImageError: the content is not such an image, too large, cut off, or damaged.
    """
    with _decoded(encoded, at_least) as image:
        try:
            yield image
        finally:
            image.close()  # before other threads take the room


def decode(encoded: bytes, at_least: int | None = None, *, grey: bool = False) -> Image.Image:
    """Return what ``opened`` yields, for as long as it is needed: only its decoding is bounded.

    Args:
        encoded: see ``opened``.
        at_least: see ``opened``.
        grey: whether a grey image stays in one channel, in which it is resized in half the time.
    """
    with _decoded(encoded, at_least, grey=grey) as image:
        return image


@contextmanager
def _decoded(encoded: bytes, at_least: int | None, *, grey: bool = False) -> Iterator[Image.Image]:
    with _reasons():
        image = _open(encoded)
        if at_least is not None:
            image.draft(None, (at_least, at_least))
    room = image.width * image.height * PIXELS // _most_pixels(image)
    with image, _room.taken(room):
        with _reasons():
            pixels = _pixels(image, "L" if grey else "RGB")
        image.close()
        yield pixels


def measure(encoded: bytes) -> tuple[int, int]:
    """Return the width and height of an image as it is stored, before it is turned upright.

    Raises:
        UnreadableImageError: as ``opened``, as far as the head of the file tells.
    """
    with _reasons(), _open(encoded) as image:
        return image.size


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn anything that a decoder raises into a reason."""
    try:
        yield
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"it has too many pixels; at most {PIXELS:,} are read") from error
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, OSError | ValueError | SyntaxError):
            words = f"{type(error).__name__}: {words}"
        if len(words) > LONGEST_REASON:
            words = f"{words[:LONGEST_REASON]} ..."
        raise UnreadableImageError(words) from error


def _open(encoded: bytes) -> Image.Image:
    """Read the head of an image and check it against the limits."""
    if not encoded:
        raise UnreadableImageError("it is empty")
    if len(encoded) > BYTES:
        raise UnreadableImageError(f"it has {len(encoded):,} bytes; at most {BYTES:,} are read")
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise UnreadableImageError(_unidentified(encoded)) from error
    pixels, most = image.width * image.height, _most_pixels(image)
    if pixels > most:
        raise UnreadableImageError(f"it has {image.width} x {image.height} pixels; at most {most:,} are read")
    if kind := _misread(image):
        raise UnreadableImageError(f"it has {kind}, which Pillow misreads; convert it to another kind of PNG")
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        scans = encoded.count(b"\xff\xda")
        if pixels * scans > SCANNED_PIXELS:
            raise UnreadableImageError(f"it has {scans} scans of {pixels:,} pixels, too many to decode")
    return image


def _misread(image: Image.Image) -> str | None:
    """Return the kind of values of an image file that Pillow would take for others; None if it takes none."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        values = str(image.tile[0].args) if image.tile else ""
        if image.info.get("transparency") is None or not values.startswith(("L;2", "L;4", "RGB;16")):
            return None
        return "a transparent colour among values of 2, 4 or 16 bits"
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags = image.tag_v2
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    if image.mode in ("I", "F"):  # refused for their range
        return None
    if SIGNED in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
        return "signed values"
    if max(bits) <= 8:
        return None
    if max(bits) < 16:
        return f"values of {max(bits)} bits"
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        return "16-bit values of which 0 is white"
    raw = tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
    if raw and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and len(bits) > 1:
        return "16-bit values in separate planes"
    return None


def _most_pixels(image: Image.Image) -> int:
    return WEBP_PIXELS if image.format == "WEBP" else PIXELS


def _unidentified(encoded: bytes) -> str:
    kinds = (kind for offset, magic, kind in OTHER_FORMATS if encoded.startswith(magic, offset))
    kind = next(kinds, None)
    if kind is None:
        return "it is not an image of a known format"
    return f"it is {kind}; only {', '.join(FORMATS)} are read"


def _pixels(image: Image.Image, plain: str) -> Image.Image:
    """The image upright as RGB, or in the mode ``plain`` if it has that."""
    image.load()
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I;16"):
        upright = _eight_bits(upright)
    elif upright.mode in ("I", "F"):
        kind = "integers of 32 bits" if upright.mode == "I" else "floating-point numbers"
        raise UnreadableImageError(f"it has grey values that are {kind}; convert them to 8 or 16 bits")
    if not upright.has_transparency_data:
        if upright.mode in ("RGB", plain):
            # The image of the file itself is copied, so that the file can be closed.
            return upright.copy() if upright is image else upright
        return upright.convert("RGB")
    rgba = upright if upright.mode == "RGBA" else upright.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values from 0..65535 to 0..255: the nearest of value / 257, without wider integers."""
    values = np.asarray(image)
    grey = ((np.minimum(values, 65535 - 128) + 128) // 257).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)
