"""Files side by side: answers to the same images, times from the same rounds, one table."""

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Bool, Int64
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from tqdm import tqdm

from pipeline.data import batches
from pipeline.data.batches import ViewSet
from pipeline.data.store import ImageSet
from pipeline.evaluation import gate
from pipeline.measurement import latency
from pipeline.onnx.inference import Classifier, ModelFileError, open_classifier, run
from pipeline.onnx.sessions import open_session
from pipeline.statistics import intervals

BATCH = 32
CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv")
COLUMNS = {"top1": "accuracy", "size_bytes": "size", "ratio": "speed"}
"""What verdicts are given on, and their words."""
SAME_SIZE = 0.01
"""Sizes within this share count as equal."""
SECONDS = 60.0
"""After which no further session of timing begins."""
PRECISION = 0.02
"""Relative half width of the ratios' intervals that is enough."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """A file's answers to all images."""

    predictions: Int64[np.ndarray, " images"]
    right: Bool[np.ndarray, " images"]
    right_among_shown: Bool[np.ndarray, " images"] | None = None
    """Whether the greatest logit among the classes of the images is the right one; None if the file knows no
    others, or it was not looked at."""


def spread(images: ImageSet, count: int | None) -> ImageSet:
    """``count`` images, spread evenly over the split as it lies on disk; None takes all."""
    if count is None or count >= len(images):
        return images
    chosen = np.linspace(0, len(images) - 1, num=count, dtype=int)
    return images.select(chosen)


def fault(path: Path) -> str | None:
    """Why a file cannot be measured; None where it can."""
    try:
        classifier = open_classifier(path, threads=1)
        size = classifier.contract.size
        for count in (1, 2):
            list(run(classifier, [np.zeros((count, size, size, 3), np.uint8)]))
    except (ModelFileError, Fail, InvalidArgument, RuntimeException) as error:
        return " ".join(str(error).split())
    return None


def answer(files: Mapping[str, Path], dataset: ViewSet, threads: int) -> dict[str, Answers]:
    """What each file answers; every image is rendered once, for all of them.

    Files may know more classes than the images are of; classes are matched by their names.

    Raises:
        ModelFileError: a file is not one of this pipeline's form, or a logit is not finite.
        ValueError: files differ in their classes, or lack one of the images'.
    """
    classifiers = {name: open_classifier(path, threads=threads) for name, path in files.items()}
    (labels,) = {classifier.labels for classifier in classifiers.values()}
    shown = np.array([labels.index(name) for name in dataset.images.classes])
    truth = shown[dataset.images.labels]
    parts: dict[str, list[Int64[np.ndarray, "batch 2"]]] = {name: [] for name in files}
    requests = batches.sequential(range(len(dataset)), None, dataset.contract.size, BATCH)
    with tqdm(desc=f"{len(files)} files", total=len(dataset), unit=" images", mininterval=5) as bar:
        for request in requests:
            pixels = dataset[request].images.numpy()
            for name, classifier in classifiers.items():
                parts[name].append(_top(classifier, pixels, shown))
            bar.update(len(pixels))
    result = {}
    for name, part in parts.items():
        of_all, of_shown = np.concatenate(part).T
        among = of_shown == truth if len(shown) < len(labels) else None
        result[name] = Answers(of_all, of_all == truth, among)
    return result


def _top(
    classifier: Classifier, pixels: np.ndarray, shown: Int64[np.ndarray, " shown"]
) -> Int64[np.ndarray, "batch 2"]:
    """The class with the greatest logit of all, and of those that are shown."""
    [logits] = run(classifier, [pixels])
    return np.stack([logits.argmax(axis=1), shown[logits[:, shown].argmax(axis=1)]], axis=1)


def accuracy(answers: Answers, reference: Answers) -> Row:
    """Top-1 with its interval, the paired difference to the reference, and the share of equal answers.

    Where files know more classes than the images are of, the keys with ``shown_`` say the same of the answers
    among the classes of the images.
    """
    row = {"n": len(answers.right), **_score(answers.right, reference.right)}
    if answers.right_among_shown is not None and reference.right_among_shown is not None:
        among = _score(answers.right_among_shown, reference.right_among_shown)
        row |= {f"shown_{key}": value for key, value in among.items()}
    return {**row, "agreement": float((answers.predictions == reference.predictions).mean())}


