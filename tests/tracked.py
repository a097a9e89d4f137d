"""A state of the pipeline with two variants, as it is told to MLflow."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.tracking import records
from pipeline.tracking.records import ExportedFile, PipelineState, RunRecord, TrackingServer, TrainedModel
from tests import tiny_onnx

HISTORY = [
    {"epoch": n, "step": 10 * n, "seconds": 2.0 * n, "loss": 1 / n, "val_top1": 0.9} for n in (1, 2, 3)
]


class Case(NamedTuple):
    """Arguments of ``track`` for two variants."""

    state: PipelineState
    teacher: TrainedModel
    variants: list[ExportedFile]
    server: TrackingServer


def case(folder: Path, uri: str, experiment: str) -> Case:
    """A state whose files lie in a folder."""
    (folder / "report").mkdir()
    (folder / "report" / "variants.csv").write_text("variant\n")
    state = PipelineState(
        name="colours",
        sha256="a" * 64,
        tags={"git_commit": "c0ffee", "teacher": "a teacher", "dvc.artifacts/data": "d41d"},
        parameters={"seed": 3, "data": {"source": "folder", "val": 0.1}},
        data={
            "source": "folder",
            "path": "photographs",
            "data_sha256": "d" * 64,
            "images": {"train": 8, "val": 4, "test": 4},
        },
        metrics={"teacher_accuracy_percent": 90.0, "accuracy_percent": 90.0},
        files=[("report", folder / "report")],
        champion="int8",
        reason="int8 is the fastest accepted variant",
        dataset="photographs",
        budget="no limit",
        answer="**Ship int8** (photographs): 90.00 %",
        costs=("latency_ms", "size_mb"),
        score="accuracy_percent",
    )
    teacher = TrainedModel(
        RunRecord("teacher", {"seed": 3}), experiment, {"top1": 0.9}, HISTORY, {"origin": "a teacher"}
    )
    variants = [exported(folder, experiment, "fp32"), exported(folder, experiment, "int8")]
    return Case(state, teacher, variants, TrackingServer(uri, experiment, folder))


def other_data(
    case: Case, folder: Path, dataset: str, digest: str, labels: Sequence[str] = tiny_onnx.LABELS
) -> Case:
    """The same experiment on other data, of which fp32 is the champion."""
    seed = sum(map(ord, dataset + digest))
    state = replace(
        case.state,
        sha256=digest[0] * 63 + dataset[0],
        dataset=dataset,
        data={**case.state.data, "data_sha256": digest},
        answer=f"**Ship fp32** ({dataset})",
        champion="fp32",
    )
    variants = [
        exported(folder, case.server.experiment, name, seed=seed, labels=labels) for name in ("fp32", "int8")
    ]
    teacher = replace(case.teacher, artifact=f"{case.teacher.artifact} {dataset} {digest}")
    return case._replace(state=state, variants=variants, teacher=teacher)


def exported(
    folder: Path, test: str, name: str, *, seed: int = 0, labels: Sequence[str] = tiny_onnx.LABELS
) -> ExportedFile:
    """A variant; another seed makes another file."""
    weights = np.eye(3, dtype=np.float32) / 16 + np.float32(seed / 1000)
    # Two variants never have the same file, since its metadata name it.
    file = folder / f"{name}-{seed}.onnx"
    tiny_onnx.write(file, weights=weights, labels=labels, note=f"{test} {name}")
    return ExportedFile(
        RunRecord(
            name, {"build": {"variant": name, "epochs": 3 + seed, "objective": {"kl": 1.0}}, "seed": 3}
        ),
        artifact=hashlib.sha256(file.read_bytes()).hexdigest(),
        metrics={
            "accuracy_percent": 90.0 + seed,
            "latency_ms": 2.5,
            "size_mb": file.stat().st_size / 1e6,
        },
        history=HISTORY,
        tags={"verdict": "accept", records.NOTE: f"what {name} is"},
        file=file,
        verdict="accept",
        accepted=True,
        summary={"recommendation": "accepted", "accuracy": "90.00 % (88.00 to 92.00)"},
        card=f"# The card of {name}",
    )


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(what: Any, seconds: float = 300) -> None:
    """Wait; the deadline only keeps a failing test from hanging."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Server:
    """A real tracking server on a database, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        options = ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        files = ["--artifacts-destination", str(self.folder / "served")]
        self.process = subprocess.Popen(
            [*command, *options, *files],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        until(self.answers)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
