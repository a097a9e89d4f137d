"""Train with several processes what one process trains, stage by stage, and compare the results.

    python -m benchmarks.ranks --folder /tmp/ranks                     # the default data and recipe
    python -m benchmarks.ranks --folder /tmp/ranks tiny data.test=400  # another configuration, other values

One process makes the teacher, its labels, fp32, pruned-50 and int8-qat. Then each stage runs once more with
several processes, from the same inputs. The label stores must be equal byte for byte; networks are compared
on the test split, image by image, with the interval of the paired difference. What was finished in the folder
is not run again. On a CPU the processes talk through gloo, on GPUs through NCCL.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import paths, provenance
from pipeline.data import store
from pipeline.statistics.intervals import paired_interval

ROOT = Path(__file__).resolve().parents[1]
CODE = ("configs", "dvc.yaml", "pipeline", "students", "teachers")
TEACH, LABEL = ("teach",), ("label",)
BUILDS = (("distill", "fp32"), ("prune", "pruned-50"), ("quantize", "int8-qat"))


def main() -> None:
    """Print a table, or JSON; the status is 1 if a comparison fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder of the runs, a few GB")
    parser.add_argument("--devices", type=int, default=2, help="number of processes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("changes", nargs="*", help="configuration, groups and values: tiny seed=1 ...")
    arguments = parser.parse_args()
    one = arguments.folder / "one"
    prepare(one, 1, arguments.changes)
    python(one, "-m", "pipeline", "fetch")
    run(one, "prepare")
    for command in (TEACH, LABEL, *BUILDS):
        run(one, *command)
    rows = []
    for command in (TEACH, LABEL, *BUILDS):
        several = arguments.folder / "-".join(command)
        prepare(several, arguments.devices, arguments.changes)
        take_inputs(one, several, command)
        seconds = {"one": run(one, *command), "several": run(several, *command)}
        rows.append({"stage": " ".join(command), "seconds": seconds, **compare(one, several, command)})
    if arguments.json:
        print(json.dumps({"processes": arguments.devices, "stages": rows}, indent=2))
    else:
        show(rows, arguments.devices)
    sys.exit(not all(row["alike"] for row in rows))


def prepare(folder: Path, devices: int, changes: list[str]) -> None:
    """Make a folder that links to this checkout's code, with parameters of its own."""
    (folder / paths.ARTIFACTS).mkdir(parents=True, exist_ok=True)
    for name in (*CODE, str(paths.RAW)):
        if (ROOT / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    python(folder, "-m", "pipeline", "params", *changes, f"compute.devices={devices}")


def python(folder: Path, *command: str) -> None:
    """Run Python in a folder; choices by measured times are those of the first run in all of them."""
    environment = {**os.environ, "DISTILLERY_CACHE": str(folder.parent.absolute() / "cache")}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=False)
    if done.returncode:
        sys.exit(f"error: python {' '.join(command)} in {folder} ended with status {done.returncode}")


def run(folder: Path, *command: str) -> float:
    """Run a stage, and for a variant its export and evaluation, unless that was done; returns the seconds of
    the stage."""
    note = folder / f"{'-'.join(command)}.seconds"
    if not note.exists():
        began = time.perf_counter()
        stage, *variant = command
        python(folder, "-m", f"pipeline.stages.{stage}", *variant)
        seconds = time.perf_counter() - began
        if variant:
            python(folder, "-m", "pipeline.stages.export", *variant)
            python(folder, "-m", "pipeline.stages.evaluate", *variant)
        note.write_text(str(round(seconds, 1)))
    return float(note.read_text())


def take_inputs(one: Path, several: Path, command: tuple[str, ...]) -> None:
    """Link what a stage reads to what one process has made."""
    wanted = [paths.DATA]
    if command != TEACH:
        wanted += [paths.TEACHER, paths.model("teacher")]
    if command[0] in ("prune", "quantize"):
        wanted.append(paths.model("fp32"))
    if command in BUILDS:
        wanted.append(paths.LABELS)
    for path in wanted:
        (several / path).parent.mkdir(parents=True, exist_ok=True)
        if not (several / path).is_symlink():
            shutil.rmtree(several / path, ignore_errors=True)
            (several / path).symlink_to((one / path).absolute())


def compare(one: Path, several: Path, command: tuple[str, ...]) -> dict[str, Any]:
    """What differs between the results of one process and of several."""
    if command == LABEL:
        stores = [
            {file.relative_to(of): provenance.sha256(file) for file in sorted(of.rglob("*.npy"))}
            for of in (one / paths.LABELS, several / paths.LABELS)
        ]
        return {"files": len(stores[0]), "alike": bool(stores[0]) and stores[0] == stores[1]}
    labels = store.read(one / paths.DATA, "test").labels
    old, new = (predictions(of, command) == labels for of in (one, several))
    gained, lost = int((new & ~old).sum()), int((old & ~new).sum())
    low, high = paired_interval(gained, lost, len(labels))
    return {
        "images": len(labels),
        "score": {"one": float(old.mean()), "several": float(new.mean())},
        "difference": {"gained": gained, "lost": lost, "interval": [low, high]},
        "alike": low <= 0 <= high,
    }


def predictions(folder: Path, command: tuple[str, ...]) -> np.ndarray:
    """Predicted class of each test image: of the shipped file, or of the teacher."""
    if command == TEACH:
        return np.load(folder / paths.TEACHER_LOGITS).argmax(1)
    return np.asarray(json.loads((folder / paths.metrics(command[1])).read_text())["predictions"])


def show(rows: list[dict[str, Any]], devices: int) -> None:
    """Print a table in Markdown."""
    print(f"| stage | one process | {devices} processes | difference, points | alike | seconds |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        verdict, seconds = "yes" if row["alike"] else "**no**", row["seconds"]
        if "score" in row:
            score, (low, high) = row["score"], row["difference"]["interval"]
            estimate = 100 * (score["several"] - score["one"])
            cells = [
                *(f"{score[which]:.2%} of {row['images']}" for which in ("one", "several")),
                f"{estimate:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]",
            ]
        else:
            cells = [f"{row['files']} files", f"{row['files']} files", "bytes"]
        print(f"| {' | '.join([row['stage'], *cells, verdict])} | {seconds['one']}, {seconds['several']} |")


if __name__ == "__main__":
    main()
