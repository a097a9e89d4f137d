import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import __main__, paths, provenance
from pipeline.quantization import post_training
from pipeline.quantization.post_training import QuantizationTrial
from pipeline.running import process
from pipeline.selection import budget, table
from pipeline.selection.table import Row
from tests import tiny_onnx
from tests.command import run
from tests.rows import row

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def rows(tiny: str, **fp32: Any) -> list[Row]:
    """The table of variants, given the hash of the file ``tiny``."""
    return [
        row("fp32", score=0.89, milliseconds=2.8, size_bytes=7_280_000, **fp32),
        row("tiny", "fp32", 0.88, 1.3, 1_990_000, sha256=tiny, reference_delta=-0.01),
    ]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root with a variant, its figures, and photographs."""
    repository = Path(__file__).parents[1]
    (tmp_path / paths.PARAMETERS).write_text((repository / paths.PARAMETERS).read_text())
    (tmp_path / paths.ONNX).mkdir(parents=True)
    (tmp_path / paths.REPORT).mkdir()
    model = tiny_onnx.write(tmp_path / paths.onnx("tiny"))
    table.write(tmp_path / paths.VARIANTS, rows(provenance.sha256(model)))
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 10), colour).save(tmp_path / "photos" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("root")
def test_predict_takes_a_variant_or_a_file_and_files_folders_or_patterns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in ("tiny", "artifacts/onnx/tiny.onnx", "tiny --json --top 3"):
        for places in ("photos", "'photos/*.png'", "photos/blue.png photos/green.png photos/red.png"):
            assert run(monkeypatch, f"predict {model} {places} --json") == 0
            rows = json.loads(capsys.readouterr().out)
            assert [row["image"] for row in rows] == [
                f"photos/{name}.png" for name in ("blue", "green", "red")
            ]
            assert [row["classes"][0]["label"] for row in rows] == ["blue", "green", "red"]
            assert sum(guess["probability"] for guess in rows[0]["classes"]) == pytest.approx(1)


@pytest.mark.usefixtures("root")
def test_predict_prints_one_line_per_image(
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


def test_predict_names_what_it_cannot_read_and_exits_with_1(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "photos" / "broken.jpg").write_bytes(b"no image")
    assert run(monkeypatch, "predict tiny absent.png photos 'no*.png' --json") == 1
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["classes"][0]["label"] for row in rows if "classes" in row] == ["blue", "green", "red"]
    assert [row["image"] for row in rows if "error" in row] == ["absent.png", "photos/broken.jpg", "no*.png"]
    lines = err.splitlines()
    named = ["absent.png", "photos/broken.jpg", "no*.png", "3 of 6 images"]
    assert [line.startswith(f"error: {name}") for line, name in zip(lines, named, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("predict big photos", "'big' is neither a variant (tiny) nor an .onnx file"),
        ("predict absent.onnx photos", "absent.onnx does not exist"),
        ("ship tiny photos", "photos exists already and is not empty; choose a new folder"),
        (
            "choose --max-drop 2",
            "--max-drop = 2.0: this is a loss of 200 percentage points; must be less than 1; "
            "did you mean 0.02?",
        ),
    ],
)
@pytest.mark.usefixtures("root")
def test_errors_of_the_user_are_one_line_and_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, line: str
) -> None:
    assert run(monkeypatch, arguments) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {line}\n")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("images", ["photos", "photos none.png"])
def test_a_closed_pipe_ends_the_command_without_a_message(images: str) -> None:
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
def test_choose_prints_the_variant_to_stdout_and_the_reason_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "choose --max-latency-ms 2") == 0
    out, err = capsys.readouterr()
    assert out == "tiny\n"
    assert err.startswith("tiny is the fastest accepted variant within 2 ms: 88.00 %")
    assert run(monkeypatch, "choose --max-drop 0.001 --max-size-bytes 2000000 --json") == 1
    choice = json.loads(capsys.readouterr().out)
    assert (choice["variant"], choice["closest"]) == (None, "tiny")
    assert choice["budget"] == {
        "prefer": "speed",
        "max_drop": 0.001,
        "max_latency_ms": None,
        "max_size_bytes": 2000000,
    }


def test_an_option_takes_precedence_over_the_budget_in_the_parameters(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / paths.PARAMETERS
    file.write_text(file.read_text().replace("max_drop: null", "max_drop: 0.001"))
    assert run(monkeypatch, "choose") == 0
    assert capsys.readouterr().out == "fp32\n"
    assert run(monkeypatch, "choose --max-drop 0.02") == 0
    assert capsys.readouterr().out == "tiny\n"


def test_ship_notes_a_missing_card_missing_results_and_a_rejection(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "ship tiny out/tiny") == 0
    out, err = capsys.readouterr()
    assert "out/tiny/tiny.onnx" in out
    assert [line for line in err.splitlines() if str(paths.card("tiny")) in line] == err.splitlines()
    for variant in ("fp32", "tiny"):
        (root / paths.card(variant)).parent.mkdir(exist_ok=True)
        (root / paths.card(variant)).write_text(f"# The card of {variant}\n")
    digest = provenance.sha256(root / paths.onnx("tiny"))
    table.write(root / paths.VARIANTS, rows(digest, verdict="reject"))
    assert run(monkeypatch, "ship tiny out/again") == 0
    err = capsys.readouterr().err
    assert "gate" in err
    assert budget.why_rejected(table.read(root / paths.VARIANTS), "tiny") in err
    assert (root / "out/again/model_card.md").read_text().startswith("# The card of tiny\n")
    table.write(root / paths.VARIANTS, rows("1" * 64))
    assert run(monkeypatch, "ship tiny out/other") == 1
    assert "artifacts/onnx/tiny.onnx" in capsys.readouterr().err
    assert not (root / "out/other").exists()
    (root / paths.VARIANTS).unlink()
    assert run(monkeypatch, "ship tiny out/other") == 0
    assert "artifacts/report/variants.csv" in capsys.readouterr().err
    assert not (root / "out/other/model_card.md").exists()


def test_what_was_measured_is_listed_with_its_reasons_and_forgotten_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path))
    files = {
        paths.kernels(): '{"a machine": {"a layer": 1.5, "another": 2.5}}',
        paths.choice("float-layers", "1"): '{"layers": ["stem"], "reason": "because"}',
        paths.choice("pruning", "2"): '{"plans": [{"criterion": "l1", "shape": "uniform"}], "reason": "why"}',
        paths.choice("pruning", "3"): "[",
        paths.choice("ptq", "4"): post_training.TRIALS.dump_json(
            [
                QuantizationTrial((), 0.5, 0.9, 100, kept=True),
                QuantizationTrial(("equalisation",), 0.25, 0.9, 100, kept=True),
                QuantizationTrial(("equalisation", "bias_correction"), 0.5, 0.9, 100, kept=False),
            ]
        ).decode(),
        paths.timings("4"): "[]",
    }
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert run(monkeypatch, "measured") == 0
    lines = {line.split(": ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == {str(file) for file in [*files][:5]}
    assert "2 measurements" in lines[str(paths.kernels())]
    assert "stem; because" in lines[str(paths.choice("float-layers", "1"))]
    assert "l1, shape uniform; why" in lines[str(paths.choice("pruning", "2"))]
    assert "damaged" in lines[str(paths.choice("pruning", "3"))]
    assert "equalisation; the best of 3" in lines[str(paths.choice("ptq", "4"))]
    assert run(monkeypatch, "measured --forget") == 0
    assert [file.exists() for file in files] == [False] * 5 + [True]  # durations are no choices


def test_the_help_of_every_command_has_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert "  python -m pipeline choose" in text
    commands = re.findall(r"^    ([a-z]+)", text, re.MULTILINE)
    assert {"choose", "predict", "ship", "demo", "measured", "fetch", "params", "save", "tidy"} <= {*commands}
    for command in commands:
        assert run(monkeypatch, f"{command} --help") == 0
        assert f"example:\n  python -m pipeline {command}" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--version") == 0
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.split()[:2] == [project["name"], project["version"]]


@pytest.mark.usefixtures("root")
def test_ctrl_c_ends_a_command_with_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for place in ("pipeline.onnx.inference.predict", "pipeline.data.images.find"):
        with monkeypatch.context() as patched:
            patched.setattr(place, interrupt)
            assert run(monkeypatch, "predict tiny photos") == process.INTERRUPTED
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)


@pytest.mark.parametrize(
    ("text", "size"), [("2000000", 2_000_000), ("2MB", 2_000_000), ("1.5 MB", 1_500_000), ("2MiB", 2_097_152)]
)
def test_a_size_may_have_a_unit(text: str, size: int) -> None:
    assert __main__._bytes(text) == size


@pytest.mark.usefixtures("root")
def test_a_size_that_is_none_is_refused_with_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "choose --max-size-bytes small") == 2
    assert "2MB" in capsys.readouterr().err


@pytest.mark.usefixtures("root")
def test_the_variant_that_was_probably_meant_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "predict tinny photo.jpg") == 1
    assert "did you mean `tiny`?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        f"{'.'.join(file.parent.parts)}.{file.stem}"
        for folder in ("pipeline/stages", "pipeline/commands", "teachers")
        for file in sorted(Path(folder).glob("[!_]*.py"))
    ],
)
def test_a_module_imports_what_it_uses_itself(name: str) -> None:
    """In these tests, others have imported it before; a stage and a command begin with their own module."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
