"""Decode damaged image files with the one reader, and count what happens.

    python -m benchmarks.mutated_images --count 100000 --seed 0

Small files of every format that is read are damaged: bytes are flipped, blocks cut, doubled, moved or
overwritten, numbers replaced by extreme ones, heads exchanged between formats; EXIF, palettes and
compressed data damaged with their checksums made good, so that the damage reaches the decoders. Every
file must be decoded or refused with ``ImageFileError``. A process of its own decodes, so that a crash or a
hang of a decoder is noticed and counted; each damaged file depends on the seed and its number alone.
"""

import argparse
import multiprocessing
import os
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import AvifImagePlugin, Image

from pipeline.data import images
from pipeline.data.images import ImageFileError

CPU_SECONDS, SECONDS = 20, 300
"""A file that takes more CPU time, or more time at all where other programs are busy, counts as hung."""
REPORTED = 500
"""Number of files between two reports of the process that decodes."""
PROGRAMS = ("gs", "gswin64c", "djpeg", "cjpeg", "convert", "magick", "xdg-open")
"""Programs that Pillow knows; each is replaced by one that records its call."""
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")
"""Events that Python raises before a program is started."""
EXTREME = (0, 1, 2, 0x7F, 0x80, 0xFF, 9_999, 13_300, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


@dataclass
class Outcome:
    """What became of the damaged files."""

    counts: Counter[str] = field(default_factory=Counter)
    """Number of files that were ``decoded``, ``refused``, ``escaped``, ``hung`` or ``crashed``."""
    failures: list[str] = field(default_factory=list)
    """Number, original and error of each file that was neither decoded nor refused."""
    peak_bytes: int = 0
    """Greatest resident memory of the process that decoded."""
    slowest_seconds: float = 0
    """CPU time of the file that took longest."""
    programs: list[str] = field(default_factory=list)
    """Programs that were started."""


def main() -> None:
    """Print the counts, and end with status 1 unless every file was decoded or refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="damaged files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save", type=Path, help="folder for the files that were neither decoded nor refused"
    )
    arguments = parser.parse_args()
    start = time.perf_counter()
    outcome = run(arguments.count, arguments.seed)
    for failure in outcome.failures:
        print(failure)
        if arguments.save:
            number = int(failure.split()[0])
            arguments.save.mkdir(parents=True, exist_ok=True)
            (arguments.save / f"{number}").write_bytes(damaged(originals(), arguments.seed, number)[1])
    print(
        f"{arguments.count:,} files in {time.perf_counter() - start:.0f} s: "
        + ", ".join(f"{name} {outcome.counts[name]:,}" for name in ("decoded", "refused"))
        + f", escaped {outcome.counts['escaped']}, hung {outcome.counts['hung']}, "
        f"crashed {outcome.counts['crashed']}; peak {outcome.peak_bytes / 1e6:.0f} MB, slowest "
        f"{outcome.slowest_seconds:.2f} s of CPU, programs started: {len(outcome.programs)}"
    )
    raise SystemExit(bool(outcome.failures or outcome.programs))


def run(count: int, seed: int) -> Outcome:
    """Decode the damaged files with the numbers below ``count``."""
    outcome, first, files = Outcome(), 0, originals()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record")
        for name in PROGRAMS:
            Path(folder, name).write_text(f"#!/bin/sh\necho {name} >> '{record}'\n")
            Path(folder, name).chmod(0o755)
        while first < count:
            number = context.Value("q", first)
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=_decode_all, args=(files, folder, seed, first, count, number, writer)
            )
            process.start()
            writer.close()
            fate = _watch(reader, process, number, outcome)
            first = number.value + 1
            if fate:
                # The counts since the last report of the process are lost with it.
                outcome.counts[fate] += 1
                outcome.failures.append(f"{number.value} {fate} (exit status {process.exitcode})")
        if record.exists():
            outcome.programs += record.read_text().split()
    return outcome


def _watch(reader: Connection, process: Any, number: Any, outcome: Outcome) -> str | None:
    """Collect the reports of a process until it ends; return how it failed, if it did."""
    usage = psutil.Process(process.pid)
    last, since, busy, spent = number.value, time.monotonic(), 0.0, 0.0
    while True:
        try:
            if reader.poll(0.2):
                report = reader.recv()
                outcome.counts.update(report["counts"])
                outcome.failures += report["failures"]
                outcome.programs += report["programs"]
                outcome.peak_bytes = max(outcome.peak_bytes, report["peak_bytes"])
                outcome.slowest_seconds = max(outcome.slowest_seconds, report["slowest_seconds"])
                if report["end"]:
                    process.join()
                    return None
                continue
        except EOFError:
            process.join()
            return "crashed"
        with suppress(psutil.NoSuchProcess):
            spent = usage.cpu_times().user
            if number.value != last:
                last, since, busy = number.value, time.monotonic(), spent
        if spent - busy > CPU_SECONDS or time.monotonic() - since > SECONDS:
            process.kill()
            process.join()
            return "hung"


def _decode_all(
    files: dict[str, bytes], folder: str, seed: int, first: int, count: int, number: Any, writer: Connection
) -> None:
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # threads cost more than such small images
    programs: list[str] = []
    sys.addaudithook(lambda event, _: programs.append(event) if event.startswith(STARTS) else None)
    counts, failures, slowest = Counter[str](), list[str](), 0.0
    for index in range(first, count):
        number.value = index
        name, content = damaged(files, seed, index)
        start = time.process_time()
        try:
            assert images.decode(content).mode == "RGB"
            images.decode(images.reduce(content, 8))
            counts["decoded"] += 1
        except ImageFileError as error:
            counts["refused"] += 1
            if len(str(error).splitlines()) != 1:
                failures.append(f"{index} {name}: a reason of several lines: {error!r}")
        except BaseException as error:
            counts["escaped"] += 1
            failures.append(f"{index} {name}: {type(error).__name__}: {error}")
        slowest = max(slowest, time.process_time() - start)
        if index % REPORTED == 0 or index == count - 1 or slowest > 1:
            report = {
                "counts": counts,
                "failures": failures,
                "programs": programs,
                "peak_bytes": _peak_bytes(),
                "slowest_seconds": slowest,
                "end": index == count - 1,
            }
            writer.send(report)
            for reported in (counts, failures, programs):
                reported.clear()
            slowest = 0.0


def _peak_bytes() -> int:
    # Unlike `resource.getrusage`, without the memory of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024


def originals() -> dict[str, bytes]:
    """Return small sound files of every format that is read, by name."""
    side = np.arange(24)
    ramp = np.stack(np.broadcast_arrays(side * 10, side[:, None] * 10, side[::-1] * 9), axis=-1)
    rgb = Image.fromarray(ramp.astype(np.uint8))
    grey, palette, other = rgb.convert("L"), rgb.quantize(32), rgb.transpose(Image.Transpose.ROTATE_90)
    deep = Image.fromarray((ramp[:, :, 0] * 250).astype(np.uint16))
    rgba = rgb.copy()
    rgba.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9003: "2020:01:01 00:00:00", 0x829A: (1, 100)}
    frames: dict[str, Any] = {"save_all": True, "append_images": [other]}
    kinds: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("baseline", rgb, "JPEG", {}),
        ("progressive", rgb, "JPEG", {"progressive": True}),
        ("grey", grey, "JPEG", {}),
        ("exif", rgb, "JPEG", {"exif": exif}),
        ("cmyk", rgb.convert("CMYK"), "JPEG", {}),
        ("restarts", rgb, "JPEG", {"restart_marker_blocks": 1, "comment": b"comment"}),
        *((mode, rgba.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "RGB", "RGBA")),
        ("palette", palette, "PNG", {}),
        ("palette with alpha", palette, "PNG", {"transparency": bytes(range(0, 256, 8))}),
        ("key", rgb, "PNG", {"transparency": (10, 10, 9)}),
        ("16 bits", deep, "PNG", {}),
        ("exif", rgb, "PNG", {"exif": exif, "dpi": (72, 72), "icc_profile": b"profile" * 9}),
        ("animated", rgb, "PNG", frames),
        ("lossy", rgb, "WEBP", {}),
        ("lossless", rgb, "WEBP", {"lossless": True}),
        ("alpha", rgba, "WEBP", {}),
        ("animated", rgb, "WEBP", frames),
        ("exif", rgb, "WEBP", {"exif": exif}),
        ("plain", rgb, "AVIF", {"speed": 10}),
        ("alpha", rgba, "AVIF", {"speed": 10}),
        ("exif", rgb, "AVIF", {"speed": 10, "exif": exif}),
        ("animated", rgb, "AVIF", {"speed": 10, **frames}),
        ("plain", palette, "GIF", {}),
        ("key", palette, "GIF", {"transparency": 3}),
        ("animated", palette, "GIF", {"save_all": True, "append_images": [other.quantize(32)]}),
        *((name, rgb, "TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "packbits", "jpeg")),
        *((name, rgb, "TIFF", {"compression": name}) for name in ("tiff_adobe_deflate", "zstd", "lzma")),
        *((name, rgb.convert("1"), "TIFF", {"compression": name}) for name in ("group3", "group4")),
        *((mode, rgb.convert(mode), "TIFF", {}) for mode in ("CMYK", "YCbCr", "RGBA", "P")),
        ("16 bits", deep, "TIFF", {}),
        ("turned", rgb, "TIFF", {"tiffinfo": {0x0112: 6}, "exif": exif}),
        ("pages", rgb, "TIFF", frames),
        ("big", rgb, "TIFF", {"big_tiff": True}),
        *((mode, rgba.convert(mode), "BMP", {}) for mode in ("1", "L", "RGB", "RGBA")),
        ("palette", palette, "BMP", {}),
        ("camera", rgb, "MPO", frames),  # the last one, since it leaves settings with the frames
    ]
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, image, kind, options in kinds:
            file = Path(folder, "image")
            image.save(file, kind, **options)
            files[f"{kind} {name}"] = file.read_bytes()
    return files


def damaged(files: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """Return the damaged file of a number, with the name of its original."""
    draw = random.Random(f"{seed} {number}")
    name = draw.choice(list(files))
    content = bytearray(files[name])
    repaired = name.startswith("PNG") and draw.random() < 0.8
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if repaired and content[:8] == PNG_HEAD:
            content = _damage_png(content, draw)
        else:
            kind = draw.choice(list(DAMAGES))
            content = DAMAGES[kind](content or bytearray(1), draw, files)
    return name, bytes(content)


def _place(content: bytearray, draw: random.Random) -> int:
    """An offset: in the head of the file, where its structure is, as often as anywhere else."""
    return draw.randrange(min(len(content), draw.choice((64, 400, 10**9))) or 1)


def _flip(content: bytearray, draw: random.Random, _: Any) -> bytearray:
    for _ in range(draw.choice((1, 2, 8))):
        content[_place(content, draw)] ^= 1 << draw.randrange(8)
    return content


def _replace(content: bytearray, draw: random.Random, _: Any) -> bytearray:
    for _ in range(draw.choice((1, 4, 16))):
        content[_place(content, draw)] = draw.randrange(256)
    return content


def _write_number(content: bytearray, draw: random.Random, _: Any) -> bytearray:
    """Replace a length, a size, an offset or a tag, whatever is there."""
    width, order = draw.choice("HI"), draw.choice("<>")
    value = draw.choice(EXTREME) if draw.random() < 0.7 else draw.randrange(2**32)
    packed = struct.pack(order + width, value & (0xFFFF if width == "H" else 0xFFFFFFFF))
    at = _place(content, draw)
    content[at : at + len(packed)] = packed
    return content


def _cut(content: bytearray, draw: random.Random, _: Any) -> bytearray:
    return content[: draw.randrange(len(content) + 1)]


def _remove(content: bytearray, draw: random.Random, _: Any) -> bytearray:
    at = _place(content, draw)
    del content[at : at + draw.choice((1, 4, 30))]
    return content


def _insert(content: bytearray, draw: random.Random, _: Any) -> bytearray:
    at = _place(content, draw)
    content[at:at] = draw.randbytes(draw.choice((1, 4, 300)))
    return content


def _double(content: bytearray, draw: random.Random, _: Any) -> bytearray:
    at, length = _place(content, draw), draw.choice((4, 50, 10_000))
    content[at:at] = content[at : at + length] * draw.choice((1, 1, 20))
    return content


def _fill(content: bytearray, draw: random.Random, _: Any) -> bytearray:
    at = _place(content, draw)
    length = min(draw.choice((2, 12, 100)), len(content) - at)
    content[at : at + length] = bytes([draw.choice((0, 0xFF))]) * length
    return content


def _exchange_heads(content: bytearray, draw: random.Random, files: dict[str, bytes]) -> bytearray:
    length = draw.choice((4, 12, 33, 100))
    content[:length] = draw.choice(list(files.values()))[:length]
    return content


def _append(content: bytearray, draw: random.Random, files: dict[str, bytes]) -> bytearray:
    return content + draw.choice(list(files.values()))


def _damage_exif(content: bytearray, draw: random.Random, _: Any) -> bytearray:
    """Damage the TIFF structure inside EXIF, wherever the format keeps it."""
    at = max(content.find(head) for head in (b"Exif\0\0", b"II*\0", b"MM\0*"))
    if at < 0:
        return _flip(content, draw, _)
    for _ in range(draw.choice((1, 3, 8))):
        content[min(at + draw.randrange(120), len(content) - 1)] = draw.choice((0, 0xFF, draw.randrange(256)))
    return content


DAMAGES: dict[str, Any] = {
    "flip": _flip,
    "replace": _replace,
    "number": _write_number,
    "cut": _cut,
    "remove": _remove,
    "insert": _insert,
    "double": _double,
    "fill": _fill,
    "heads": _exchange_heads,
    "append": _append,
    "exif": _damage_exif,
}
"""Function that damages a file, by name."""


def _damage_png(content: bytearray, draw: random.Random) -> bytearray:
    """Damage, double, move or remove a chunk, with sound checksums and, in image data, sound compression."""
    chunks: list[tuple[bytes, bytearray]] = []
    at = len(PNG_HEAD)
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((bytes(content[at + 4 : at + 8]), content[at + 8 : at + 8 + length]))
        at += length + 12
    index = draw.randrange(len(chunks)) if chunks else 0
    action = draw.random()
    if action < 0.1:
        chunks[index:index] = [draw.choice(chunks)]
    elif action < 0.2:
        chunks.append(chunks.pop(index))
    elif action < 0.25:
        del chunks[index]
    elif action < 0.3:
        chunks[index] = (
            draw.choice((b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"iCCP")),
            chunks[index][1],
        )
    else:
        kind, data = chunks[index]
        packed = kind == b"IDAT" and draw.random() < 0.7
        try:
            inside = bytearray(zlib.decompress(data)) if packed else data
        except zlib.error:
            packed, inside = False, data
        change = draw.choice((_flip, _replace, _write_number, _cut, _remove, _insert, _fill))
        inside = change(inside, draw, None) if inside else bytearray(draw.randbytes(9))
        chunks[index] = (kind, bytearray(zlib.compress(inside)) if packed else inside)
    joined = bytearray(PNG_HEAD)
    for kind, data in chunks:
        joined += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return joined


if __name__ == "__main__":
    main()
