"""Several processes that train one network: with the result of one, and with a common end."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.data.batches import Request
from pipeline.training import checkpoints, compute, ranks
from pipeline.training.compute import ComputeError
from pipeline.training.settings import ComputeSettings
from tests import two_ranks

ROOT = Path(__file__).parents[1]
LAUNCHERS = ("DVC_", "SLURM_", "TORCHELASTIC_")
ALONE = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(LAUNCHERS) and name not in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")
}
SECONDS = 30.0
"""Seconds in which all processes end when one was killed."""


def start(*command: object, folder: Path, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**ALONE, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(data: Path, folder: Path, **changes: Any) -> "subprocess.Popen[str]":
    """Two processes."""
    arguments = data, folder, json.dumps({"devices": 2}), json.dumps(changes)
    return start("-m", "tests.two_ranks", *arguments, folder=folder)


def finished(running: "subprocess.Popen[str]") -> str:
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    return out


def in_this_process(data: Path, folder: Path, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    two_ranks.main(str(data), str(folder), "{}", json.dumps(changes))


def lines(errors: str) -> list[str]:
    """Lines of standard error without progress bars, which a line can follow."""
    parts = re.split(r"[\r\n]+|(?=error: )", errors)
    return [line for line in parts if line and "images/s" not in line]


def assert_equal(folder: Path, other: Path) -> None:
    """Trainings of two numbers of processes agree to rounding in 64 bits, of losses in 32."""
    histories = [json.loads((of / "history.json").read_text()) for of in (folder, other)]
    for one, two in zip(*histories, strict=True):
        timing = {"seconds", "images_per_second"}
        assert {k: v for k, v in one.items() if k not in timing} == pytest.approx(
            {k: v for k, v in two.items() if k not in timing}, rel=1e-6
        )
    one, two = (load_file(of / "state-0.safetensors") for of in (folder, other))
    assert len(one) > 15
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-8, msg=lambda text, n=name: n + text)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """The results of one process."""
    folder = tmp_path_factory.mktemp("ranks") / "one"
    in_this_process(prepared, folder)
    return folder


@pytest.mark.timeout(900)
def test_two_processes_train_as_one_does(one: Path, prepared: Path, tmp_path: Path) -> None:
    out = finished(train(prepared, tmp_path))
    assert out == "rank 0 of 2\n"
    assert_equal(one, tmp_path)
    states = [load_file(tmp_path / f"state-{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    alone = load_file(one / "state-0.safetensors")
    assert len(alone["before"]) == 18
    assert torch.equal(alone["before"], states[0]["before"]), "evaluation is equal bit for bit"


@pytest.mark.timeout(900)
def test_another_number_of_processes_goes_on_where_a_killed_one_stopped(
    one: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process stops after an epoch, two go on until one of them is killed, and one finishes."""
    save = checkpoints.save

    def killed(*arguments: Any, **state: Any) -> None:
        save(*arguments, **state)
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            in_this_process(prepared, tmp_path)
    file = tmp_path / "checkpoints" / checkpoints.FILE
    first = file.read_bytes()
    with train(prepared, tmp_path) as running:
        wait_for(lambda: file.read_bytes() != first, running)
        number = int((tmp_path / "process-1").read_text())
        os.kill(number, signal.SIGKILL)
        began = time.monotonic()
        _, errors = running.communicate(timeout=SECONDS)
    assert running.returncode == 1
    assert time.monotonic() - began < SECONDS
    said = [line for line in lines(errors) if line.startswith("error: ")]
    assert len(said) == 1, errors
    assert re.search(rf"rank 1 of the 2 .*process {number}\b.*SIGKILL", said[0])
    assert "Traceback" not in errors
    assert not (tmp_path / "history.json").exists()
    in_this_process(prepared, tmp_path)
    assert_equal(one, tmp_path)


