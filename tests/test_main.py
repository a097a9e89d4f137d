import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline import __main__ as command_line
from tests import tiny_onnx


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    picture = tmp_path / "red.png"
    Image.new("RGB", (20, 10), (255, 0, 0)).save(picture)
    return tiny_onnx.write(tmp_path / "tiny.onnx"), picture


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
    command_line.main()


def test_predict_prints_labels_with_probabilities(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, picture = files
    run(monkeypatch, "predict", model, picture, "--json")
    [row] = json.loads(capsys.readouterr().out)
    assert row["image"] == str(picture)
    probabilities = [guess["probability"] for guess in row["classes"]]
    assert probabilities == sorted(probabilities, reverse=True)
    run(monkeypatch, "predict", model, picture, "--top", "1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(picture)
    assert lines[1].endswith(row["classes"][0]["label"])
    assert len(lines) == 2


@pytest.mark.parametrize(("model", "picture"), [("absent.onnx", "red.png"), ("tiny.onnx", "absent.png")])
def test_a_missing_file_is_one_line_and_a_status(
    model: str,
    picture: str,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = files[0].parent
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "predict", folder / model, folder / picture)
    assert caught.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "absent" in line
