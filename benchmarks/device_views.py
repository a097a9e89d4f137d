"""Views a second: rendered on the device, and in worker processes; with the difference of their pixels.

    python -m benchmarks.device_views [FOLDER] [--json]

Made-up grey images of 28 pixels (PNG) and coloured ones of 533 x 400 (JPEG), and those in FOLDER (class
folders), become batches of 96 and 192 pixels, with crops and flips, then with colours and mixtures, too.
Rates count from the moment at which nothing is rendered ahead. On a CPU the rate of the device only shows
that it works. `--answers` also asks EfficientNet-Lite0 about both renderings, at 128 pixels.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lightning_fabric import Fabric
from PIL import Image

from pipeline.data import batches, sources, splits, store, writing
from pipeline.data.arrow import Rows
from pipeline.data.batches import Batch, Request, ViewSet
from pipeline.data.rendering import pictures, renderers
from pipeline.data.rendering.renderers import Renderer
from pipeline.data.store import ImageSet
from pipeline.data.views import ViewSpace
from pipeline.measurement import machine
from pipeline.training import compute
from pipeline.training.settings import ComputeSettings
from teachers.contract import InputContract
from teachers.sources import SOURCES

SIZES = (96, 192)
PLAIN = ViewSpace(seed=0, crop_scale=(0.5, 1.0), crop_ratio=(0.8, 1.25))
SPACES = {"crops, flips": PLAIN, "all": PLAIN.model_copy(update={"colour": 0.4, "mixup": 0.3, "cutmix": 0.3})}
RENDERERS: tuple[Renderer, Renderer] = ("workers", "device")
COMPARED = 4
"""Number of batches whose pixels are compared."""


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=1000, help="at most; default: %(default)s")
    parser.add_argument("--batch", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="per rate; default: %(default)s")
    parser.add_argument("--accelerator", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--answers", action="store_true", help="compare a teacher's answers, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    fabric = compute.start(ComputeSettings(accelerator=arguments.accelerator, threads=arguments.threads))
    with tempfile.TemporaryDirectory() as scratch:
        rows, answers = [], {}
        for name, images in _image_sets(arguments, Path(scratch)):
            rows += _measure(fabric, name, images, arguments)
            if arguments.answers:
                answers[name] = _answers(fabric, images, arguments)
    device = "CPU" if fabric.device.type == "cpu" else torch.cuda.get_device_name(fabric.device)
    if arguments.json:
        found = {"device": device, "machine": machine.describe(), "rows": rows, "answers": answers}
        print(json.dumps(found, indent=2))
        return
    print(f"{device}, {arguments.workers} workers, batches of {arguments.batch}\n")
    print("| images | views | px | workers /s | device /s | decoded in s | equal values | within 1 | most |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        rates = f"{row['workers']:,.0f} | {row['device']:,.0f} | {row['decoded_s']:.1f}"
        apart = f"{row['equal']:.4%} | {row['within_1']:.4%} | {row['largest']}"
        print(f"| {row['images']} | {row['views']} | {row['size']} | {rates} | {apart} |")
    for name, values in answers.items():
        print(f"answers to {name}: " + ", ".join(f"{key} {value:.6g}" for key, value in values.items()))


def _image_sets(arguments: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, ImageSet]]:
    yield "28 x 28 grey", _made_up(arguments.images, 28, 28, grey=True)
    yield "533 x 400", _made_up(min(arguments.images, 400), 533, 400, grey=False)
    if arguments.folder is not None:
        listing = sources.read("folder", arguments.folder)
        made = splits.assign(listing.labelled, train=arguments.images, val=100, test=100, seed=0, anew=True)
        writing.write(scratch / "data", listing, made, {"license": "unknown"})
        yield arguments.folder.name, store.read(scratch / "data", "train")


def _made_up(count: int, width: int, height: int, *, grey: bool) -> ImageSet:
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        coarse = random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(image, float) + random.normal(0, 8, (height, width, 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        encoded = io.BytesIO()
        if grey:
            image.convert("L").save(encoded, "PNG")
        else:
            image.save(encoded, "JPEG", quality=90)
        rows.append(
            {
                "image": {"bytes": encoded.getvalue(), "path": None},
                "label": number % 10,
                "sha256": f"{int(random.integers(2**63)):016x}",
                "source": str(number),
            }
        )
    return ImageSet(Rows(pa.Table.from_pylist(rows)), tuple("0123456789"))


def _measure(
    fabric: Fabric, name: str, images: ImageSet, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    renderers.prefer("device")
    began = time.perf_counter()
    held = pictures.choose(fabric.device, images, len(images), arguments.workers)
    decoded = time.perf_counter() - began
    if held is None:
        raise SystemExit(f"{name}: the images do not fit on the device; use fewer (--images)")
    for views, space in SPACES.items():
        for size in SIZES:
            dataset = ViewSet(images, space, InputContract(size))
            row = {"images": name, "views": views, "size": size, "decoded_s": decoded}
            row |= {renderer: _rate(fabric, renderer, dataset, arguments) for renderer in RENDERERS}
            yield row | _pixels(fabric, dataset, arguments)


def _batches(
    fabric: Fabric, renderer: Renderer, dataset: ViewSet, batch: int, workers: int
) -> Iterator[Batch]:
    """Batches without an end for practical purposes, each epoch of another view."""
    renderers.prefer(renderer)
    requests: list[Request] = []
    for view in range(1000):
        order = batches.shuffled(len(dataset), view, 0)
        requests += batches.sequential(order, view, dataset.contract.size, batch)
    return iter(batches.load(fabric.device, dataset, requests, workers))


def _rate(fabric: Fabric, renderer: Renderer, dataset: ViewSet, arguments: argparse.Namespace) -> float:
    """Views per second."""
    stream = _batches(fabric, renderer, dataset, arguments.batch, arguments.workers)
    for _ in islice(stream, 4 * arguments.workers + 2):  # what was rendered ahead while nothing was counted
        pass
    _wait(fabric)
    views, began = 0, time.perf_counter()
    while time.perf_counter() - began < arguments.seconds:
        views += len(next(stream).images)
        _wait(fabric)
    return views / (time.perf_counter() - began)


def _pixels(fabric: Fabric, dataset: ViewSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """Shares of the values that are equal, and that differ by 1 of 255 at most; the largest difference."""
    one, other = (
        [batch.images.cpu().int() for batch in _first(fabric, renderer, dataset, arguments)]
        for renderer in RENDERERS
    )
    apart = torch.cat([(a - b).abs().flatten() for a, b in zip(one, other, strict=True)])
    return {
        "equal": (apart == 0).double().mean().item(),
        "within_1": (apart <= 1).double().mean().item(),
        "largest": int(apart.max()),
    }


@torch.no_grad()
def _answers(fabric: Fabric, images: ImageSet, arguments: argparse.Namespace) -> dict[str, float]:
    """How far the answers of a teacher to both renderings lie apart, as a store keeps them."""
    teacher = SOURCES["efficientnet_lite"]("efficientnet_lite0", "default")
    assert teacher.input is not None
    contract = InputContract(128, teacher.input.mean, teacher.input.std, teacher.input.interpolation)
    module = fabric.to_device(teacher.module.eval())
    one, other = (
        torch.cat(
            [
                module(contract.normalise(batch.images)).half().float().cpu()
                for batch in _first(fabric, renderer, ViewSet(images, SPACES["all"], contract), arguments)
            ]
        )
        for renderer in RENDERERS
    )
    return {
        "largest difference": (one - other).abs().max().item(),
        "standard deviation": one.std().item(),
        "equal top-1": (one.argmax(1) == other.argmax(1)).double().mean().item(),
    }


def _first(
    fabric: Fabric, renderer: Renderer, dataset: ViewSet, arguments: argparse.Namespace
) -> Iterator[Batch]:
    return islice(_batches(fabric, renderer, dataset, arguments.batch, arguments.workers), COMPARED)


def _wait(fabric: Fabric) -> None:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)


if __name__ == "__main__":
    main()
