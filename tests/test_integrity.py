"""A file that is not the one on record is not used as if it were."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline import paths, provenance
from pipeline.selection import table
from pipeline.shipping import integrity
from pipeline.shipping.integrity import IntegrityError
from tests import tiny_onnx
from tests.command import run
from tests.rows import row

DATA = "1" * 64
METADATA = {
    "labels": json.dumps(tiny_onnx.LABELS),
    "input": json.dumps({"size": tiny_onnx.SIZE, "interpolation": "bilinear", "crop": 1.0}),
    "variant": "tiny",
    "data_sha256": DATA,
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The exported file of a variant in a working folder without any record of it."""
    repository = Path(__file__).parents[1]
    (tmp_path / paths.PARAMETERS).write_text((repository / paths.PARAMETERS).read_text())
    monkeypatch.chdir(tmp_path)
    for folder in (paths.ONNX, paths.METRICS, paths.REPORT, paths.DATA):
        folder.mkdir(parents=True)
    (paths.DATA / "report.json").write_text(json.dumps({"data_sha256": DATA}))
    Image.new("RGB", (20, 10), (255, 0, 0)).save("red.png")
    return tiny_onnx.write(paths.onnx("tiny"), metadata=METADATA)


def in_metrics(model: Path) -> None:
    paths.metrics("tiny").write_text(json.dumps({"sha256": provenance.sha256(model)}))


def in_the_table(model: Path) -> None:
    table.write(paths.VARIANTS, [row("tiny", score=0.9, sha256=provenance.sha256(model))])


def in_the_lock_file(model: Path) -> None:
    out = {"path": str(model), "md5": integrity._md5(model)}
    paths.LOCK.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"export@tiny": {"outs": [out]}}}))


RECORDS = {"metrics": in_metrics, "table": in_the_table, "lock file": in_the_lock_file}


def flip(model: Path, target: Path | None = None) -> Path:
    """Write a file with another bit in the middle of a weight."""
    content = bytearray(model.read_bytes())
    weight = content.index(b"\x00\x00\x80\x3d")  # 1 / 16
    content[weight + 2] ^= 0x40
    target = target or model
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("command", ["predict tiny red.png", "ship tiny out", "predict {} red.png"])
def test_a_damaged_file_is_one_line(
    model: Path,
    record: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    RECORDS[record](model)
    assert run(monkeypatch, command.format(model)) == 0
    assert str(model) not in capsys.readouterr().err
    flip(model)
    assert run(monkeypatch, command.format(model).replace("out", "other")) == 1
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert out == ""
    assert str(model) in line
    assert not Path("other").exists()


def test_a_damaged_file_gets_into_no_demo(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fp32", "pruned-50", "int8-ptq", "int8-qat", "pruned-50-int8"):
        paths.onnx(name).write_bytes(model.read_bytes())
        paths.metrics(name).write_text(json.dumps({"sha256": provenance.sha256(model)}))
    flip(paths.onnx("int8-qat"))
    assert run(monkeypatch, "demo --build --folder demo") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "int8-qat" in line


@pytest.mark.parametrize("record", RECORDS)
def test_a_damaged_copy_is_noticed_and_not_shipped(
    model: Path, record: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    RECORDS[record](model)
    Path("copies").mkdir()
    Path("copies/good.onnx").write_bytes(model.read_bytes())
    flip(model, Path("copies/bad.onnx"))
    assert run(monkeypatch, "predict copies/good.onnx red.png") == 0
    assert capsys.readouterr().err == ""
    assert run(monkeypatch, "predict copies/bad.onnx red.png") == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: copies/bad.onnx")
    assert "damaged" in line
    assert run(monkeypatch, "ship copies/good.onnx good") == 0
    capsys.readouterr()
    assert run(monkeypatch, "ship copies/bad.onnx bad") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "copies/bad.onnx" in line
    assert not Path("bad").exists()


def test_a_file_of_other_data_or_of_no_run_is_used_with_a_note(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_metrics(model)
    for number, metadata in enumerate(({**METADATA, "data_sha256": "2" * 64}, {**METADATA, "variant": "x"})):
        tiny_onnx.write(Path("other.onnx"), metadata=metadata)
        for command in ("predict other.onnx red.png", f"ship other.onnx out{number}"):
            assert run(monkeypatch, command) == 0
            assert capsys.readouterr().err.startswith("note: other.onnx could not be verified")


def test_a_shipped_folder_vouches_for_its_files(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "ship tiny out") == 0
    tiny_onnx.write(model, metadata={**METADATA, "note": "a later run"})
    in_metrics(model)
    capsys.readouterr()
    assert run(monkeypatch, "predict out/tiny.onnx red.png") == 0
    assert capsys.readouterr().err == ""
    flip(Path("out/tiny.onnx"))
    assert run(monkeypatch, "predict out/tiny.onnx red.png") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "out/SHA256SUMS" in line


def test_a_file_that_is_newer_than_its_figures_is_known_by_the_lock_file(model: Path) -> None:
    in_metrics(model)
    tiny_onnx.write(model, metadata={**METADATA, "note": "a later run"})
    with pytest.raises(IntegrityError, match=r"tiny\.onnx"):
        integrity.check(model, METADATA)
    in_the_lock_file(model)
    assert integrity.check(model, METADATA) is None


@pytest.mark.parametrize(
    "content", ["", "[", "[]", "{}", '{"sha256": 1}', "stages: 3", "stages: {export@tiny: }"]
)
def test_a_damaged_record_is_no_record(model: Path, content: str) -> None:
    paths.metrics("other").write_text(content)
    paths.VARIANTS.write_text(content)
    paths.LOCK.write_text(content)
    assert str(integrity.check(model, METADATA)).startswith(str(model))
