"""Do shipped files answer elsewhere as they do in Python? In the page, in Node, with other resizers.

    python -m benchmarks.shipped_elsewhere PHOTOGRAPHS [--count 20]

Takes the variants in `artifacts/onnx`; needs what `make demo` installs, and Chromium.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pipeline import paths
from pipeline.data import images
from pipeline.onnx import inference
from pipeline.onnx.inference import Classifier
from pipeline.shipping import demo, folder


def main() -> None:
    """Print, per variant, of how many photographs the answers agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", nargs="+")
    parser.add_argument("--count", type=int, default=20, help="photographs, spread evenly (%(default)s)")
    arguments = parser.parse_args()
    found = list(images.find(arguments.photographs))
    files = [
        found[index * len(found) // arguments.count] for index in range(min(arguments.count, len(found)))
    ]
    classifiers = [inference.open_classifier(file, threads=1) for file in sorted(paths.ONNX.glob("*.onnx"))]
    here = {classifier.path.stem: [_python(classifier, file) for file in files] for classifier in classifiers}
    _browser(classifiers, files, here)
    for classifier in classifiers:
        wanted = here[classifier.path.stem]
        print(f"{classifier.path.stem}: the same top-1 as in Python, of {len(files)}")
        print(f"  Node                    {_agreeing(_node(classifier, files), wanted)}")
        for name, resize in RESIZERS.items():
            answers = [_answer(classifier, resize(classifier, images.decode(file))) for file in files]
            print(f"  {name:23} {_agreeing(answers, wanted)}")


Answer = tuple[str, float]
"""The best label and its probability."""


def _python(classifier: Classifier, file: Path) -> Answer:
    [guess] = inference.predict(classifier, file, top=1).guesses
    return guess.label, guess.probability


def _answer(classifier: Classifier, image: Image.Image) -> Answer:
    [logits] = inference.run(classifier, [np.asarray(image)[None]])
    [chances] = inference.probabilities(classifier, logits)
    best = int(chances.argmax())
    return classifier.labels[best], float(chances[best])


def _box(classifier: Classifier, image: Image.Image) -> Image.Image:
    """The mean of what falls on a pixel: OpenCV's INTER_AREA, and what halving again and again tends to."""
    contract = classifier.contract
    size = (contract.size, contract.size)
    return image.resize(size, Image.Resampling.BOX, box=contract.centre_box(*image.size))


def _four_neighbours(classifier: Classifier, image: Image.Image) -> Image.Image:
    """Bilinear without antialiasing: OpenCV's INTER_LINEAR, Android's createScaledBitmap."""
    contract = classifier.contract
    box = contract.centre_box(*image.size)
    size = (contract.size, contract.size)
    return image.transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


RESIZERS = {"mean over the area": _box, "four neighbours": _four_neighbours}


def _node(classifier: Classifier, files: list[Path]) -> list[Answer]:
    """What the shipped example prints."""
    with tempfile.TemporaryDirectory() as parent:
        target = Path(parent) / "shipped"
        folder.ship(classifier, target, Path("absent"))
        (target / "node_modules").symlink_to(folder.HERE / "node_modules")
        command = ["node", str(target / "predict.mjs"), *map(str, files)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    firsts = [line.split("\t")[1].rsplit(" ", 1) for line in output.splitlines()]
    return [(label, float(percent.removesuffix("%")) / 100) for label, percent in firsts]


def _browser(classifiers: list[Classifier], files: list[Path], here: dict[str, list[Answer]]) -> None:
    answers: dict[str, list[Answer]] = {name: [] for name in here}
    first: list[float] = []
    with _page(classifiers) as page:
        start = time.perf_counter()
        page.reload()
        page.set_input_files("#file", files[0])
        page.wait_for_selector(".guesses li")
        opened = time.perf_counter() - start
        page.reload()
        page.wait_for_function("document.querySelector('.variant') && !document.querySelector('.loading')")
        for number, file in enumerate(files, start=1):
            start = time.perf_counter()
            page.set_input_files("#file", file)
            page.wait_for_selector(".guesses li")
            first.append(time.perf_counter() - start)
            page.wait_for_selector(f"body[data-timed='{number}']", timeout=120_000)
            for name in here:
                label, percent = page.locator(f"#{name} .guesses li").first.locator("span").all_inner_texts()
                answers[name].append((label, float(percent.removesuffix("%")) / 100))
        print(f"browser, of {len(files)} photographs")
        print(f"  first answer {opened:.2f} s after the page was asked for, with a photograph at once")
        print(f"  first answer after {statistics.median(first):.2f} s (median), {max(first):.2f} s (slowest)")
        for name, wanted in here.items():
            print(f"  {name:23} {_agreeing(answers[name], wanted)}; {page.inner_text(f'#{name} .time')}")


@contextmanager
def _page(classifiers: list[Classifier]) -> Iterator[Page]:
    with tempfile.TemporaryDirectory() as parent, sync_playwright() as playwright:
        demo.build(Path(parent) / "page", classifiers, {})
        with demo.server(Path(parent) / "page", 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page()
            page.goto(f"http://{demo.LOOPBACK}:{server.server_port}/")
            yield page
            browser.close()
            server.shutdown()


def _agreeing(answers: list[Answer], wanted: list[Answer]) -> str:
    same = [abs(a[1] - b[1]) for a, b in zip(answers, wanted, strict=True) if a[0] == b[0]]
    return f"{len(same)} agree, probabilities within {100 * max(same, default=0):.2f} points"


if __name__ == "__main__":
    main()
