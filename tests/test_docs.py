"""The documentation: pages that are generated are current, links resolve, and commands are those of the code.

Blocks fenced as `bash` hold commands that are run or checked here; `console` shows what depends on a server
or on another environment. The commands of the tutorial are executed: those that need no training on a
prepared folder of artifacts, and all of them on small photographs in the slow test.
"""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from argparse import Namespace
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from dvc.utils.hydra import compose_and_dump
from PIL import Image

from benchmarks import results_page
from pipeline import __main__ as command_line
from pipeline import parameters, paths, provenance
from pipeline.selection import table
from tests import tiny_onnx
from tests.rows import row

ROOT = Path(__file__).parents[1]
GENERATED = {"docs/parameters.md"}
"""Pages whose form is held by other tests."""
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if str(path.relative_to(ROOT)) not in GENERATED
)
WRITTEN = {"configs/run.yaml", "configs/run.yaml.previous"}
"""Files that commands write."""
TUTORIAL = Path("docs/tutorial.md")
VARIANTS = ("fp32", "int8-ptq", "int8-qat", "pruned-50", "pruned-50-int8")
CLASSES = {"dress": (220, 40, 60), "hat": (40, 170, 60), "pants": (50, 60, 210)}
WIDTH = 100

PATH = re.compile(r"`((?:pipeline|teachers|students|configs|benchmarks|tests|docs)/[\w./-]*)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

SMALL = {
    "student.size": "64",
    "teacher.size": "64",
    "teacher.full.phases": "[]",
    "teacher.full.batch_size": "16",
    "teacher.full.epochs": "1",
    "teacher.head.batch_size": "16",
    "teacher.head.epochs": "1",
    "views.per_image": "2",
    "distill.batch_size": "16",
    "distill.epochs": "2",
    "prune.batch_size": "16",
    "prune.epochs": "1",
    "prune.criterion": "l1",
    "prune.shape": "uniform",
    "quantize.batch_size": "16",
    "quantize.epochs": "1",
    "quantize.calibration": "16",
    "quantize.float_layers": "[]",
    "quantize.ptq": "[]",
    "evaluation.parity": "8",
    "gate.distill.max_drop": "1",
    "gate.prune.max_drop": "1",
    "gate.quantize.max_drop": "1",
    "benchmark.sessions": "2",
    "benchmark.seconds": "1",
    "probe.corrupted": "2",
    "probe.attacked": "2",
    "probe.steps": "2",
    "probe.out_of_distribution_images": "4",
    "sensitivity.images": "6",
}
"""What the slow test changes in the tutorial's training, to make it one of minutes."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str

    def commands(self) -> list[list[str]]:
        """The words of every command, continued lines joined and comments left out."""
        joined = re.sub(r"(^|\s)#.*$", "", self.text.replace("\\\n", " "), flags=re.MULTILINE)
        lexer = shlex.shlex(joined, posix=True, punctuation_chars=";|&\n")
        lexer.whitespace = " \t"
        lexer.whitespace_split = True
        commands: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set(";|&\n"):
                commands.append([])
            else:
                commands[-1].append(word)
        return [command for command in commands if command]


def blocks(page: Path, *languages: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [Block(page, language, body) for language, body in BLOCK.findall(text) if language in languages]


def commands(*start: str) -> list[tuple[str, list[str]]]:
    """Every command of a `bash` block that begins with these words, with the page that it stands on."""
    found = [
        (str(page), command)
        for page in PAGES
        for block in blocks(page, "bash")
        for command in block.commands()
        if command[: len(start)] == list(start)
    ]
    assert found, f"no page has a command {' '.join(start)}"
    return found


def prose(page: Path) -> str:
    return BLOCK.sub("", (ROOT / page).read_text())


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[`*]", "", title).lower() for title in titles)
    return {
        "".join(
            letter for letter in title if letter in " -_" or unicodedata.category(letter)[0] in "LN"
        ).replace(" ", "-")
        for title in plain
    }


def test_the_results_page_and_the_readme_say_what_the_data_files_say() -> None:
    assert results_page.PAGE.read_text() == results_page.page()
    assert results_page.README.read_text() == results_page.readme(results_page.README.read_text())


@pytest.mark.parametrize("name", results_page.SECTIONS)
def test_every_measurement_has_its_conditions_and_a_record(name: str) -> None:
    section = json.loads((results_page.RESULTS / f"{name}.json").read_text())
    machines = json.loads(results_page.MACHINES.read_text())
    assert section["measurements"]
    for measurement in section["measurements"]:
        assert date.fromisoformat(measurement["date"]) <= date.today()
        assert measurement["machine"] in machines or "Xeon" in measurement["machine"]
        for key in ("title", "images", "interval", "seeds", "versions", "command"):
            assert measurement[key], (measurement["title"], key)
        assert (results_page.RESULTS / measurement["record"]).is_file()
        assert measurement["rows"]
        for cells in measurement["rows"]:
            assert len(cells) == len(measurement["columns"]), (measurement["title"], cells)


def test_a_run_is_recorded_with_its_machine_versions_and_intervals(tmp_path: Path) -> None:
    for folder in ("report", "teacher", "data"):
        (tmp_path / folder).mkdir()
    measured = row(
        "fp32",
        score=0.8946,
        milliseconds=3.81,
        size_bytes=7_276_000,
        score_lo=0.8884,
        score_hi=0.9005,
        score_delta=-0.0209,
        delta_lo=-0.0257,
        delta_hi=-0.0162,
        macs=238_500_000,
        val_score=0.906,
    )
    table.write(tmp_path / "report/variants.csv", [measured])
    benchmark = {
        "variants": {"fp32": {"ratio": 1.0, "ratio_lo": 0.99, "ratio_hi": 1.01}},
        "machine": {
            "cpu": "A processor",
            "flags": ["avx2", "avx512_vnni"],
            "cores_usable": 2,
            "memory_bytes": 24 * 2**30,
            "versions": {"python": "3.12.1"},
        },
        "noise": {"reasons": []},
        "settings": {"sessions": 8},
    }
    (tmp_path / "benchmark.json").write_text(json.dumps(benchmark))
    teacher = {"val": {"top1": 0.9235}, "test": {"top1": 0.9155}}
    (tmp_path / "teacher/card.json").write_text(json.dumps(teacher))
    (tmp_path / "data/report.json").write_text(
        json.dumps({"images": {"train": 24000, "val": 2000, "test": 10000}})
    )
    run = results_page.record(tmp_path, minutes=31, today=date(2026, 11, 26))
    assert run["variants"] == [
        {
            "variant": "fp32",
            "parent": "teacher",
            "val": 90.6,
            "score": [89.46, 88.84, 90.05],
            "delta": [-2.09, -2.57, -1.62],
            "verdict": "accept",
            "megabytes": 7.276,
            "macs_million": 238.5,
            "latency_ms": 3.81,
            "speed": [1.0, 0.99, 1.01],
        }
    ]
    assert run.keys() == json.loads(results_page.DEFAULT_RUN.read_text()).keys()
    assert (run["minutes"], run["machine"]["noise"], run["versions"]["python"]) == (31, "quiet", "3.12.1")


def test_the_readme_fits_on_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_lines_are_short_enough_to_read_without_wrapping(page: Path) -> None:
    """Tables, URLs and entries of a table of contents may be longer."""
    long = [
        line
        for line in (ROOT / page).read_text().splitlines()
        if len(line) > WIDTH and not line.startswith(("|", "- [")) and "](" not in line and "://" not in line
    ]
    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_pictures_resolve(page: Path) -> None:
    text = prose(page)
    broken = []
    for link in LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.resolve().relative_to(ROOT))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parts[:2] != ("docs", "results")], ids=str)
def test_files_that_are_named_exist(page: Path) -> None:
    """Records keep the names of their day, and so do superseded decisions in the words around a path."""
    named = {path for path in PATH.findall(prose(page)) if "..." not in path}
    assert {path for path in named - WRITTEN if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_code_in_python_is_code(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block.text, filename=str(page))


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (str(page), target)
        for page in PAGES
        for target in re.findall(r"\bmake ([a-z][a-z-]*)(?=[`\s])", _code(page))
    }
    assert {target for _, target in named} >= {"repro", "tiny", "test"}
    assert {(page, target) for page, target in named if target not in targets} == set()


def test_every_module_that_a_command_names_exists() -> None:
    named = {module for page in PAGES for module in re.findall(r"python -m ([\w.]+)", _code(page))}
    ours = {module for module in named if module.split(".")[0] in ("pipeline", "benchmarks")}
    assert ours >= {"pipeline", "benchmarks.results_page"}
    assert {module for module in ours if importlib.util.find_spec(module) is None} == set()


def _code(page: Path) -> str:
    """All code of a page: its blocks and its spans, records apart."""
    if page.parts[:2] == ("docs", "results"):
        return ""
    text = (ROOT / page).read_text()
    spans = "\n".join(re.findall(r"`[^`]+`", BLOCK.sub("", text)))
    return "\n".join([spans, *(body for _, body in BLOCK.findall(text))]) + "\n"


@pytest.mark.parametrize(("page", "words"), commands("python", "-m", "pipeline"))
def test_every_command_of_the_command_line_is_understood(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Namespace] = []
    for module in [value for value in vars(command_line).values() if hasattr(value, "run")]:
        monkeypatch.setattr(module, "run", ran.append)
    monkeypatch.setattr(sys, "argv", ["pipeline", *words[3:]])
    command_line.main()
    assert len(ran) == 1, page


@pytest.mark.parametrize(("page", "words"), commands("dvc", "exp", "run"))
def test_every_override_composes_and_passes_all_checks(
    page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "photos/été [2024], all", "artifacts/raw/fashion-mnist"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("best.pth", "mine.onnx", "properties.csv"):
        (tmp_path / file).touch()
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    overrides = [words[number + 1] for number, word in enumerate(words) if word == "-S"]
    assert overrides, page
    if "--queue" in words:
        # A grid: every value is one experiment; here the first of each.
        overrides = [re.sub(r"(=[\w.]+)(,[\w.]+)+$", r"\1", override) for override in overrides]
    compose_and_dump(str(tmp_path / "params.yaml"), str(tmp_path / "configs"), None, "config", "", overrides)
    composed = parameters.load(tmp_path / "params.yaml")
    assert composed.variants


def test_every_variant_that_is_shown_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts/raw/fashion-mnist").mkdir(parents=True)
    shown = [yaml.safe_load(block.text) for page in PAGES for block in blocks(page, "yaml")]
    assert shown
    for variants in shown:
        assert (
            parameters.load(ROOT / "params.yaml", {"variants": variants}).variants.keys() >= variants.keys()
        )


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with the artifacts of a finished run, of the smallest files that can be, and photographs."""
    labels = tuple(CLASSES)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "artifacts/onnx").mkdir(parents=True)
    (tmp_path / "artifacts/report/cards").mkdir(parents=True)
    rows = []
    for number, variant in enumerate(VARIANTS):
        metadata = {
            "labels": json.dumps(labels),
            "input": json.dumps({"size": tiny_onnx.SIZE, "crop": 1.0, "interpolation": "bilinear"}),
            "task": "image-classification",
            "variant": variant,
        }
        file = tiny_onnx.write(tmp_path / paths.onnx(variant), metadata=metadata)
        (tmp_path / paths.card(variant)).write_text(f"# {variant}\n")
        parent = "teacher" if variant == "fp32" else "pruned-50" if variant == "pruned-50-int8" else "fp32"
        size, milliseconds = 7_000_000 - number * 1_500_000, 3.0 - number / 2
        digest = provenance.sha256(file)
        rows.append(row(variant, parent, size_bytes=size, milliseconds=milliseconds, sha256=digest))
    table.write(tmp_path / paths.VARIANTS, rows)
    write_photographs(tmp_path / "photos", 4)
    return tmp_path


