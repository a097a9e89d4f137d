"""Does the form that takes whole photographs answer as Pillow's way does, and what does it cost?

    python -m benchmarks.any_size PHOTOGRAPHS... [--count 1000] [--folder artifacts/onnx] [--speed]

Ships every variant of the folder into a temporary place, and runs what was shipped: `predict.py`,
`predict.mjs` in Node, `browser.mjs` in Chromium, and `predict.cpp`, compiled with g++. Node and Chromium need
`npm ci --prefix pipeline/shipping`; C++ needs the headers of ONNX Runtime and of libjpeg (see `compile`).
The yardstick is `python -m pipeline predict`, where Pillow resizes. `--speed` measures times alone.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from playwright.sync_api import sync_playwright

from pipeline.data import images
from pipeline.onnx import inference
from pipeline.onnx.inference import Classifier
from pipeline.onnx.sessions import open_session
from pipeline.shipping import demo, folder, photographs

BROWSER = """<script type="importmap">{"imports": {"onnxruntime-web": "./ort.wasm.min.mjs"}}</script>
<input type="file"><script type="module">
import * as ort from "onnxruntime-web";
ort.env.wasm.numThreads = 1;
const { classify } = await import("./browser.mjs");
window.answer = async () => classify(document.querySelector("input").files[0]);
window.ready = true;
</script>"""
"""A page around the shipped browser.mjs."""
INCLUDE = ("-isystem/usr/include/onnxruntime", "-isystem/usr/include/onnxruntime/core/session")
"""Folders in which Debian has the headers of ONNX Runtime."""
SIZES = ((400, 533), (533, 400), (1200, 1600), (3000, 4000))
"""Heights and widths whose times are measured."""

Answer = dict[str, float]
"""Probability by label; the first is the most probable one."""


def main() -> None:
    """Print, per variant and language, of how many photographs the answers agree, or the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", nargs="*")
    parser.add_argument("--count", type=int, default=1000, help="photographs, spread evenly (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/onnx"), help="(%(default)s)")
    parser.add_argument("--speed", action="store_true", help="measure times alone")
    arguments = parser.parse_args()
    classifiers = [inference.open_classifier(file, threads=1) for file in sorted(arguments.folder.glob("*"))]
    if arguments.speed:
        for classifier in classifiers:
            speed(classifier)
        return
    found = list(images.find(arguments.photographs))
    count = min(arguments.count, len(found))
    files = [found[index * len(found) // count].absolute() for index in range(count)]
    sizes = Counter(images.decode(file).size for file in files)
    print(f"{count} photographs of {len(sizes)} sizes, from {min(sizes)} to {max(sizes)}")
    for classifier in classifiers:
        wanted = [yardstick(classifier, file) for file in files]
        with tempfile.TemporaryDirectory() as parent:
            target = Path(parent) / "shipped"
            folder.ship(classifier, target, None)
            for language, run in LANGUAGES.items():
                print(f"{classifier.path.stem:15} {language:9} {agreement(run(target, files), wanted)}")


def yardstick(classifier: Classifier, file: Path) -> Answer:
    """What the variant answers where Pillow resizes."""
    guesses = inference.predict(classifier, file, top=len(classifier.labels)).guesses
    return {guess.label: guess.probability for guess in guesses}


def printed(command: Sequence[Any], files: Sequence[Path]) -> list[Answer]:
    """The answers that a shipped program prints: three labels per line, with percentages.

    The answer to a photograph that it cannot read is empty.
    """
    done = subprocess.run(
        [*command, *files], cwd=command[-1].parent, capture_output=True, text=True, check=False
    )
    print(done.stderr, end="", file=sys.stderr)
    answers = {}
    for line in done.stdout.splitlines():
        file, *guesses = line.split("\t")
        pairs = [guess.rsplit(" ", 1) for guess in guesses]
        answers[Path(file)] = {label: float(percent.removesuffix("%")) / 100 for label, percent in pairs}
    return [answers.get(file, {}) for file in files]


def python(target: Path, files: Sequence[Path]) -> list[Answer]:
    """What `predict.py` prints."""
    return printed([sys.executable, target / "predict.py"], files)


def node(target: Path, files: Sequence[Path]) -> list[Answer]:
    """What `predict.mjs` prints in Node."""
    (target / "node_modules").symlink_to((folder.HERE / "node_modules").resolve())
    return printed(["node", target / "predict.mjs"], files)


def compile(target: Path, *options: str) -> Path:
    """Compile the shipped C++ program against the library in ONNX Runtime's Python package.

    Debian has its headers in `libonnxruntime-dev`; elsewhere, `CPATH` names the folder that contains them.
    """
    [library] = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (target / name).symlink_to(library)
    command = ["g++", "-std=c++17", "-O2", *options, *INCLUDE, "predict.cpp", "-o", "predict"]
    command += ["-L.", "-lonnxruntime", "-ljpeg", f"-Wl,-rpath,{target}"]
    subprocess.run(command, cwd=target, check=True)
    return target / "predict"


def cpp(target: Path, files: Sequence[Path]) -> list[Answer]:
    """What `predict.cpp` prints."""
    return printed([compile(target)], files)


def chromium(target: Path, files: Sequence[Path]) -> list[Answer]:
    """What `browser.mjs` returns in Chromium."""
    for name in demo.RUNTIME:
        shutil.copyfile(demo.RUNTIME_FOLDER / name, target / name)
    (target / "index.html").write_text(BROWSER)
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler.extensions_map = {
        **handler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }
    answers = []
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(target))) as server,
        sync_playwright() as playwright,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_function("window.ready")
        for file in files:
            page.set_input_files("input", file)
            answers.append(dict(page.evaluate("answer()")))
        browser.close()
        server.shutdown()
    return answers