def _score(right: Bool[np.ndarray, " images"], reference: Bool[np.ndarray, " images"]) -> Row:
    n, correct = len(right), int(right.sum())
    lo, hi = intervals.wilson(correct, n)
    difference = gate.compare(right, reference)
    return {
        "top1": correct / n,
        "top1_lo": lo,
        "top1_hi": hi,
        "delta": difference.delta,
        "delta_lo": difference.lo,
        "delta_hi": difference.hi,
    }


def timings(
    files: Mapping[str, Path], reference: str, *, sessions: int, seed: int
) -> tuple[dict[str, Row], Row]:
    """One thread, one image, interleaved: a row for each file, and what the machine was called."""
    with tqdm(desc=f"timing {len(files)} files", unit=" sessions", mininterval=5) as bar:
        timed = latency.measure(
            files,
            threads=(1,),
            batch_sizes=(1,),
            sessions=sessions,
            precision=PRECISION,
            seconds=SECONDS,
            processes=1,
            seed=seed,
            reference=reference,
            progress=bar.update,
        )
    kept = ("latency_ms_p50", "ratio", "ratio_lo", "ratio_hi")
    rows = {name: {key: row[key] for key in kept} for name, row in timed["variants"].items()}
    return rows, {"machine": timed["machine"], "noise": timed["noise"], "timing": timed["settings"]}


def convolutions(path: Path) -> tuple[int, int]:
    """Number of convolutions that ONNX Runtime turns into int8 kernels, and of all convolutions."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, optimized=optimized)
        kinds = [node.op_type for node in onnx.load(optimized).graph.node if node.op_type in CONVOLUTIONS]
    return kinds.count("QLinearConv"), len(kinds)


def verdicts(
    rows: Mapping[str, Row],
    answers: Mapping[str, Answers],
    ours: Sequence[str],
    peers: Sequence[str],
    columns: Collection[str] = tuple(COLUMNS),
) -> dict[str, Row]:
    """In each column: the best of ours, the best peer, and whether ours is the best, tied or behind.

    Accuracies are tied where the paired 95 % interval of their difference holds 0, speeds where the
    intervals of their ratios overlap, sizes within one per cent.
    """

    def best(names: Sequence[str], column: str) -> str:
        sign = -1 if column == "size_bytes" else 1
        return max(names, key=lambda name: sign * rows[name][column])

    result: dict[str, Row] = {}
    for column in columns:
        own, peer = best(ours, column), best(peers, column)
        comparison: Row = {"ours": own, "peer": peer}
        mine, theirs = rows[own], rows[peer]
        if column == "top1":
            difference = gate.compare(answers[own].right, answers[peer].right)
            comparison |= {"delta": difference.delta, "delta_lo": difference.lo, "delta_hi": difference.hi}
            tied, better = not difference.distinguishable, difference.delta > 0
        elif column == "size_bytes":
            comparison["share"] = mine[column] / theirs[column]
            tied, better = abs(comparison["share"] - 1) <= SAME_SIZE, comparison["share"] < 1
        else:
            tied = mine["ratio_lo"] <= theirs["ratio_hi"] and theirs["ratio_lo"] <= mine["ratio_hi"]
            better = mine["ratio"] > theirs["ratio"]
        result[column] = {**comparison, "verdict": "tied" if tied else "best" if better else "behind"}
    return result


def percent(row: Row, name: str, signed: bool = False) -> str:
    """A figure with its interval, in per cent or points; a dash where it was not measured."""
    if row.get(name) is None:
        return "-"
    value, lo, hi = (100 * row[name + end] for end in ("", "_lo", "_hi"))
    sign = "+" if signed else ""
    return f"{value:{sign}.2f} ({lo:{sign}.2f} to {hi:{sign}.2f})"


def ratio(row: Row) -> str:
    """Times the reference's speed."""
    return f"{row['ratio']:.2f} ({row['ratio_lo']:.2f} to {row['ratio_hi']:.2f})"


def description(method: Callable[..., object]) -> str:
    """What a method's docstring says of it, for a cell."""
    return (method.__doc__ or "").removesuffix(".")


def noise(about: Mapping[str, Any]) -> str:
    """What the machine was called while files were timed."""
    said = about["noise"]
    return "; ".join(said["reasons"]) if said["noisy"] else "quiet"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def sentences(result: Mapping[str, Row]) -> str:
    """The verdicts, a line each."""
    return "\n".join(
        f"{COLUMNS[column]}: {row['ours']} is {row['verdict']} (the best peer: {row['peer']})"
        for column, row in result.items()
    )
