import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import paths
from pipeline.running import command_line, process, progress, siblings
from pipeline.stages import compare, distill, export

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "arguments", "status"),
    [
        (compare, ["--help"], 0),
        (export, ["--help"], 0),
        (compare, ["fp32"], 2),
        (export, [], 2),
        (export, ["fp32", "--fast"], 2),
    ],
)
def test_help_or_unexpected_arguments_end_a_stage_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: object,
    arguments: list[str],
    status: int,
) -> None:
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", ["stage", *arguments])
    with pytest.raises(SystemExit) as caught:
        command_line.check()
    assert caught.value.code == status
    out, err = capsys.readouterr()
    assert ("artifacts/" in out and "example:\n" in out) == (status == 0)
    assert len(err.splitlines()) == (1 if status else 0)


@pytest.mark.parametrize(
    ("closed", "work", "status"),
    [
        (">&-", "print('result')", 0),
        (">&- 2>&-", "print('result')", 0),
        ("2>&-", "raise DistilleryError('problem')", 1),
        (">&- 2>&-", "raise DistilleryError('problem')", 1),
    ],
)
def test_closed_outputs_change_neither_work_nor_status(closed: str, work: str, status: int) -> None:
    script = f"""
from pipeline.errors import DistilleryError
from pipeline.running import process
with process.one_line_errors():
    {work}
"""
    command = ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "")


@pytest.mark.parametrize("variable", siblings.NUMBERS)
def test_a_launcher_s_variable_that_is_no_number_ends_a_stage_in_one_line(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv(variable, "-two")
    with pytest.raises(SystemExit) as caught, process.stage():
        raise AssertionError
    assert caught.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert variable in line
    assert "'-two'" in line


@pytest.mark.parametrize(("module", "arguments"), [(compare, []), (export, ["fp32"])])
def test_a_stage_starts_with_the_arguments_that_its_main_takes(
    monkeypatch: pytest.MonkeyPatch, module: object, arguments: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", ["stage", *arguments])
    command_line.check()


def test_a_missing_variant_is_answered_with_those_that_the_stage_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.PARAMETERS.write_text("variants: {fp32: {op: distill}, half: {op: prune}, small: {op: distill}}\n")
    monkeypatch.setattr(sys, "argv", ["stage"])
    for module, allowed in ((distill, "fp32, small"), (export, "fp32, half, small")):
        monkeypatch.setitem(sys.modules, "__main__", module)
        with pytest.raises(SystemExit):
            command_line.check()
        assert f"allowed: {allowed} " in capsys.readouterr().err


def test_stages_that_train_nothing_do_not_import_the_trainer() -> None:
    stages = ", ".join(
        f"pipeline.stages.{name}" for name in ("evaluate", "explain", "export", "litert", "probe")
    )
    slow = f"import sys, {stages}; print({{'lightning_fabric', 'torch._dynamo'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", slow], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_stages_that_compute_nothing_with_networks_do_not_import_pytorch() -> None:
    stages = ", ".join(
        f"pipeline.stages.{name}"
        for name in ("benchmark", "check", "compare", "cost", "prepare", "report", "track")
    )
    slow = f"import sys, {stages}; print({{'torch', 'lightning_fabric'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", slow], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_stage_that_reads_images_does_not_import_what_writes_them() -> None:
    """Hugging Face `datasets` and `scipy.special` take half a second each."""
    slow = (
        "import sys, pipeline.stages.export; print({'datasets', 'pandas', 'scipy.special'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", slow], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_stage_has_help_with_an_example_and_refuses_what_it_does_not_know() -> None:
    """Their code is read, since each takes seconds to import."""
    scripts = list((ROOT / "pipeline" / "stages").glob("[a-z]*.py"))
    assert len(scripts) > 15
    for script in scripts:
        main = script.read_text().partition('if __name__ == "__main__":')[2]
        first = re.search(r"\b(stage|command_line\.check|run_alongside|main)\(", main)
        assert first is not None, script
        assert first[1] in ("stage", "command_line.check"), script


SCRIPT = """
import multiprocessing, signal, time
# Shells start background jobs with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipeline.running import process
process.explain_uncaught_errors()
{work}
print("ready", flush=True)
{wait}
"""


@pytest.mark.parametrize(
    ("work", "wait"),
    [
        ("", "time.sleep(60)"),  # while modules are imported
        ("", "with process.one_line_errors():\n    time.sleep(60)"),
        (
            "from torch.utils.data import DataLoader\n"
            "loader = iter(DataLoader(range(10**9), batch_size=1, num_workers=2))\nnext(loader)",
            "with process.one_line_errors():\n    for _ in loader: pass",
        ),
    ],
    ids=["imports", "work", "workers"],
)
def test_ctrl_c_ends_a_process_and_its_workers_with_one_line_and_status_130(work: str, wait: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(work=work, wait=wait)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        time.sleep(0.2)
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == process.INTERRUPTED
    assert [line.partition(":")[0] for line in errors.splitlines()] == ["interrupted"]


def test_all_progress_bars_come_from_one_place_and_have_one_pace_in_a_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = {file.name for file in (ROOT / "pipeline").rglob("*.py") if "from tqdm" in file.read_text()}
    assert users == {"progress.py"}
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar("work", 10) as bar:
        # The greatest interval takes effect by itself, from another thread.
        assert bar.mininterval == bar.maxinterval == progress.LOG_SECONDS


def test_a_command_that_is_interrupted_comes_to_its_own_end(tmp_path: Path) -> None:
    # A program that was started in the background of a shell ignores the signal.
    heed = "import os, signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    slow = (
        f"{heed}"
        "try:\n    print('started', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        f"    time.sleep(1); open({str(tmp_path / 'ended')!r}, 'w'); sys.exit(255)\n"
    )
    parent = (
        f"{heed}from pipeline.commands.run import _finish\n"
        f"sys.exit(_finish([sys.executable, '-c', {slow!r}], os.environ))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130
    assert (tmp_path / "ended").exists()
