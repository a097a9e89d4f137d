"""The whole pipeline on tiny images, as a user runs it; minutes, so only with `make test-all`."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import yaml
from dvc.utils.hydra import compose_and_dump
from PIL import Image

ROOT = Path(__file__).parents[1]
VARIANTS = ["fp32", "int8-ptq", "int8-qat", "pruned-50", "pruned-50-int8"]
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
# Bytecode is written as on every user's machine: it must not make a stage run again.
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)
SMALL = [
    "data=folder",
    "student.size=64",
    "teacher.size=64",
    "teacher.full.phases=[]",
    "teacher.full.batch_size=16",
    "teacher.full.epochs=3",
    "teacher.head.batch_size=16",
    "teacher.head.epochs=1",
    "distill.phases=[]",
    "distill.batch_size=16",
    "distill.epochs=40",
    "prune.batch_size=16",
    "prune.epochs=5",
    "quantize.batch_size=16",
    "quantize.epochs=2",
    "quantize.calibration=16",
    "benchmark.sessions=2",
    "benchmark.seconds=1",
    "probe.corrupted=2",
    "probe.attacked=2",
    "probe.steps=2",
    "probe.out_of_distribution_images=4",
    "sensitivity.images=6",
    "gate.distill.max_drop=1.0",
    "gate.prune.max_drop=1.0",
    "gate.quantize.max_drop=1.0",
]


def repro(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["dvc", "repro", *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def status(folder: Path) -> str:
    return subprocess.run(
        ["dvc", "status"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """A copy of the repository with small settings, its own git and DVC."""
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    compose_and_dump(
        str(folder / "params.yaml"),
        str(folder / "configs"),
        None,
        "config",
        "",
        [*SMALL, f"data.path={photographs}"],
    )
    return folder


ANEW = ("robustness.json", "sensitivity.json", "explanations/explanations.json")
"""Results without times."""


def entries(folder: Path) -> dict[str, list[Any]]:
    """What was measured of each variant after it was built."""
    benchmark, robustness, explanations = (
        json.loads((folder / "artifacts" / file).read_text())
        for file in ("benchmark.json", "robustness.json", "explanations/explanations.json")
    )
    attacks = robustness["adversarial"]["results"]
    return {
        name: [
            row,
            benchmark["footprint"][name],
            robustness["inputs"][name],
            robustness["corruptions"]["variants"][name],
            [line for line in attacks if line["variant"] == name],
            explanations["flips"][name],
            explanations["confused"][name],
            [image["variants"][name] for image in explanations["images"]],
        ]
        for name, row in benchmark["variants"].items()
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_pipeline_from_a_kill_to_the_last_prediction(checkout: Path, photographs: Path) -> None:
    # Killed in the middle of distillation, it goes on from the last finished epoch.
    with subprocess.Popen(
        ["dvc", "repro"], cwd=checkout, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    ) as first:
        checkpoint = checkout / "artifacts/checkpoints/fp32/last.safetensors"
        deadline = time.monotonic() + 900
        while not checkpoint.exists():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    again = repro(checkout)
    assert again.returncode == 0, again.stderr[-2000:]
    assert re.search(r"fp32: .*step \d+ of \d+", again.stderr)
    assert stages_run(again.stdout)[0] == "build@fp32"

    with (checkout / "artifacts/report/variants.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == VARIANTS
    assert (checkout / "artifacts/report/report.html").stat().st_size > 10_000
    model_card = checkout / "artifacts/report/model_card.md"
    assert "More Information Needed" not in model_card.read_text()
    assert float(rows["fp32"]["top1"]) > 0.5
    assert int(rows["int8-qat"]["size_bytes"]) < 0.3 * int(rows["fp32"]["size_bytes"])
    assert int(rows["pruned-50"]["macs"]) <= 0.5 * int(rows["fp32"]["macs"])

    # A second run does nothing, whatever was run in between, and whatever lies beside the code.
    for command in (
        [sys.executable, "-m", "pipeline", "predict", "int8-ptq", str(photographs / "red")],
        [sys.executable, "-m", "pipeline", "choose", "--max-drop", "0.9"],
        [sys.executable, "-m", "pipeline", "ship", "int8-ptq", "shipped"],
        [sys.executable, "-m", "pytest", "-q", "tests/test_main.py", "tests/test_fingerprint.py"],
    ):
        done = subprocess.run(
            command, cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    assert list((checkout / "pipeline").rglob("*.pyc"))
    for name in (".plans.py.swp", "plans.py~", ".#plans.py", "#plans.py#"):
        (checkout / "pipeline" / "pruning" / name).write_text("an editor's file")
    assert "up to date" in status(checkout)
    assert stages_run(repro(checkout).stdout) == []

    # A comment in every file of the code: only the fingerprints are taken again, and are the same.
    for file in (checkout / "pipeline").rglob("*.py"):
        file.write_text(f"{file.read_text()}# A comment.\n")
    assert stages_run(repro(checkout).stdout) == ["check"]
    assert "up to date" in status(checkout)

    # A constant of the pruning code: the pruned variants and what follows. Their weights come out as before,
    # so that nothing is exported, scored or timed again.
    file = checkout / "pipeline" / "pruning" / "masks.py"
    file.write_text(f"{file.read_text()}\nUNUSED = 1\n")
    again = repro(checkout)
    assert again.returncode == 0, again.stderr[-2000:]
    assert set(stages_run(again.stdout)) - {"cost", "report", "track"} == {
        "check",
        "build@pruned-50",
        "sensitivity",
    }

    # A damaged store is made anew, and as it was: nothing after it runs.
    store = checkout / "artifacts/labels/answers.npy"
    stored = store.read_bytes()
    store.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    refused = subprocess.run(
        [sys.executable, "-m", "pipeline.stages.distill", "fp32"],
        cwd=checkout,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "answers.npy" in refused.stderr
    assert "`dvc repro label`" in refused.stderr
    assert stages_run(repro(checkout).stdout) in ([], ["label"])  # DVC may have it in its cache
    assert store.read_bytes() == stored

    # The file answers as reported, with onnxruntime, numpy and pillow alone.
    metrics = json.loads((checkout / "artifacts/metrics/int8-qat.json").read_text())
    session = ort.InferenceSession(checkout / "artifacts/onnx/int8-qat.onnx")
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    picture = photographs / labels[0] / "00.jpg"
    predicted = subprocess.run(
        [sys.executable, "-m", "pipeline", "predict", "--json", "artifacts/onnx/int8-qat.onnx", str(picture)],
        cwd=checkout,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    image = Image.open(picture).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    pixels = image.resize((64, 64), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    logits = np.asarray(session.run(["logits"], {"images": np.asarray(pixels)[None]})[0])
    assert json.loads(predicted.stdout)[0]["classes"][0]["label"] == labels[int(logits.argmax())]
    assert metrics["n"] == 14  # a fifth of 72

    # A changed variant reruns its own cone; an added one is YAML only.
    values = yaml.safe_load((checkout / "params.yaml").read_text())
    values["variants"]["pruned-50"]["multiple"] = 8
    values["variants"]["pruned-70"] = {"parent": "fp32", "op": "prune", "macs": 0.3}
    (checkout / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    before = entries(checkout)
    changed = repro(checkout)
    assert changed.returncode == 0, changed.stderr[-2000:]
    cone = {
        f"{stage}@{v}"
        for stage in ("build", "export", "evaluate")
        for v in ("pruned-50", "pruned-50-int8", "pruned-70")
    }
    compared = {"benchmark", "compare", "cost", "probe", "explain", "sensitivity", "report", "track"}
    assert set(stages_run(changed.stdout)) == {"check", *cone, *compared}
    # The others' entries are used again: they are what they were, times included.
    measured = [line for line in changed.stdout.splitlines() if line.startswith("measured: ")]
    assert sorted(measured) == [
        "measured: nothing; as before: fp32",  # the one student of which layers are measured
        *["measured: pruned-50, pruned-50-int8, pruned-70; as before: fp32, int8-ptq, int8-qat"] * 3,
    ]
    after = entries(checkout)
    for name in ("fp32", "int8-ptq", "int8-qat"):
        assert after[name] == before[name]

    # Without it again, nothing is measured; measured from nothing, all comes out as it is.
    del values["variants"]["pruned-70"]
    (checkout / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    removed = repro(checkout)
    assert removed.returncode == 0, removed.stderr[-2000:]
    measured = [line for line in removed.stdout.splitlines() if line.startswith("measured: ")]
    assert len(measured) == 4
    assert all(line.startswith("measured: nothing; ") for line in measured)
    reused = {file: (checkout / "artifacts" / file).read_bytes() for file in ANEW}
    for file in ANEW:
        (checkout / "artifacts" / file).unlink()
    assert repro(checkout).returncode == 0
    assert {file: (checkout / "artifacts" / file).read_bytes() for file in ANEW} == reused
    values["variants"]["pruned-70"] = {"parent": "fp32", "op": "prune", "macs": 0.3}

    # A misspelt key ends the run before any work.
    values["variants"]["pruned-70"]["mcas"] = 0.2
    (checkout / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    wrong = repro(checkout)
    assert wrong.returncode != 0
    assert "variants.pruned-70.mcas: no such key; did you mean `macs`?" in wrong.stderr
    assert stages_run(wrong.stdout) == ["check"]
