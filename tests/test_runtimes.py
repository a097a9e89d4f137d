"""The comparison of runtimes: a process per runtime, and a table that says why one is missing."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import runtimes
from pipeline import paths
from tests import tiny_onnx

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file, `fp32`, and with images of one colour each."""
    paths_onnx = tmp_path / paths.onnx("fp32")
    paths_onnx.parent.mkdir(parents=True)
    tiny_onnx.write(paths_onnx)
    images = np.zeros((6, tiny_onnx.SIZE, tiny_onnx.SIZE, 3), np.uint8)
    for number in range(6):
        images[number, ..., number % 3] = 200
    np.save(tmp_path / "images.npy", images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_a_runtime_answers_and_is_timed_in_a_process_of_its_own(run: Path) -> None:
    worker = runtimes.Worker("onnxruntime", run / "none", run, threads=1)
    opened = worker.ask(open=["fp32", "int8"])
    assert opened["sizes"] == {"fp32": (run / paths.onnx("fp32")).stat().st_size}
    assert "int8" in opened["reasons"]["int8"]
    reply = worker.ask(answer="fp32")
    assert np.load(run / reply["file"]).argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    assert worker.ask(time="fp32")["seconds"] > 0
    assert "error" in worker.ask(time="int8")
    worker.close()


def test_a_runtime_that_is_not_installed_is_a_reason_and_not_the_end(run: Path) -> None:
    worker = runtimes.Worker("openvino", run / "none", run, threads=1)
    opened = worker.ask(open=["fp32"])
    assert not opened.get("sizes")
    assert "openvino" in opened.get("error", "") + str(opened.get("reasons"))
    worker.close()


def test_the_table_has_a_row_per_variant_and_runtime() -> None:
    figures = {"top1": 0.9, "low": 0.88, "high": 0.92, "agreement": 0.995, "logits": 0.01}
    timing = {"ratio": 0.4, "quartiles": [0.39, 0.42]}
    result = {
        "n": 1000,
        "runtimes": {
            "onnxruntime": {"version": "1", "sizes": {"int8": 2_000_000}, "reasons": {}},
            "ncnn": {"version": "2", "sizes": {}, "reasons": {"int8": "no integers"}},
            "openvino": {"error": "not installed"},
        },
        "answers": {"onnxruntime": {"int8": figures}},
        "latency": {"1": {"onnxruntime": {"int8": timing}}},
    }
    head, rule, *rows = runtimes.table(result, ["int8"]).splitlines()
    assert "1 thread" in head
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    assert [cell.strip() for cell in rows[0].split("|")[1:-1]] == [
        "int8",
        "onnxruntime 1",
        "90.00 (88.00 to 92.00)",
        "99.5",
        "0.01",
        "2.00",
        "0.40 (0.39 to 0.42)",
    ]
    assert "no integers" in rows[1]
    assert "not installed" in rows[2]
