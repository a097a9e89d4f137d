import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline import __main__ as command_line
from pipeline import paths, provenance
from tests import tiny_onnx

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TABLE = """variant,parent,top1,top1_lo,top1_hi,top1_delta,verdict,size_bytes,latency_ms_p50,sha256
fp32,teacher,0.89,0.88,0.90,-0.02,accept,7280000,2.8,{}
tiny,fp32,0.88,0.87,0.89,-0.01,accept,1990000,1.3,{}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root with a variant, its figures, and photographs."""
    repository = Path(__file__).parents[1]
    (tmp_path / paths.PARAMETERS).write_text((repository / paths.PARAMETERS).read_text())
    for file in (paths.onnx("tiny"), paths.VARIANTS):
        (tmp_path / file).parent.mkdir(parents=True)
    model = tiny_onnx.write(tmp_path / paths.onnx("tiny"))
    (tmp_path / paths.VARIANTS).write_text(TABLE.format("0" * 64, provenance.sha256(model)))
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 10), colour).save(tmp_path / "photos" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, arguments: str) -> int:
    """The exit status."""
    monkeypatch.setattr(sys, "argv", ["pipeline", *shlex.split(arguments)])
    try:
        command_line.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


@pytest.mark.usefixtures("root")
def test_predict_takes_a_variant_or_a_file_and_files_folders_or_patterns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in ("tiny", "artifacts/onnx/tiny.onnx"):
        for places in ("photos", "'photos/*.png'", "photos/blue.png photos/green.png photos/red.png"):
            assert run(monkeypatch, f"predict {model} {places} --json") == 0
            rows = json.loads(capsys.readouterr().out)
            assert [row["image"] for row in rows] == [
                f"photos/{name}.png" for name in ("blue", "green", "red")
            ]
            assert [row["classes"][0]["label"] for row in rows] == ["blue", "green", "red"]
            assert sum(guess["probability"] for guess in rows[0]["classes"]) == pytest.approx(1)


@pytest.mark.usefixtures("root")
def test_predict_prints_a_line_an_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "predict tiny photos --top 1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["photos/blue.png", "100.00%", "blue"],
        ["photos/green.png", "100.00%", "green"],
        ["photos/red.png", "100.00%", "red"],
    ]
    assert len({line.index("%") for line in lines}) == 1


def test_predict_names_what_it_cannot_read_goes_on_and_ends_with_a_status(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "photos" / "broken.jpg").write_bytes(b"no image")
    assert run(monkeypatch, "predict tiny absent.png photos 'no*.png' --json") == 1
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["classes"][0]["label"] for row in rows if "classes" in row] == ["blue", "green", "red"]
    assert [row["image"] for row in rows if "error" in row] == ["absent.png", "photos/broken.jpg", "no*.png"]
    assert err.splitlines() == [
        "error: absent.png does not exist",
        "error: photos/broken.jpg is not an image of a known format",
        "error: no*.png does not exist",
        "error: 3 of 6 could not be read",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("predict big photos", "big is no variant in artifacts/onnx (there: tiny) and no .onnx file"),
        ("predict absent.onnx photos", "absent.onnx does not exist"),
        ("ship tiny photos", "photos is there already and not empty; give a new folder"),
        ("choose --max-drop 2", "params.yaml: budget.max_drop = 2.0: must be less than or equal to 1"),
    ],
)
@pytest.mark.usefixtures("root")
def test_what_a_user_can_mend_is_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, line: str
) -> None:
    assert run(monkeypatch, arguments) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {line}\n")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("images", ["photos", "photos none.png"])
def test_a_reader_that_has_enough_ends_the_command_without_a_word(images: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pipeline", "predict", "tiny", *images.split(), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, env=environment, text=True, check=False
    )
    os.close(write)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if not line.startswith("error: ")] == []


@pytest.mark.usefixtures("root")
def test_choose_prints_the_variant_alone_and_the_reason_beside_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "choose --max-latency-ms 2") == 0
    out, err = capsys.readouterr()
    assert out == "tiny\n"
    assert err.startswith("tiny is the most accurate accepted variant within 2 ms: 88.00%")
    assert run(monkeypatch, "choose --max-drop 0.001 --max-size-bytes 2000000 --json") == 1
    choice = json.loads(capsys.readouterr().out)
    assert (choice["variant"], choice["closest"]) == (None, "tiny")
    assert choice["budget"] == {"max_drop": 0.001, "max_latency_ms": None, "max_size_bytes": 2000000}


def test_an_option_goes_before_the_budget_of_the_parameters(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / paths.PARAMETERS
    file.write_text(file.read_text().replace("max_drop: null", "max_drop: 0.001"))
    assert run(monkeypatch, "choose") == 0
    assert capsys.readouterr().out == "fp32\n"
    assert run(monkeypatch, "choose --max-drop 0.02") == 0
    assert capsys.readouterr().out == "tiny\n"


def test_ship_says_what_the_receiver_should_know(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "ship tiny out/tiny") == 0
    out, err = capsys.readouterr()
    assert "out/tiny/tiny.onnx" in out
    assert err == "note: artifacts/report/model_card.md does not exist, so there is no model card\n"
    (root / paths.REPORT / "model_card.md").write_text("# A card\n")
    table = root / paths.VARIANTS
    table.write_text(table.read_text().replace("-0.02,accept", "-0.02,reject"))
    assert run(monkeypatch, "ship tiny out/again") == 0
    assert capsys.readouterr().err == "note: the gate does not accept this variant and all its ancestors\n"
    table.write_text(TABLE.format("0" * 64, "1" * 64))
    assert run(monkeypatch, "ship tiny out/other") == 0
    assert capsys.readouterr().err == "note: artifacts/report/variants.csv has no figures of this file\n"
