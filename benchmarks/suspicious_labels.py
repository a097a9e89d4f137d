"""How many wrong labels the search for suspicious labels finds, and how many of its finds are wrong.

    python -m benchmarks.suspicious_labels FOLDER NETWORK [--images 2000]

FOLDER has Imagewoof's `train/` with its class folders, and fast.ai's `noisy_imagewoof.csv`, whose columns
`noisy_labels_*` hold labels of which 0, 1, 5, 25 or 50 % are wrong. NETWORK is a shipped file that names
WordNet ids, such as that of the published MobileNetV1 (`benchmarks/published_network.py` writes it). One
thread, the centred square of each image.

Two kinds of teacher answer: the network as it is, which saw none of the wrong labels; and a linear layer on
its logits that is trained on the wrong labels themselves, for a number of epochs.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import nn

from pipeline.data import images, tables
from pipeline.inspection import suspects
from pipeline.inspection.suspects import Suspects
from pipeline.onnx import inference
from pipeline.running import progress
from pipeline.running.process import one_line_errors

COLUMN = "noisy_labels_{}"
SHARES = (0, 1, 5, 25, 50)
EPOCHS = (1, 3, 30)
FIRST = 25
"""Length of the top of the list that is judged by itself."""
HEADER = ("teacher", "wrong, %", "wrong", "listed", "precision, %", "recall, %", f"first {FIRST}, %")


def main() -> None:
    """Print one row of a table in Markdown per teacher and share of wrong labels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("network", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = tables.read(arguments.folder / "noisy_imagewoof.csv", "path")
    listed = [row for _, row in table.rows if row["is_valid"] == "False"]
    order = np.random.default_rng(arguments.seed).permutation(len(listed))[: arguments.images]
    chosen = [listed[index] for index in order.tolist()]
    classes = sorted({row[COLUMN.format(0)] for row in listed})
    network = inference.open_classifier(arguments.network, threads=1)
    logits = _ask(network, [arguments.folder / row["path"] for row in chosen])
    as_it_is = torch.from_numpy(logits[:, [network.labels.index(name) for name in classes]])
    truth = _labels(chosen, 0, classes)
    print(f"{len(chosen):,} images; as it is, {(as_it_is.argmax(1).numpy() == truth).mean():.1%} are right")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for share in SHARES:
        found = suspects.find(as_it_is.softmax(dim=1).numpy(), _labels(chosen, share, classes))
        print(_row("as it is", share, found, _labels(chosen, share, classes), truth))
    for epochs in EPOCHS:
        for share in SHARES[2:]:
            given = _labels(chosen, share, classes)
            found = suspects.find(_adapted(logits, given, epochs, arguments.seed), given)
            print(_row(f"trained, epochs: {epochs}", share, found, given, truth))


def _labels(rows: list[dict[str, str]], share: int, classes: list[str]) -> Int64[np.ndarray, " images"]:
    return np.array([classes.index(row[COLUMN.format(share)]) for row in rows])


def _ask(network: inference.Classifier, files: list[Path]) -> Float32[np.ndarray, "images outputs"]:
    def squares() -> Iterator[UInt8[np.ndarray, "1 side side 3"]]:
        for file in files:
            with images.opened(file) as image:
                yield inference.render(network, image)[None]

    with progress.bar("ask", len(files)) as bar:
        logits = []
        for answer in inference.run(network, squares()):
            logits.append(answer[0])
            bar.update()
    return np.stack(logits)


def _adapted(
    logits: Float32[np.ndarray, "images outputs"], given: Int64[np.ndarray, " images"], epochs: int, seed: int
) -> Float32[np.ndarray, "images classes"]:
    """The probabilities of a linear layer on the logits that was trained on the given labels."""
    torch.manual_seed(seed)
    inputs, targets = torch.from_numpy((logits - logits.mean(0)) / logits.std(0)), torch.from_numpy(given)
    head = nn.Linear(inputs.shape[1], int(given.max()) + 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.05)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return head(inputs).softmax(dim=1).detach().numpy()


def _row(
    teacher: str,
    share: int,
    found: Suspects,
    given: Int64[np.ndarray, " images"],
    truth: Int64[np.ndarray, " images"],
) -> str:
    wrong = given != truth
    hits = wrong[found.images]
    counts = (str(share), str(wrong.sum()), str(len(found)))
    values = (
        _per_cent(hits),
        _per_cent(np.isin(np.flatnonzero(wrong), found.images)),
        _per_cent(hits[:FIRST]),
    )
    return f"| {' | '.join((teacher, *counts, *values))} |"


def _per_cent(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f}" if len(values) else "-"


if __name__ == "__main__":
    with one_line_errors():
        main()
