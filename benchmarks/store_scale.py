"""Memory and speed of the label store from ten thousand images to ImageNet's number.

    python -m benchmarks.store_scale FOLDER --json store_scale.json

Makes a store of each size in FOLDER, as the stage `label` does, and reads it in random order, as a training
does. No image is rendered: pixels are a function of image and view, and the teacher is one small product of
matrices. So what is timed is the path around them. Each size and each half of it has a process of its own.
The default needs 1.1 GB on the disk, which are removed at the end.

Anonymous memory is what a process cannot give back. Pages of files that it maps count into its resident
memory, too; they belong to the cache of the system, which drops them when memory is needed.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline import files, provenance
from pipeline.data import batches
from pipeline.data.arrow import Rows
from pipeline.data.batches import Batch, Request, ViewSet
from pipeline.data.store import ImageSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import labelling, labels
from pipeline.distillation.labels import Answers, Key
from pipeline.training import compute
from pipeline.training.settings import ComputeSettings
from teachers.contract import InputContract

SPACE = ViewSpace(seed=0, crop_scale=(0.5, 1.0), crop_ratio=(0.8, 1.25))
CONTRACT = InputContract(1)
ALLOWED_BYTES = 10**10
COLD_BATCHES = 100
"""Number of batches that are read from the disk itself: the cache of the system is emptied before."""
MEGABYTE = 2**20
Seconds = dict[str, tuple[float, float]]
"""Seconds that each part took: by the clock, and of the processor. On a busy machine, only the latter say how
the work grows."""


class MadeUp(ViewSet):
    """Views of one pixel that differ from image to image and from view to view."""

    def __getitem__(self, request: Request) -> Batch:
        assert request.view is not None
        indices = np.asarray(request.indices)
        pixels = torch.from_numpy(_pixels(indices, request.view))
        answers = None if self.answers is None else torch.from_numpy(self.answers(indices, request.view))
        return Batch(pixels, torch.zeros(len(indices), dtype=torch.int64), answers)


class Product(nn.Module):
    """A teacher that costs next to nothing, with sharp answers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, classes, generator=random) * 5, requires_grad=False)

    def forward(self, x: Float[Tensor, "batch 3 1 1"]) -> Float[Tensor, "batch classes"]:
        return x.flatten(1) @ self.matrix