def write_photographs(root: Path, count: int) -> None:
    """A folder for each class; the class is the colour."""
    random = np.random.default_rng(0)
    for label, colour in CLASSES.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            height, width = random.integers(24, 56, size=2)
            pixels = np.clip(np.asarray(colour) + random.normal(0, 30, (height, width, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{number:02}.jpg", quality=95)


def run(script: str, folder: Path) -> str:
    """The output of a script in a folder, once it has ended well."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GIT_AUTHOR_NAME": "A reader",
        "GIT_AUTHOR_EMAIL": "reader@localhost",
        "GIT_COMMITTER_NAME": "A reader",
        "GIT_COMMITTER_EMAIL": "reader@localhost",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def without_training(text: str) -> bool:
    return "dvc " not in text and "pipeline run" not in text and "activate" not in text


def test_the_tutorial_uses_the_files_of_a_finished_run(finished: Path) -> None:
    scripts = [block.text for block in blocks(TUTORIAL, "bash") if without_training(block.text)]
    outputs = [run(script, finished) for script in scripts]
    named = " ".join(scripts)
    assert all(f"python -m pipeline {command}" in named for command in ("predict", "choose", "ship"))
    predicted = next(o for s, o in zip(scripts, outputs, strict=True) if "pipeline predict" in s)
    assert set(re.findall(r"\b(?:dress|hat|pants)\b", predicted)) <= set(CLASSES)
    assert predicted.count("%")
    assert (finished / "out/SHA256SUMS").is_file()


def test_the_lines_of_python_that_use_a_file_say_what_predict_says(finished: Path) -> None:
    [snippet] = [b.text for b in blocks(Path("docs/shipping.md"), "python") if "InferenceSession" in b.text]
    run("python -m pipeline ship int8-ptq out/", finished)
    shutil.copy(finished / "photos/hat/00.jpg", finished / "out/photo.jpg")
    (finished / "out/snippet.py").write_text(snippet)
    label = run("cd out && python snippet.py", finished).strip()
    predicted = run("python -m pipeline predict int8-ptq out/photo.jpg --json", finished)
    assert label == json.loads(predicted)[0]["classes"][0]["label"]


def with_small_settings(block: Block) -> str:
    """The script of a block with settings for minutes."""
    small = " ".join(f"'{key}={value}'" for key, value in SMALL.items())
    text = block.text.replace("\\\n", " ")
    return re.sub(r"^(python -m pipeline run \S+ .*)$", rf"\1 {small}", text, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_goes_from_photographs_to_a_shipped_file(tmp_path: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "dvc.lock").unlink(missing_ok=True)
    write_photographs(tmp_path / "photos", 24)
    run("git init -q && git add -A && git commit -qm start", tmp_path)
    for block in blocks(TUTORIAL, "bash"):
        if "activate" not in block.text:
            run(with_small_settings(block), tmp_path)
    assert (tmp_path / "artifacts/report/report.html").is_file()
    assert (tmp_path / "out/SHA256SUMS").is_file()
