"""Image files of every kind for the readers to agree on, and files that no reader takes."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
X, Y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
RAMP = np.stack([X * 6, Y * 8, X * 5 + Y * 3], axis=-1).astype(np.uint8)
DEEP = np.stack([X * 1600, Y * 2000, X * 700 + Y * 300], axis=-1).astype(np.uint16)
ALPHA = (X * 9 % 256).astype(np.uint8)
ORIENTATION = 0x0112
DAMAGED_EXIF = b"Exif\0\0" + b"no TIFF" * 4


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(colour_type: int, values: np.ndarray, *more: bytes) -> bytes:
    """A PNG file of 16 bits per value, which Pillow does not write in all colour types."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(values: np.ndarray, bits: int, photometric: int = 1, planes: int = 1, signed: bool = False) -> bytes:
    """An uncompressed TIFF file of grey values, or of planes [plane, height, width] with ``planes`` of 3."""
    *_, height, width = values.shape
    rows = values.reshape(-1, width)
    if bits == 12:
        text = ["".join(f"{value:012b}" for value in row) for row in rows]
        content = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in text)
    else:
        content = rows.astype(f"<u{bits // 8}").tobytes()
    end = 8 + 2 + 12 * 11 + 4
    size = len(content) // planes
    fields = {
        256: [width], 257: [height], 258: [bits] * planes, 259: [1], 262: [photometric],
        273: [end + 18 + size * plane for plane in range(planes)], 277: [planes], 278: [height],
        279: [size] * planes, 284: [2 if planes > 1 else 1], 339: [2 if signed else 1] * planes,
    }  # fmt: skip
    head, more = struct.pack("<2sHIH", b"II", 42, 8, len(fields)), b""
    for tag, numbers in fields.items():
        kind, code = ("H", 3) if tag in (258, 339) else ("I", 4)
        packed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            packed, more = struct.pack("<I", end + 18 + len(content) + len(more)), more + packed
        head += struct.pack("<HHI", tag, code, len(numbers)) + packed.ljust(4, b"\0")
    return head + b"\0" * (4 + 18) + content + more


def small_png(bits: int, values: np.ndarray, *more: bytes) -> bytes:
    """A PNG file of grey values of 1, 2 or 4 bits."""
    each = 8 // bits
    packed = sum(values[:, shift::each] << bits * (each - 1 - shift) for shift in range(each))
    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in np.asarray(packed))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def misread() -> dict[str, bytes]:
    """Files whose values Pillow takes for others."""
    key = struct.pack(">HHH", *DEEP[3, 3])
    planes = DEEP.transpose(2, 0, 1)
    return {
        "white_is_zero_16.tif": tiff(DEEP[:, :, 2], 16, photometric=0),
        "planes_16.tif": tiff(planes, 16, photometric=2, planes=3),
        "signed_8.tif": tiff(X, 8, signed=True),
        "grey_12.tif": tiff(X * 100, 12),
        "grey_2_key.png": small_png(2, X % 4, chunk(b"tRNS", struct.pack(">H", 1))),
        "grey_4_key.png": small_png(4, X % 16, chunk(b"tRNS", struct.pack(">H", 1))),
        "deep_rgb_key.png": png(2, DEEP, chunk(b"tRNS", key)),
    }