def main() -> None:
    """Print a table, and write all figures to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10_000, 100_000, 1_280_000], help="numbers of images"
    )
    parser.add_argument("--classes", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--views", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--top", type=int, default=50, help="0 stores all logits; default: %(default)s")
    parser.add_argument("--batch", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="file to which the figures are written, too")
    arguments = parser.parse_args()
    top = arguments.top or None
    stored = (
        2 * (2 * arguments.top + 1) if labels.is_compact(arguments.classes, top) else 2 * arguments.classes
    )
    needed = 2 * max(arguments.rows) * arguments.views * stored  # The blocks, and the store made of them.
    arguments.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(arguments.folder).free
    if needed > min(ALLOWED_BYTES, free):
        parser.error(
            f"--rows {max(arguments.rows)} needs {needed:,} bytes; allowed: {ALLOWED_BYTES:,}, free: {free:,}"
        )
    results = []
    print(
        "| images | | rows a second / a second of the processor | anonymous memory, MB: before, most | "
        "resident, most, MB |"
    )
    print("|---|---|---|---|---|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            shape = {"rows": rows, "classes": arguments.classes, "views": arguments.views, "top": top}
            work = (
                partial(_label, Path(scratch), **shape),
                partial(_read, Path(scratch), **shape, batch=arguments.batch),
            )
            for name, task in zip(("label", "read"), work, strict=True):
                result = {"phase": name, **shape, **_alone(task)}
                results.append(result)
                print(_line(result), flush=True)
    if arguments.json:
        about = {"torch": torch.__version__, "block": labelling.BLOCK, "batch": arguments.batch}
        files.write(arguments.json, json.dumps({"results": results, **about}, indent=2) + "\n")


def _line(result: dict[str, Any]) -> str:
    rates = ", ".join(
        f"{name} {rate:,.0f} / {result['rows_per_cpu_second'][name]:,.0f}"
        for name, rate in result["rows_per_second"].items()
    )
    memory = f"{result['anonymous_before_mb']:.0f}, {result['anonymous_peak_mb']:.0f}"
    return (
        f"| {result['rows']:,} | {result['phase']} | {rates} | {memory} | {result['resident_peak_mb']:.0f} |"
    )


def _alone(task: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task).result()


def _label(folder: Path, *, rows: int, classes: int, views: int, top: int | None) -> dict[str, Any]:
    """Label as the stage does, then write the store."""
    fabric, view_set = _start(), MadeUp(_images(rows, classes), SPACE, CONTRACT)
    seconds: Seconds = {}
    with _watched() as memory:
        with _timed(seconds, "compute"):
            blocks = labelling.compute(
                fabric,
                [Product(classes)],
                view_set,
                views=views,
                classes=classes,
                top=top,
                partial=folder / "partial",
                workers=0,
            )
        with _timed(seconds, "save"):
            key = Key("data", "teacher", SPACE, views, top)
            labels.save(
                folder / "labels", key, teacher="a product", engine="PyTorch", blocks=blocks, images=rows
            )
    return _result(seconds, dict.fromkeys(seconds, rows * views), memory)


def _read(
    folder: Path, *, rows: int, classes: int, views: int, top: int | None, batch: int
) -> dict[str, Any]:
    """Check the store as a stage does that trains on it, and read a random epoch."""
    fabric, arrays = _start(), sorted((folder / "labels").glob("*.npy"))
    time.sleep(provenance.SETTLED_SECONDS)
    seconds: Seconds = {}
    counts: dict[str, int] = {}
    with _watched() as memory:
        for name in ("check", "check_again"):
            with _timed(seconds, name):
                labels.load(folder / "labels", data_sha256="data", teacher_sha256="teacher", space=SPACE)
            counts[name] = rows * views
        for array in arrays:
            with array.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        answers = _map(folder / "labels", classes)
        order = batches.shuffled(rows, 0, 0)
        requests = [order[first : first + batch] for first in range(0, rows, batch)]
        with _timed(seconds, "cold"):
            for indices in requests[:COLD_BATCHES]:
                answers.at(indices, 0)
        counts["cold"] = sum(map(len, requests[:COLD_BATCHES]))
        with _timed(seconds, "epoch"):
            for indices in requests:
                answers.at(indices, 0)
        counts["epoch"] = rows
        view_set = MadeUp(_images(rows, classes), SPACE, CONTRACT, answers.at)
        with _timed(seconds, "loader"):
            shown = [Request(indices, views - 1, 1) for indices in requests]
            for loaded in batches.load(fabric.device, view_set, shown, workers=0):
                assert loaded.answers is not None
        counts["loader"] = rows
    _check(answers, order[:batch], classes, views - 1, top)
    return _result(seconds, counts, memory)


def _map(folder: Path, classes: int) -> Answers:
    """The answers without a look at the checksums, which would fill the cache."""
    top_classes = folder / labels.TOP_CLASSES
    return Answers(
        np.load(folder / labels.VALUES, mmap_mode="r"),
        np.load(top_classes, mmap_mode="r") if top_classes.exists() else None,
        classes,
    )


def _check(answers: Answers, indices: np.ndarray, classes: int, view: int, top: int | None) -> None:
    """Check that the rows are those of the images."""
    shown = CONTRACT.normalise(torch.from_numpy(_pixels(indices, view)))
    logits = Product(classes)(shown).to(torch.float16).numpy()
    expected = labels.compact(logits[:, None], top).at(np.arange(len(indices)), 0)
    same = float((answers.at(indices, view) == expected).all(axis=1).mean())
    # The product of another batch may round differently.
    assert same > 0.9, f"{same:.1%} of the rows are those of their images"


def _start() -> Fabric:
    return compute.start(ComputeSettings(accelerator="cpu", threads=1))


def _images(rows: int, classes: int) -> ImageSet:
    table = Rows(pa.table({"label": np.zeros(rows, np.int64)}))
    return ImageSet(table, tuple(map(str, range(classes))))


def _pixels(indices: np.ndarray, view: int) -> UInt8[np.ndarray, "batch 1 1 3"]:
    mixed = (indices.astype(np.uint64) * np.uint64(2654435761) + np.uint64(40503 * view)) % np.uint64(2**32)
    return mixed.astype("<u4").view(np.uint8).reshape(-1, 1, 1, 4)[..., :3].copy()


def _result(seconds: Seconds, counts: dict[str, int], memory: dict[str, float]) -> dict[str, Any]:
    def rates(place: int) -> dict[str, float]:
        return {name: counts[name] / both[place] for name, both in seconds.items()}

    return {"rows_per_second": rates(0), "rows_per_cpu_second": rates(1), **memory}


@contextmanager
def _timed(seconds: Seconds, name: str) -> Iterator[None]:
    began = time.perf_counter(), time.process_time()
    yield
    seconds[name] = time.perf_counter() - began[0], time.process_time() - began[1]


@contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """Yield a dictionary that has the memory of this process in MB at the end of the block."""
    memory: dict[str, float] = {"anonymous_before_mb": _status()["RssAnon"], "anonymous_peak_mb": 0.0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            memory["anonymous_peak_mb"] = max(memory["anonymous_peak_mb"], _status()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        ended.set()
        watcher.join()
        memory["resident_peak_mb"] = _status()["VmHWM"]


def _status() -> dict[str, float]:
    """Lines of ``/proc/self/status`` that are sizes, in MB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) * 1024 / MEGABYTE for line in lines if line[-1] == "kB"}


if __name__ == "__main__":
    main()
