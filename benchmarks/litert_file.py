"""Variants in LiteRT beside their ONNX files, and beside other people's .tflite files, on the same images.

    python -m benchmarks.litert_file fp32 int8-ptq --other mobilenet_v1_0.75_192_quant.tflite
    python -m benchmarks.litert_file int8-ptq --without-xnnpack --images 1000

The images are the test images of the prepared data in artifacts/, rendered as the first variant's contract
says; classes are matched by their names. Another file that knows one class more has a background class in
front. Times are interleaved: every round calls every file once.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import side_by_side
from benchmarks.side_by_side import Answers
from pipeline import paths
from pipeline.data import batches, store
from pipeline.data.batches import ViewSet
from pipeline.litert import export, interpreter
from pipeline.litert.interpreter import Session
from pipeline.measurement import latency, litert_calls, machine
from pipeline.measurement.latency import Call
from pipeline.models import storage
from pipeline.onnx.export import metadata_for
from pipeline.onnx.inference import Classifier, open_classifier, run
from pipeline.running import affinity
from pipeline.running.process import one_line_errors


def main() -> None:
    """Write the variants' LiteRT files to a temporary folder, score and time all, and print a JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="+", help="the first one is the reference")
    parser.add_argument("--other", nargs="*", type=Path, default=[], help="further .tflite files")
    parser.add_argument("--images", type=int, help="number of test images; by default all")
    parser.add_argument("--without-xnnpack", action="store_true", help="LiteRT's own kernels")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.tflite" for name in arguments.variants}
        for name, file in files.items():
            model = storage.load(paths.model(name))
            export.export(model, file, metadata_for(model.card, model.quantization))
        rows = _score(files, arguments.other, count=arguments.images, xnnpack=not arguments.without_xnnpack)
        timed = {name: paths.onnx(name) for name in arguments.variants}
        timed |= {file.name: file for file in [*files.values(), *arguments.other]}
        times = _time(timed, arguments.variants[0], arguments.sessions, arguments.seed)
    result = {"runtime": interpreter.runtime(), "machine": machine.describe(), "files": rows, "times": times}
    print(json.dumps(result, indent=2))


def _score(
    files: dict[str, Path], others: Sequence[Path], *, count: int | None, xnnpack: bool
) -> dict[str, dict[str, Any]]:
    """Top-1 of each file with its paired difference to the reference's ONNX file; and, of each variant, how
    far LiteRT's answers and logits are from ONNX Runtime's."""
    threads = affinity.physical_cores()
    onnx = {name: open_classifier(paths.onnx(name), parts=threads) for name in files}
    first = next(iter(onnx.values()))
    images = side_by_side.spread(store.read(paths.DATA, "test"), count)
    views = ViewSet(images, None, first.contract)
    own = {
        name: interpreter.open_file(file, threads=threads, xnnpack=xnnpack) for name, file in files.items()
    }
    other = {file.name: interpreter.open_file(file, threads=threads) for file in others}
    logits: dict[str, list[np.ndarray]] = {
        name: [] for name in [*onnx, *(f"{n}.tflite" for n in own), *other]
    }
    requests = batches.sequential(range(len(views)), None, first.contract.size, side_by_side.BATCH)
    with tqdm(total=len(views), unit=" images", mininterval=5) as bar:
        for request in requests:
            pixels = views[request].images.numpy()
            for name in files:
                logits[name].append(_run_onnx(onnx[name], pixels))
                logits[f"{name}.tflite"].append(own[name].run(pixels))
            for name, session in other.items():
                logits[name].append(_run_other(session, pixels, len(first.labels)))
            bar.update(len(pixels))
    joined = {name: np.concatenate(parts) for name, parts in logits.items()}
    truth = np.array([first.labels.index(name) for name in images.classes])[images.labels]
    answers = {name: _answers(values, truth) for name, values in joined.items()}
    rows = {name: side_by_side.accuracy(each, answers[next(iter(files))]) for name, each in answers.items()}
    for name, file in files.items():
        before, after = joined[name], joined[f"{name}.tflite"]
        beside = side_by_side.accuracy(answers[f"{name}.tflite"], answers[name])
        rows[f"{name}.tflite"] |= {
            "against_onnx": {key: beside[key] for key in ("delta", "delta_lo", "delta_hi", "agreement")},
            "logits": float(np.abs(after - before).max()),
            "logits_spread": float(np.ptp(before)),
            "size_bytes": file.stat().st_size,
            "size_ratio": file.stat().st_size / paths.onnx(name).stat().st_size,
        }
    return rows


def _answers(logits: np.ndarray, truth: np.ndarray) -> Answers:
    predictions = logits.argmax(axis=1)
    return Answers(predictions, predictions == truth)


def _run_onnx(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    [logits] = run(classifier, [pixels])
    return logits


def _run_other(session: Session, pixels: np.ndarray, classes: int) -> np.ndarray:
    return session.run(pixels)[:, -classes:].astype(np.float32)


def _time(files: dict[str, Path], reference: str, sessions: int, seed: int) -> list[dict[str, Any]]:
    """Latencies of all files with one thread and with all, in their own runtimes."""
    cores = affinity.usable_cores()
    return [
        latency.time_condition(
            files,
            _open,
            provider="cpu",
            cores=cores[-count:],
            batch_size=1,
            sessions=sessions,
            precision=side_by_side.PRECISION,
            seconds=side_by_side.SECONDS,
            random=np.random.default_rng(seed),
            reference=reference,
            progress=None,
        )
        for count in dict.fromkeys([1, len(cores)])
    ]


def _open(file: Path, cores: Sequence[int], random: np.random.Generator) -> Call:
    opener = litert_calls.open_litert
    if file.suffix == ".onnx":
        opener = partial(latency.open_onnx, "cpu", 1)
    return opener(file, cores, random)


if __name__ == "__main__":
    with one_line_errors():
        main()
