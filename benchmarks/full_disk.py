"""Run every stage on a full disk, make room, run it again, and compare its results with undisturbed ones.

    sudo python -m benchmarks.full_disk .tiny /tmp/full

The first folder is a finished pipeline (`make tiny`; with `teacher=student` for the stage `load`, and with
`litert=all` for `litert`); a copy of it is put on a small file system in memory,
which takes root to mount. A filler leaves FREE bytes. With --temporary, the temporary folder is filled.
A stage passes if it ends with status 1 and one line, or finishes because it needs no more room, and if its
results after room was made are those of the finished pipeline, byte for byte. Results that hold times are not
compared.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import yaml

from pipeline import paths
from pipeline.litert import metadata
from pipeline.running import lock_file
from pipeline.running.command_line import BUILDERS

STAGES: dict[str, tuple[str, ...]] = {
    "check": ("artifacts/checked.txt", "artifacts/code"),
    "prepare": ("artifacts/data",),
    "teach": ("artifacts/teacher", "artifacts/models/teacher"),
    "label": ("artifacts/labels",),
    "distill fp32": ("artifacts/models/fp32",),
    "load fp32": ("artifacts/models/fp32",),
    "prune pruned-50": ("artifacts/models/pruned-50",),
    "quantize int8-ptq": ("artifacts/models/int8-ptq",),
    "quantize int8-qat": ("artifacts/models/int8-qat",),
    "export int8-qat": ("artifacts/onnx/int8-qat.onnx",),
    "evaluate int8-qat": ("artifacts/metrics/int8-qat.json", "artifacts/metrics/int8-qat.npz"),
    "compare": ("artifacts/comparison.json",),
    "benchmark": ("artifacts/benchmark.json",),
    "cost": ("artifacts/costs.json",),
    "probe": ("artifacts/robustness.json",),
    "explain": ("artifacts/explanations",),
    "sensitivity": ("artifacts/sensitivity.json",),
    "litert": ("artifacts/litert",),
    "report": ("artifacts/report", "artifacts/plots", "artifacts/variants"),
    "track": ("artifacts/tracked.json", "mlflow.db", "mlartifacts"),
}
"""Stage with its variant to what it writes."""

TIMED = ("benchmark", "cost", "report", "track")
"""Stages whose results hold times, and therefore differ between any two runs."""

TIMES = ("litert.json",)
"""Names of files that hold times, of stages whose other files are compared."""

ROOM = 256 << 20
"""Bytes that the copy may grow by when there is room."""


def main() -> None:
    """Print one row per stage, and end with status 1 if any did not pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("finished", type=Path, help="folder of a finished pipeline")
    parser.add_argument("mount", type=Path, help="folder to mount small file systems in; it is created")
    parser.add_argument("--free", type=int, default=16384, help="bytes that are left (default: %(default)s)")
    parser.add_argument(
        "--stages", nargs="*", help="only these (default: all that the finished pipeline has run)"
    )
    parser.add_argument("--temporary", action="store_true", help="fill the temporary folder instead")
    arguments = parser.parse_args()
    failed = 0
    print("| stage | status | line | seconds | after room was made |\n|---|---|---|---|---|")
    for stage in arguments.stages or _stages(arguments.finished):
        try:
            row, passed = _row(arguments, stage)
        finally:
            shutil.rmtree(arguments.mount / "project", ignore_errors=True)
        print(f"| {stage} | {row} |", flush=True)
        failed += not passed
    raise SystemExit(failed > 0)


def _stages(finished: Path) -> list[str]:
    """Stages that a finished pipeline has run."""
    variants = yaml.safe_load((finished / paths.PARAMETERS).read_text())["variants"]
    built = {f"{variant['op']} {name}" for name, variant in variants.items()}
    return [
        stage
        for stage, outputs in STAGES.items()
        if all((finished / output).exists() for output in outputs)
        and (stage in built or stage.partition(" ")[0] not in BUILDERS)
    ]