LANGUAGES: dict[str, Callable[[Path, Sequence[Path]], list[Answer]]] = {
    "Python": python,
    "C++": cpp,
    "Node": node,
    "Chromium": chromium,
}


def agreement(answers: Sequence[Answer], wanted: Sequence[Answer]) -> str:
    """How many best labels agree, and how far the printed probabilities differ."""
    pairs = list(zip(answers, wanted, strict=True))
    same = sum(next(iter(answer), None) == next(iter(right)) for answer, right in pairs)
    apart = np.array(
        [max(abs(answer[label] - right[label]) for label in answer) for answer, right in pairs if answer]
    )
    return (
        f"{same} of {len(pairs)} ({same / len(pairs):.1%}) have the same top-1; probabilities differ by at "
        f"most {100 * apart.max():.2f} points (99 of 100: {100 * np.quantile(apart, 0.99):.2f}); more than "
        f"half a point: {int((apart > 0.005).sum())}"
    )


def speed(classifier: Classifier, rounds: int = 100) -> None:
    """Print the medians of interleaved runs: the network on ready pixels, Pillow, and the photograph form.

    Sessions have one thread, the calling one, so that its processor time (``cpu``) leaves out what other
    programs take from the clock (``ms``).
    """
    form = open_session(photographs.build(classifier).content)
    random = np.random.default_rng(0)
    for height, width in SIZES:
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        square = inference.render(classifier, image)[None]
        runs: dict[str, Callable[[], object]] = {
            "network": lambda square=square: classifier.session.run(["logits"], {"images": square}),
            "Pillow": lambda image=image: inference.render(classifier, image),
            "photograph": lambda pixels=pixels: form.run(["probabilities"], {"image": pixels[None]}),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(rounds if height < 1000 else rounds // 5):
            for name, run in runs.items():
                start = time.perf_counter(), time.thread_time()
                run()
                times[name].append((time.perf_counter() - start[0], time.thread_time() - start[1]))
        milliseconds = {name: 1000 * np.array(values) for name, values in times.items()}
        milliseconds["added"] = milliseconds["photograph"] - milliseconds["network"]
        print(f"{classifier.path.stem}, {height} x {width}")
        for name, values in milliseconds.items():
            clock, cpu = np.median(values, axis=0)
            print(f"  {name:12} {clock:6.2f} ms, {cpu:6.2f} cpu")


if __name__ == "__main__":
    main()
