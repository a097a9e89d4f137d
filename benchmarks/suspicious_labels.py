"""How many wrong labels the search for suspicious labels finds, and how many of its finds are wrong.

    python -m benchmarks.suspicious_labels FOLDER NETWORK [--images 2000]

FOLDER has Imagewoof's `train/` with its class folders, and fast.ai's `noisy_imagewoof.csv`, whose columns
`noisy_labels_*` hold labels of which 1, 5, 25 or 50 % are wrong. NETWORK is a shipped file that names
WordNet ids, such as that of the published MobileNetV1 (`benchmarks/published_network.py` writes it). It was
not trained on any of these labels. One thread, the centred square of each image.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from pipeline import progress
from pipeline.data import images, tables
from pipeline.inspection import suspects
from pipeline.inspection.suspects import Suspects
from pipeline.onnx import inference
from pipeline.process import one_line_errors

COLUMN = "noisy_labels_{}"
SHARES = (1, 5, 25, 50)
FIRST = 25
"""Length of the top of the list that is judged by itself."""


def main() -> None:
    """Print one row of a table in Markdown per share of wrong labels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("network", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table = tables.read(arguments.folder / "noisy_imagewoof.csv", "path")
    listed = [row for _, row in table.rows if row["is_valid"] == "False"]
    order = np.random.default_rng(arguments.seed).permutation(len(listed))[: arguments.images]
    chosen = [listed[index] for index in order.tolist()]
    classes = sorted({row[COLUMN.format(0)] for row in listed})
    probabilities = _ask(arguments.network, [arguments.folder / row["path"] for row in chosen], classes)
    truth = _labels(chosen, 0, classes)
    print(
        f"n = {len(chosen):,}; the network alone is right on {(probabilities.argmax(1) == truth).mean():.1%}"
    )
    print(f"| wrong, % | wrong labels | listed | precision, % | recall, % | first {FIRST}, % | class, % |")
    print("|---|---|---|---|---|---|---|")
    for share in SHARES:
        given = _labels(chosen, share, classes)
        print(_row(share, suspects.find(probabilities, given), given, truth))


def _labels(rows: list[dict[str, str]], share: int, classes: list[str]) -> Int64[np.ndarray, " images"]:
    return np.array([classes.index(row[COLUMN.format(share)]) for row in rows])


def _ask(network: Path, files: list[Path], classes: list[str]) -> Float32[np.ndarray, "images classes"]:
    """The probabilities of some of the classes that a file names."""
    classifier = inference.open_classifier(network, threads=1)
    columns = [classifier.labels.index(name) for name in classes]

    def squares() -> Iterator[UInt8[np.ndarray, "1 side side 3"]]:
        for file in files:
            with images.opened(file) as image:
                yield inference.render(classifier, image)[None]

    with progress.bar("ask", len(files)) as bar:
        logits = []
        for answer in inference.run(classifier, squares()):
            logits.append(answer[0, columns])
            bar.update()
    return torch.from_numpy(np.stack(logits)).softmax(dim=1).numpy()


def _row(
    share: int, found: Suspects, given: Int64[np.ndarray, " images"], truth: Int64[np.ndarray, " images"]
) -> str:
    wrong = given != truth
    hits = wrong[found.images]
    right_class = (found.suggestions == truth[found.images])[hits]
    values = (hits.mean(), hits.sum() / wrong.sum(), hits[:FIRST].mean(), right_class.mean())
    return f"| {share} | {wrong.sum()} | {len(found)} | {' | '.join(f'{100 * v:.1f}' for v in values)} |"


if __name__ == "__main__":
    with one_line_errors():
        main()