def _row(arguments: argparse.Namespace, stage: str) -> tuple[str, bool]:
    outputs = STAGES[stage]
    content = _bytes(arguments.finished)
    with (
        _mounted(arguments.mount / "disk", content + ROOM) as disk,
        _mounted(arguments.mount / "temporary", ROOM) as temporary,
    ):
        project = arguments.mount / "project" if arguments.temporary else disk / "project"
        # Links are followed: the code of `make tiny` is linked.
        shutil.copytree(arguments.finished, project, ignore=shutil.ignore_patterns("cache", "__pycache__"))
        wanted = _digest(project, outputs)
        # What the stage does before its own work is done already, so that its own files find no room.
        (project / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
        shutil.copy(project / "dvc.lock", project / lock_file.COPY)
        for name in outputs:
            shutil.rmtree(project / name) if (project / name).is_dir() else (project / name).unlink()
        filler = (temporary if arguments.temporary else disk) / "filler"
        _fill(filler, arguments.free)
        began = time.monotonic()
        first = _run(project, stage, temporary)
        seconds = time.monotonic() - began
        lines = [line for line in first.stderr.splitlines() if line.startswith("error: ")]
        whole = first.returncode == 1 and len(lines) == 1 and "Traceback" not in first.stderr
        unneeded = first.returncode == 0 and not lines
        filler.unlink()
        second = _run(project, stage, temporary)
        same = stage.split()[0] in TIMED or _digest(project, outputs) == wanted
        after = "finished" if second.returncode == 0 else f"status {second.returncode}"
        if second.returncode:
            after += " " + second.stderr.strip().splitlines()[-1]
        result = (
            f"{after}, {'not compared' if stage.split()[0] in TIMED else 'equal' if same else 'DIFFERENT'}"
        )
        line = lines[0] if lines else "(needs no more room)" if unneeded else first.stderr[-600:]
        row = f"{first.returncode} | {line} | {seconds:.0f} | {result}"
        return row, (whole or unneeded) and second.returncode == 0 and same


@contextmanager
def _mounted(folder: Path, count: int) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={count}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(file: Path, free: int) -> None:
    """Write a file that leaves so many bytes of its file system."""
    statistics = os.statvfs(file.parent)
    count = statistics.f_bavail * statistics.f_frsize - free
    with file.open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, count)


def _run(project: Path, stage: str, temporary: Path) -> subprocess.CompletedProcess[str]:
    script, *variant = stage.split()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", f"pipeline.stages.{script}", *variant]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def _bytes(folder: Path) -> int:
    return sum(-(-file.stat().st_size // 4096) * 4096 + 4096 for file in folder.rglob("*"))


def _digest(project: Path, outputs: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in outputs:
        files = sorted((project / name).rglob("*")) if (project / name).is_dir() else [project / name]
        for file in files:
            if file.is_file() and file.name not in TIMES:
                digest.update(str(file.relative_to(project)).encode() + _content(file))
    return digest.hexdigest()


def _content(file: Path) -> bytes:
    """The content of a file; that of a network without the commit, which a copy of the project lacks."""
    if file.suffix == ".tflite":
        return _without_commit(file)
    if file.suffix != ".onnx":
        return file.read_bytes()
    model = onnx.load(file)
    kept = [entry for entry in model.metadata_props if entry.key != "git_commit"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model.SerializeToString(deterministic=True)


def _without_commit(file: Path) -> bytes:
    """The content of a LiteRT file without the commit, which the archive at its end names."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        contents = {entry.filename: archive.read(entry) for entry in entries}
    details = json.loads(contents[metadata.DETAILS])
    del details["git_commit"]
    others = (content for name, content in contents.items() if name != metadata.DETAILS)
    network = file.read_bytes()[: min(entry.header_offset for entry in entries)]
    return b"".join((network, *others, json.dumps(details).encode()))


if __name__ == "__main__":
    main()