def wait_for(happens: Any, running: "subprocess.Popen[str]", seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_error_that_all_processes_have_is_one_line(prepared: Path, tmp_path: Path) -> None:
    running = train(prepared, tmp_path, learning_rate=1e30, clip=0.0, warmup=0.0)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 1
    (said,) = lines(errors)
    assert re.fullmatch(r"error: test: .*the loss is nan for .*\.jpg.*", said)


TOGETHER = """
import json, os, sys, time
from pathlib import Path
from pipeline.running import process, siblings
from pipeline.errors import DistilleryError

siblings.GRACE_SECONDS, siblings.NOTICE_SECONDS = 3.0, 1.2
number, count = int(os.environ["LOCAL_RANK"]), 3
shared = Path("shared")

def share(value):
    if number == 0:
        shared.with_suffix(".new").write_text(json.dumps(value))
        shared.with_suffix(".new").rename(shared)
    while not shared.exists():
        time.sleep(0.01)
    return json.loads(shared.read_text())

def work():
    time.sleep({sleep})
{work}

with process.one_line_errors():
    siblings.join(number, count, None, share, process.print_errors)
    print("joined", flush=True)
    work()
    siblings.leave(failed=False)
"""


@pytest.fixture
def together(tmp_path: Path) -> Iterator[Any]:
    """Function that starts three connected processes, each of which sleeps and then works."""
    with ExitStack() as started:

        def begin(work: str = "    pass", sleep: float = 120.0) -> list["subprocess.Popen[str]"]:
            (tmp_path / "program.py").write_text(TOGETHER.format(work=work, sleep=sleep))
            running = [start("program.py", folder=tmp_path, LOCAL_RANK=str(rank)) for rank in range(3)]
            for process in running:
                started.enter_context(process)
                started.callback(process.kill)
            for process in running:
                assert process.stdout
                assert process.stdout.readline() == "joined\n"
            return running

        yield begin


def ends(running: list["subprocess.Popen[str]"]) -> tuple[list[int], list[str]]:
    """Statuses of all processes, and all lines on standard error."""
    errors = [process.communicate(timeout=SECONDS)[1] for process in running]
    return [process.returncode for process in running], [line for part in errors for line in lines(part)]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_that_is_killed_ends_all_with_one_line(together: Any, rank: int) -> None:
    running = together()
    running[rank].kill()
    statuses, said = ends(running)
    assert statuses == [-signal.SIGKILL if number == rank else 1 for number in range(3)]
    assert len(said) == 1
    assert re.match(rf"error: rank {rank} of the 3 .*process {running[rank].pid}\b", said[0])


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("    raise DistilleryError('wrong')", ["error: wrong"]),
        ("    if number == 0: raise DistilleryError('wrong')\n    time.sleep(60)", ["error: wrong"]),
        ("    if number == 2: raise DistilleryError('wrong')\n    time.sleep(60)", ["error: wrong"]),
        ("    raise MemoryError", None),
    ],
    ids=["all", "first", "last", "memory"],
)
def test_an_error_ends_all_and_is_said_once(together: Any, work: str, said: list[str] | None) -> None:
    statuses, errors = ends(together(work, 0.1))
    assert statuses == [1, 1, 1]
    assert len(errors) == 1
    assert said is None or errors == said


def test_a_defect_shows_one_traceback(together: Any) -> None:
    statuses, errors = ends(together("    raise AssertionError(number)", 0.1))
    assert statuses == [1, 1, 1]
    assert [line for line in errors if line.startswith("Traceback")] == ["Traceback (most recent call last):"]
    assert errors[-1] == "AssertionError: 0"


def test_processes_that_finish_do_not_end_those_that_go_on(together: Any) -> None:
    statuses, errors = ends(together("    time.sleep(number == 0 and 1.5)", 0.0))
    assert (statuses, errors) == ([0, 0, 0], [])


def test_shares_are_all_of_a_batch_in_order_and_differ_by_one_image() -> None:
    for images, count in ((12, 2), (9, 2), (43, 8), (8, 8), (129, 7)):
        bounds = ranks.bounds(images, count)
        sizes = [end - first for first, end in itertools.pairwise(bounds)]
        assert sum(sizes) == images
        assert len(sizes) == count
        assert max(sizes) - min(sizes) in (0, 1)
        assert min(sizes) >= 1


def test_one_process_has_all_of_every_batch_and_its_own_loss_terms() -> None:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1), ranks=True)
    requests = [Request([3, 1, 2], 0, 32)]

    def terms(_module: nn.Module, _batch: Any, _whole: Any = ranks.alone) -> dict[str, Tensor]:
        return {}

    assert ranks.shares(fabric, requests) == requests
    assert ranks.on_whole_batches(fabric, terms, 3) is terms
    assert not torch.distributed.is_initialized()


MACHINES = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29766", "NODE_RANK": "0"}