def readable() -> dict[str, bytes]:
    """One file per mode, format and orientation, by name."""
    rgb = Image.fromarray(RAMP)
    grey, deep, flipped = rgb.convert("L"), Image.fromarray(DEEP[:, :, 2]), rgb.transpose(Image.Transpose(0))
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(ALPHA))
    palette = rgb.quantize(64)
    big_endian = Image.frombytes("I;16B", deep.size, DEEP[:, :, 2].astype(">u2").tobytes())
    key = tuple(int(value) for value in RAMP[3, 3])
    frames = {"save_all": True, "append_images": [flipped]}
    files = {
        "rgb.png": encode(rgb, "PNG"),
        "rgb_key.png": encode(rgb, "PNG", transparency=key),
        "rgb.jpg": encode(rgb, "JPEG"),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "rgb.bmp": encode(rgb, "BMP"),
        "grey.png": encode(grey, "PNG"),
        "grey_key.png": encode(grey, "PNG", transparency=int(np.asarray(grey)[3, 3])),
        "grey.jpg": encode(grey, "JPEG"),
        "bits.png": encode(rgb.convert("1"), "PNG"),
        "grey_alpha.png": encode(rgba.convert("LA"), "PNG"),
        "alpha.png": encode(rgba, "PNG"),
        "alpha.tif": encode(rgba, "TIFF"),
        "alpha.webp": encode(rgba, "WEBP", lossless=True),
        "alpha.avif": encode(rgba, "AVIF"),
        "palette.png": encode(palette, "PNG"),
        "palette_key.png": encode(palette, "PNG", transparency=5),
        "palette_alpha.png": encode(palette, "PNG", transparency=bytes([0, 40, 128, 255] * 16)),
        "palette_key.gif": encode(palette, "GIF", transparency=5),
        "palette_alpha.tif": encode(palette.convert("PA"), "TIFF"),
        "deep.png": encode(deep, "PNG"),
        "deep_key.png": encode(deep, "PNG", transparency=int(DEEP[3, 3, 2])),
        "deep.tif": encode(deep, "TIFF"),
        "deep_big_endian.tif": encode(big_endian, "TIFF"),
        "deep_rgb.png": png(2, DEEP),
        "deep_rgba.png": png(6, np.dstack([DEEP, DEEP[:, :, 0]])),
        "deep_grey_alpha.png": png(4, DEEP[:, :, [2, 0]]),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "cmyk.tif": encode(rgb.convert("CMYK"), "TIFF"),
        "ycbcr.tif": encode(rgb.convert("YCbCr"), "TIFF"),
        "lab.tif": encode(Image.frombytes("LAB", rgb.size, RAMP.tobytes()), "TIFF"),
        "animated.gif": encode(palette, "GIF", save_all=True, append_images=[flipped.quantize(64)]),
        "animated.webp": encode(rgb, "WEBP", lossless=True, **frames),
        "animated.png": encode(rgb, "PNG", **frames),
        "animated.avif": encode(rgb, "AVIF", **frames),
        "pages.tif": encode(rgb, "TIFF", **frames),
        "camera.mpo": encode(rgb, "MPO", **frames),
        "lzw.tif": encode(rgb, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encode(rgb, "TIFF", compression="tiff_deflate"),
        "jpeg.tif": encode(rgb, "TIFF", compression="jpeg"),
        "packbits.tif": encode(rgb, "TIFF", compression="packbits"),
        "white_is_zero.tif": tiff(RAMP[:, :, 2], 8, photometric=0),
        "planes.tif": tiff(RAMP.transpose(2, 0, 1), 8, photometric=2, planes=3),
        "grey_1_key.png": small_png(1, X % 2, chunk(b"tRNS", struct.pack(">H", 1))),
        "grey_2.png": small_png(2, X % 4),
        "grey_4.png": small_png(4, X % 16),
        "fax.tif": encode(rgb.convert("1"), "TIFF", compression="group4"),
    }
    segment = b"\xff\xe1" + struct.pack(">H", len(DAMAGED_EXIF) + 2) + DAMAGED_EXIF
    files["damaged_exif.jpg"] = files["rgb.jpg"][:2] + segment + files["rgb.jpg"][2:]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        for file_format in ("JPEG", "PNG", "WEBP", "AVIF"):
            files[f"turned_{orientation}.{file_format.lower()}"] = encode(rgb, file_format, exif=exif)
        for compression in ("raw", "tiff_lzw"):
            turned = encode(rgb, "TIFF", tiffinfo={ORIENTATION: orientation}, compression=compression)
            files[f"turned_{orientation}.{compression}.tif"] = turned
    return files


def unreadable() -> dict[str, tuple[bytes, str]]:
    """Files that are refused, by name, each with a pattern of the reason."""
    rgb = Image.fromarray(RAMP)
    whole = {kind: encode(rgb, kind) for kind in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP")}
    head = struct.pack(">IIBBBBB", 70_000, 70_000, 8, 2, 0, 0, 0)
    wide = struct.pack(">IIBBBBB", 13_300, 13_300, 8, 2, 0, 0, 0)
    palette = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 3, 0, 0, 0)
    signature, lossless = whole["PNG"][:8], encode(rgb, "WEBP", lossless=True)
    animated = encode(rgb, "WEBP", save_all=True, append_images=[rgb.convert("L").convert("RGB")])
    canvas = 2 * struct.pack("<I", 9_000 - 1)[:3]
    progressive = encode(rgb, "JPEG", progressive=True)
    scans = progressive[progressive.index(b"\xff\xda") : -2]
    lzw = encode(rgb, "TIFF", compression="tiff_lzw")
    size, large = struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 9_000, 9_000)
    return {
        **{f"cut.{kind.lower()}": (content[: len(content) * 2 // 3], "") for kind, content in whole.items()},
        **{f"head.{kind.lower()}": (content[:20], "") for kind, content in whole.items()},
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"no image", "known format"),
        "page.jpg": (b"<!DOCTYPE html><html>404</html>", "HTML"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "XML"),
        "photo.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        "film.jpg": (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2", "film"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        "document.jpg": (b"%PDF-1.7\n", "PDF"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        "archive.jpg": (b"PK\x03\x04" + b"\0" * 40, "ZIP"),
        "icon.png": (encode(rgb, "ICO"), "known format"),
        "jpeg2000.jpg": (encode(rgb, "JPEG2000"), "JPEG 2000"),
        "portable.jpg": (encode(rgb, "PPM"), "known format"),
        "floats.tif": (encode(Image.fromarray(DEEP[:, :, 0].astype(np.float32)), "TIFF"), "floating-point"),
        "integers.tif": (encode(Image.fromarray(DEEP[:, :, 0].astype(np.int32)), "TIFF"), "32 bits"),
        **{name: (content, "misreads") for name, content in misread().items()},
        "exif.png": (whole["PNG"][:33] + chunk(b"eXIf", DAMAGED_EXIF[6:]) + whole["PNG"][33:], ""),
        "exif.webp": (with_exif(lossless, DAMAGED_EXIF), ""),
        "checksum.png": (whole["PNG"][:60] + bytes([whole["PNG"][60] ^ 1]) + whole["PNG"][61:], ""),
        "no_palette.png": (signature + chunk(b"IHDR", palette) + whole["PNG"][33:], ""),
        "giant.png": (signature + chunk(b"IHDR", head) + whole["PNG"][33:], "pixels"),
        "large.png": (signature + chunk(b"IHDR", wide) + whole["PNG"][33:], "13300 x 13300 pixels"),
        "long.gif": (
            whole["GIF"][:6] + struct.pack("<HH", 60_000, 2_000) + whole["GIF"][10:],
            "60000 x 2000",
        ),
        "large.webp": (animated[:24] + canvas + animated[30:], "9000 x 9000 pixels; at most 50,000,000"),
        "scans.jpg": (progressive[:-2].replace(size, large) + scans * 60 + b"\xff\xd9", r"\d+ scans"),
        "damaged.tif": (lzw[:40] + b"\xff" * 40 + lzw[80:], ""),
        "samples.tif": (
            lzw.replace(b"\x15\x01\x03\0\x01\0\0\0\x03\0", b"\x15\x01\x03\0\x01\0\0\0\x3f\0"),
            "",
        ),
        "loop.tif": (b"II*\0\x08\0\0\0\x01\0\0\x01\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0", ""),
    }


def with_exif(webp: bytes, exif: bytes) -> bytes:
    """A lossless WebP file with a chunk of EXIF."""
    size = struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3]
    chunks = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + size + webp[12:]
    chunks += b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
