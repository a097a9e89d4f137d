"""What is left of a process that was killed, and what the next one does about it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline import paths
from pipeline.running import dvc_parent, locks, process
from pipeline.running.locks import BusyError

ROOT = Path(__file__).parents[1]
DVC = Path(sys.executable).parent / "dvc"
WITHOUT_DVC = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}


@contextmanager
def start(*command: str | Path, folder: Path, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """A process, which is killed at the end."""
    environment = {**WITHOUT_DVC, "PYTHONPATH": str(ROOT), **variables}
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def gone(number: int, seconds: float = 20.0) -> bool:
    """Whether a process ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


STAGE = """
import os, sys, time
open("number", "w").write(str(os.getpid()))
import pipeline
open("imported", "w").write("")
time.sleep(120)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A DVC project of one stage that imports the pipeline and waits."""
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(
        f"stages: {{wait: {{cmd: '{sys.executable} stage.py', outs: [imported]}}}}\n"
    )
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    return tmp_path


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 300
    while not file.exists() or not (file.read_text() or file.name == "imported"):
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("moment", ["number", "imported"])
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_stage_ends_when_dvc_is_killed_before_or_after_its_first_import(
    project: Path, moment: str, shell: str
) -> None:
    variables = {"SHELL": shell, "DVC_SITE_CACHE_DIR": str(project / "site")}
    with start(DVC, "repro", folder=project, **variables) as dvc:
        wait_for(project / moment)
        number = int((project / "number").read_text())
        dvc.kill()
    assert gone(number)


def test_a_stage_goes_on_as_long_as_dvc_does(project: Path) -> None:
    with start(DVC, "repro", folder=project, DVC_SITE_CACHE_DIR=str(project / "site")) as dvc:
        wait_for(project / "imported")
        time.sleep(3 * dvc_parent.POLL_SECONDS)
        number = int((project / "number").read_text())
        assert psutil.pid_exists(number)
        assert dvc.poll() is None
        dvc.kill()
    assert gone(number)


IN_PYTHON = "from dvc.repo import Repo; Repo().reproduce()"


def test_a_stage_runs_and_ends_with_a_program_that_uses_dvc_as_a_library(project: Path) -> None:
    variables = {"DVC_SITE_CACHE_DIR": str(project / "site")}
    with start(sys.executable, "-c", IN_PYTHON, folder=project, **variables) as program:
        wait_for(project / "imported")
        number = int((project / "number").read_text())
        assert psutil.pid_exists(number)
        program.kill()
    assert gone(number)


def test_a_stage_whose_dvc_has_ended_before_its_first_line_does_nothing(tmp_path: Path) -> None:
    with start(
        sys.executable, "-m", "pipeline.stages.prepare", folder=tmp_path, DVC_STAGE="prepare"
    ) as stage:
        out, err = stage.communicate(timeout=60)
    assert stage.returncode == 1
    assert out == ""
    assert re.fullmatch(r"error: .*DVC.*\n", err)
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from pipeline.running import locks
with locks.alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds `work.lock`."""
    with start(sys.executable, "-c", HOLD, tmp_path / "work.lock", folder=tmp_path) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        yield other
        other.kill()


def test_work_is_done_by_one_process_at_a_time_and_the_other_is_named(
    holder: "subprocess.Popen[str]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "TAKEOVER_SECONDS", 0.2)
    file = tmp_path / "work.lock"
    with (
        pytest.raises(BusyError, match=rf"process {holder.pid} \(.*python.*work\.lock") as caught,
        locks.alone(file),
    ):
        pass
    assert len(str(caught.value).splitlines()) == 1
    holder.kill()
    holder.wait()
    with locks.alone(file):
        assert file.read_text().startswith(f"{os.getpid()} ")


def test_the_work_of_a_killed_process_is_taken_over(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    with locks.alone(tmp_path / "work.lock"):
        pass


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (["distill", "fp32"], ["distill", "fp32"], True),
        (["distill", "fp32"], ["prune", "fp32"], True),
        (["quantize", "int8"], ["distill", "int8"], True),
        (["distill", "fp32"], ["distill", "wide"], False),
        (["export", "fp32"], ["evaluate", "fp32"], False),
        (["prepare"], ["prepare"], True),
    ],
)
def test_stages_that_write_the_same_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, first: list[str], second: list[str], same: bool
) -> None:
    works = []
    for script, *arguments in (first, second):
        program = type("Program", (), {"__spec__": type("Spec", (), {"name": f"pipeline.stages.{script}"})})
        monkeypatch.setitem(sys.modules, "__main__", program)
        monkeypatch.setattr(sys, "argv", ["stage", *arguments])
        works.append(process._work())
    assert (works[0] == works[1]) == same


SECOND = """
from pipeline.running import locks, process

locks.TAKEOVER_SECONDS = 0.1

def main(variant: str) -> None:
    "Do what distill.py does."

with process.stage():
    print("ran")
