"""The same network in several runtimes: top-1, agreement and latency of every variant, side by side.

    python -m benchmarks.runtimes --packages FOLDER [--images 1000] [--seconds 60] [--json FILE]

Reads the artifacts of a finished run. ONNX Runtime and OpenVINO read `artifacts/onnx`, LiteRT reads
`artifacts/litert` (the stage of that name); for ExecuTorch and ncnn a file is made from `artifacts/models`.
Where a runtime is no package of the product, FOLDER/NAME holds it, so that its pins quarrel with no others:

    pip install --no-deps --target FOLDER/openvino openvino openvino-telemetry
    pip install --no-deps --target FOLDER/ncnn ncnn portalocker pnnx
    pip install --no-deps --target FOLDER/executorch executorch torchao ruamel.yaml tabulate parameterized

Each runtime has a process of its own (`benchmarks/runtime_worker.py`), and all are asked in turn, in an
order that is drawn anew in each round, so that what slows the machine slows all of them. Latencies are given
as ratios to ONNX Runtime's fp32 in the same round. Where a runtime cannot run a variant, the table says why.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import side_by_side
from pipeline import lineage, parameters, paths
from pipeline.data import store
from pipeline.data.batches import Request, ViewSet
from pipeline.onnx import inference
from pipeline.running import affinity
from pipeline.statistics import intervals

RUNTIMES = ("onnxruntime", "litert", "openvino", "executorch", "ncnn")
BATCH = 64
"""Number of images that are rendered at once."""


class Worker:
    """A process that runs all variants in one runtime."""

    def __init__(self, runtime: str, packages: Path, folder: Path, threads: int) -> None:
        own = packages / runtime
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if own.is_dir():
            environment["PYTHONPATH"] = os.pathsep.join(map(str, (own, Path.cwd())))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.runtime_worker", runtime, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask one question; a process that has died answers with its status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"the process ended with status {self.process.wait()}"}
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    """Print a Markdown table per number of threads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, default=Path("runtimes"))
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--images", type=int, default=1000, help="test images, spread evenly (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing per number of threads")
    parser.add_argument("--json", type=Path, help="file to which the figures are written, too")
    arguments = parser.parse_args()
    variants = list(parameters.load().variants)
    contract = inference.open_classifier(paths.onnx(variants[0]), threads=1).contract
    test = ViewSet(side_by_side.spread(store.read(paths.DATA, "test"), arguments.images), None, contract)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = [
            test[Request(range(first, min(first + BATCH, len(test))), None, contract.size)].images.numpy()
            for first in range(0, len(test), BATCH)
        ]
        np.save(folder / "images.npy", np.concatenate(pixels))
        result = {
            "n": len(test),
            "cores": affinity.physical_cores(),
            "runtimes": {},
            "latency": {},
        }
        for threads in dict.fromkeys((1, affinity.physical_cores())):
            workers = {
                runtime: Worker(runtime, arguments.packages, folder, threads)
                for runtime in arguments.runtimes
            }
            opened = {runtime: worker.ask(open=variants) for runtime, worker in workers.items()}
            if not result["runtimes"]:
                result["runtimes"] = opened
                result["answers"] = _answers(workers, opened, variants, test, folder)
            result["latency"][str(threads)] = _time(workers, opened, arguments.seconds)
            for worker in workers.values():
                worker.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result, variants))


def _answers(
    workers: dict[str, Worker], opened: dict[str, Any], variants: list[str], test: ViewSet, folder: Path
) -> dict[str, dict[str, Any]]:
    """Top-1 with its interval, and the agreement with ONNX Runtime, by runtime and variant."""
    rows: dict[str, dict[str, Any]] = defaultdict(dict)
    expected: dict[str, np.ndarray] = {}
    for runtime, worker in workers.items():
        for variant in variants:
            if variant in opened[runtime].get("sizes", {}):
                reply = worker.ask(answer=variant)
                if "error" in reply:
                    opened[runtime].setdefault("reasons", {})[variant] = reply["error"]
                    opened[runtime]["sizes"].pop(variant)
                    continue
                logits = np.load(folder / reply["file"])
                reference = expected.setdefault(variant, logits)
                predictions = logits.argmax(1)
                right = predictions == test.images.labels
                low, high = intervals.wilson(int(right.sum()), len(right))
                rows[runtime][variant] = {
                    "top1": float(right.mean()),
                    "low": low,
                    "high": high,
                    "agreement": float((predictions == reference.argmax(1)).mean()),
                    "logits": float(np.abs(logits - reference).max()),
                }
    return dict(rows)


def _time(workers: dict[str, Worker], opened: dict[str, Any], seconds: float) -> dict[str, dict[str, Any]]:
    """Median ratio to ONNX Runtime's fp32 over all rounds, with quartiles, by runtime and variant."""
    jobs = [(runtime, variant) for runtime in workers for variant in opened[runtime].get("sizes", {})]
    times: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    order, end = random.Random(0), time.monotonic() + seconds
    while time.monotonic() < end:
        for runtime, variant in order.sample(jobs, len(jobs)):
            times[runtime, variant].append(workers[runtime].ask(time=variant)["seconds"])
    variants = [variant for runtime, variant in jobs if runtime == "onnxruntime"]
    fp32 = lineage.REFERENCE if lineage.REFERENCE in variants else variants[0]
    reference = np.array(times["onnxruntime", fp32])
    rows: dict[str, dict[str, Any]] = defaultdict(dict)
    for (runtime, variant), values in times.items():
        low, median, high = np.quantile(np.array(values) / reference, [0.25, 0.5, 0.75])
        rows[runtime][variant] = {
            "ratio": float(median),
            "quartiles": [float(low), float(high)],
            "milliseconds": float(np.median(values) * 1000),
            "rounds": len(values),
        }
    return dict(rows)


def table(result: dict[str, Any], variants: list[str]) -> str:
    """All figures as a Markdown table."""
    counts = list(result["latency"])
    head = ["variant", "runtime", f"top-1, % (n = {result['n']}; 95 %)", "same answer, %", "logits", "MB"]
    head += [f"time vs fp32 in ONNX Runtime, {count} thread{'s' * (count != '1')}" for count in counts]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for variant in variants:
        for runtime, opened in result["runtimes"].items():
            name = f"{runtime} {opened.get('version', '')}".strip()
            row = result["answers"].get(runtime, {}).get(variant)
            if row is None:
                reason = opened.get("error") or opened.get("reasons", {}).get(variant, "not run")
                lines.append(f"| {variant} | {name} | {reason} |" + " |" * (len(head) - 3))
                continue
            timings = [result["latency"][count].get(runtime, {}).get(variant) for count in counts]
            ratios = [
                f"{one['ratio']:.2f} ({one['quartiles'][0]:.2f} to {one['quartiles'][1]:.2f})" if one else "-"
                for one in timings
            ]
            cells = [
                variant,
                name,
                f"{row['top1']:.2%} ({row['low']:.2%} to {row['high']:.2%})".replace("%", ""),
                f"{100 * row['agreement']:.1f}",
                f"{row['logits']:.2g}",
                f"{opened['sizes'][variant] / 1e6:.2f}",
                *ratios,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