@pytest.mark.parametrize(
    ("settings", "variables", "names"),
    [
        ({"devices": 2, "nodes": 2}, {"NODE_RANK": "0"}, ("compute.nodes = 2", "MASTER_ADDR, MASTER_PORT")),
        ({"nodes": 2}, MACHINES | {"NODE_RANK": "first"}, ("NODE_RANK = 'first'", "from 0 to 1")),
        ({"nodes": 2}, MACHINES | {"NODE_RANK": "2"}, ("NODE_RANK = '2'", "from 0 to 1")),
        ({"nodes": 2}, MACHINES | {"MASTER_PORT": "http"}, ("MASTER_PORT = 'http'", "from 1 to 65535")),
        ({"devices": 1000}, {}, ("compute.devices = 1000", "cores")),
        ({}, {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "3", "SLURM_NNODES": "2"}, ("SLURM", "3 tasks on 2")),
    ],
)
def test_a_launch_that_cannot_work_is_said_before_it_begins(
    settings: dict[str, Any],
    variables: dict[str, str],
    names: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ComputeError) as caught:
        compute.start(ComputeSettings(accelerator="cpu", threads=1, **settings), ranks=True)
    assert all(name in str(caught.value) for name in names)


def launch(launcher: str, rank: int) -> tuple[list[str], dict[str, str]]:
    """How a launcher starts one of two processes: what comes before the program, and variables."""
    if launcher == "torchrun":
        return ["-m", "torch.distributed.run", "--nproc-per-node", "2"], {}
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29765"}
    if launcher == "slurm":
        step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
        return [], {**step, **port, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    return [], {**port, "NODE_RANK": str(rank)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["torchrun", "slurm", "machines"])
def test_a_launcher_takes_precedence(one: Path, prepared: Path, tmp_path: Path, launcher: str) -> None:
    settings = json.dumps({"nodes": 2} if launcher == "machines" else {"devices": 1})
    running = []
    for rank in range(1 if launcher == "torchrun" else 2):
        before, variables = launch(launcher, rank)
        program = "-m", "tests.two_ranks", prepared, tmp_path, settings, "{}"
        running.append(start(*before, *program, folder=tmp_path, **variables))
    assert [finished(process) for process in running][:1] == ["rank 0 of 2\n"]
    assert_equal(one, tmp_path)


SMALL = ("data.val=12", "data.test=24", "student.size=32", "teacher.size=32", "compute.workers=1")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_stages_end_with_networks_that_score_alike_and_equal_label_stores(
    photographs: Path, tmp_path: Path
) -> None:
    data = "data=folder", f"data.path={photographs}"
    command = "-m", "benchmarks.ranks", "--json", "--folder", tmp_path, "tiny", *data, *SMALL
    with start(*command, folder=ROOT) as running:
        out, errors = running.communicate(timeout=2900)
    assert running.returncode == 0, out[-3000:] + errors[-3000:]
    stages = json.loads(out[out.index("{\n") :])["stages"]
    assert [row["stage"].split()[0] for row in stages] == ["teach", "label", "distill", "prune", "quantize"]
    assert all(row["alike"] for row in stages)


def parent(number: int) -> int:
    return psutil.Process(number).ppid()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_dvc_goes_on_from_the_checkpoint_after_one_process_of_a_stage_was_killed(
    photographs: Path, tmp_path: Path
) -> None:
    for name in ("configs", "dvc.yaml", "pipeline", "requirements.lock", "students", "teachers"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    own = {"DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "MLFLOW_TRACKING_URI": "sqlite:///own.db"}
    data = "data=folder", f"data.path={photographs}", "compute.devices=2", "distill.epochs=40"
    for command in (("pipeline", "params", "tiny", *data, *SMALL), ("pipeline.stages.check",)):
        finished(start("-m", *command, folder=tmp_path, **own))
    finished(start("-m", "dvc", "repro", "label", folder=tmp_path, **own))
    checkpoint = tmp_path / "artifacts" / "checkpoints" / "fp32" / checkpoints.FILE
    with start("-m", "dvc", "repro", "build@fp32", folder=tmp_path, **own) as running:
        wait_for(checkpoint.exists, running)
        ranks_of = {
            child.pid: child.environ().get("LOCAL_RANK")
            for child in psutil.Process(running.pid).children(recursive=True)
        }
        (second,) = [  # the others are processes that render for it
            pid for pid, rank in ranks_of.items() if rank == "1" and ranks_of.get(parent(pid)) != "1"
        ]
        os.kill(second, signal.SIGKILL)
        _, errors = running.communicate(timeout=SECONDS)
    assert running.returncode != 0
    assert len([line for line in lines(errors) if line.startswith("error: ")]) == 1, errors
    with start("-m", "dvc", "repro", "build@fp32", folder=tmp_path, **own) as running:
        _, errors = running.communicate(timeout=900)
    assert running.returncode == 0, errors
    assert "continues after step" in errors
    history = (tmp_path / "artifacts" / "models" / "fp32" / "history.jsonl").read_text().splitlines()
    assert len(history) == 40