"""


def test_of_two_stages_that_run_at_once_the_second_says_who_is_at_work(tmp_path: Path) -> None:
    (tmp_path / "distill.py").write_text(SECOND)
    with start(sys.executable, "-c", HOLD, paths.LOCKS / "build-fp32.lock", folder=tmp_path) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with start(sys.executable, "distill.py", "fp32", folder=tmp_path) as second:
            out, err = second.communicate(timeout=120)
        with start(sys.executable, "distill.py", "wide", folder=tmp_path) as third:
            assert third.communicate(timeout=120) == ("ran\n", "")
        other.kill()
    assert second.returncode == 1
    assert out == ""
    assert re.fullmatch(rf"error: process {other.pid} .*\n", err)


FAKE = """#!/bin/sh
case "$2" in *version_info*) exit {status};; esac
case "$1" in --version) echo "Python {version}"; exit 0;; esac
exec {python} "$@"
"""


def fake_python(file: Path, version: str, supported: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FAKE.format(status=0 if supported else 1, version=version, python=sys.executable))
    file.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout with the Makefile, and with no package to install."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text("")
    return tmp_path


def make(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in WITHOUT_DVC.items() if not name.startswith(("MAKE", "PY"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    """The only line of an error, beside what make adds."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make:")]
    assert done.returncode != 0
    assert len(lines) == 1, done.stderr
    assert all(version in lines[0] for version in ("3.11", "3.12", "3.13"))
    return lines[0]


@pytest.mark.parametrize("version", ["3.9.1", "3.10.14", "3.14.0", "2.7.18"])
def test_another_python_is_refused_in_one_line_and_nothing_is_made(bare: Path, version: str) -> None:
    fake_python(bare / "bin" / "python", version, supported=False)
    assert str(bare / "bin") in one_line(make(bare, "install", f"PYTHON={bare / 'bin' / 'python'}"))
    assert not (bare / ".venv").exists()


@pytest.mark.parametrize("version", ["3.10.14", "3.14.0"])
@pytest.mark.parametrize("installed", [True, False])
def test_an_environment_of_another_python_is_refused_in_one_line_and_left_as_it_is(
    bare: Path, version: str, installed: bool
) -> None:
    fake_python(bare / ".venv" / "bin" / "python", version, supported=False)
    if installed:
        (bare / ".venv" / "installed").touch()
        os.utime(bare / "requirements.lock", (0, 0))
    before = sorted(bare.rglob("*"))
    assert version in one_line(make(bare, "install"))
    assert sorted(bare.rglob("*")) == before


def test_an_environment_whose_python_was_removed_is_refused_or_made_anew(bare: Path) -> None:
    (bare / ".venv" / "bin").mkdir(parents=True)
    (bare / ".venv" / "bin" / "python").symlink_to(bare / "removed")
    (bare / ".venv" / "installed").touch()
    os.utime(bare / "requirements.lock", (0, 0))
    assert ".venv" in one_line(make(bare, "install"))


@pytest.mark.slow
def test_an_installation_that_is_killed_at_any_moment_is_finished_by_the_next(bare: Path) -> None:
    arguments = ("install", f"PYTHON={sys.executable}")
    began = time.monotonic()
    done = make(bare, *arguments)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    programs = sorted(file.name for file in (bare / ".venv" / "bin").iterdir())
    for share in (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95):
        shutil.rmtree(bare / ".venv")
        with subprocess.Popen(
            ["make", *arguments],
            cwd=bare,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as killed:
            time.sleep(share * seconds)
            os.killpg(killed.pid, signal.SIGKILL)
        done = make(bare, *arguments)
        assert done.returncode == 0, (share, done.stderr)
        assert sorted(file.name for file in (bare / ".venv" / "bin").iterdir()) == programs
        version = subprocess.run([bare / ".venv/bin/pip", "list"], capture_output=True, text=True, check=True)
        assert "pip" in version.stdout


def test_a_package_of_pip_that_is_half_there_is_made_anew(bare: Path) -> None:
    """As when the process is killed that unpacks pip: it can be imported, and fails when it is used."""
    packages = bare / ".venv" / "lib" / "python3.11" / "site-packages"
    (packages / "pip").mkdir(parents=True)
    (packages / "pip" / "__init__.py").touch()
    (packages / "pip-24.0.dist-info").mkdir()
    fake_python(bare / ".venv" / "bin" / "python", "3.11.9", supported=True)
    fake_python(bare / "bin" / "python", "3.11.9", supported=True)
    (bare / ".venv" / "bin" / "activate").write_text("# activates\n")
    maker = bare / "bin" / "python"
    maker.write_text(maker.read_text().replace("exec ", f"touch {bare}/anew; exit 1; exec ", 1))
    make(bare, "install", f"PYTHON={maker}")
    assert (bare / "anew").exists()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_killed_pipeline_ends_with_the_same_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.faults",
            "--kills",
            "6",
            "--seed",
            "1",
            "--folder",
            tmp_path / "run",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert re.search(r"^total +6 +6 +6$", done.stdout, re.MULTILINE)
