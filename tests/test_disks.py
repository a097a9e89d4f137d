"""Full disks, missing permissions and memory: one line each, nothing half written, and the work goes on."""

import errno
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import full_disk
from pipeline import files, parameters, paths, resources
from pipeline.data import sources, splits, store, writing
from pipeline.errors import DistilleryError
from pipeline.evaluation import confidence
from pipeline.litert import metadata
from pipeline.measurement import kernels
from pipeline.measurement.kernels import Convolution
from pipeline.resources import ResourceError
from pipeline.running import process, progress
from teachers import runtime
from teachers.errors import TeacherError

ROOT = Path(__file__).parents[1]
LIMIT = 10_000
"""Bytes that a file may have in tests with ``small_files``."""


@pytest.fixture
def small_files() -> Iterator[Callable[[], None]]:
    """No file may be larger than ``LIMIT``; the value lifts the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield lift
    lift()


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

SHORTAGES: list[tuple[str, Exception, str]] = [
    ("a full disk", FULL, "room"),
    ("a full disk with a name", OSError(errno.ENOSPC, "No space left on device", "artifacts/x"), "room"),
    ("NumPy", OSError("1000000 requested and 499456 written"), "room"),
    ("SQLite", sqlite3.OperationalError("database or disk is full"), "room"),
    ("Rust", RuntimeError("I/O error: No space left on device (os error 28)"), "room"),
    ("PyTorch", RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"), "room"),
    ("no temporary folder", FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "room"),
    ("a loader process", OSError("Caught OSError in worker 0.\n[Errno 28] No space left on device"), "room"),
    ("a quota", OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
    ("a limit of files", OSError(errno.EFBIG, "File too large"), "size"),
    ("a read-only disk", OSError(errno.EROFS, "Read-only file system", "artifacts/x"), "access"),
    ("a foreign folder", PermissionError(errno.EACCES, "Permission denied", "artifacts/x"), "access"),
    ("a read-only database", sqlite3.OperationalError("attempt to write a readonly database"), "access"),
    ("a file for a folder", NotADirectoryError(errno.ENOTDIR, "Not a directory", "artifacts/x"), "name"),
    ("a folder for a file", IsADirectoryError(errno.EISDIR, "Is a directory", "artifacts/x"), "name"),
    ("a long name", OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "name"),
    ("a broken disk", OSError(errno.EIO, "Input/output error", "artifacts/x"), "device"),
    ("open files", OSError(errno.EMFILE, "Too many open files"), "files"),
    ("threads", RuntimeError("can't start new thread"), "processes"),
    ("Python's memory", MemoryError(), "memory"),
    ("a fork", OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
    ("PyTorch's memory", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
    ("a GPU's memory", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "memory"),
    ("C++", RuntimeError("std::bad_alloc"), "memory"),
    ("ONNX Runtime's memory", RuntimeError("Failed to allocate memory for requested buffer"), "memory"),
    ("an ended loader", RuntimeError("DataLoader worker (pid 9) is killed by signal: Killed. "), "memory"),
    ("shared memory", RuntimeError("write to file </torch_9_1_0>: No space left on device (28)"), "shared"),
    ("a bus error", RuntimeError("DataLoader worker (pid 9) is killed by signal: Bus error."), "shared"),
    ("a cause", caused(ValueError("the table could not be written"), FULL), "room"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind"), [row[1:] for row in SHORTAGES], ids=[row[0] for row in SHORTAGES])
def test_whatever_says_that_something_is_used_up_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], error: Exception, kind: str
) -> None:
    shortage = resources.recognise(error)
    assert shortage is not None
    assert shortage.kind == kind
    with pytest.raises(SystemExit) as caught, process.one_line_errors():
        raise error
    assert caught.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    name = getattr(error, "filename", None)
    assert name is None or str(name) in line


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        ValueError("2 requested and 1 written in a table"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        KeyError("memory"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_defect_is_no_shortage(error: Exception) -> None:
    with pytest.raises(type(error)), process.one_line_errors():
        raise error


def test_a_lock_that_is_held_is_no_lack_of_processes(tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError) as caught:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert resources.recognise(caught.value) is None


@pytest.mark.parametrize("kind", [DistilleryError, TeacherError])
def test_an_error_of_this_project_that_a_full_disk_causes_says_where(
    capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    with pytest.raises(SystemExit), process.one_line_errors():
        raise kind("the table could not be written") from FULL
    [line] = capsys.readouterr().err.splitlines()
    assert "the table could not be written" in line
    assert " free" in line


def test_an_error_during_a_progress_bar_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    bar = tqdm(total=2)
    bar.update()
    with pytest.raises(SystemExit), process.one_line_errors():
        raise DistilleryError("the views are damaged")
    assert capsys.readouterr().err.split("\n")[-2:] == ["error: the views are damaged", ""]


def test_an_error_after_a_bar_that_was_there_for_an_instant_has_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bar = progress.bar("teach", 2)
    bar.update()
    bar.set_postfix_str("val 50.00%")
    bar.close()
    with pytest.raises(SystemExit), process.one_line_errors():
        raise DistilleryError("the weights are damaged")
    before, last = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert "val 50.00%" in before
    assert last == "error: the weights are damaged"


def test_a_bar_that_its_delay_has_hidden_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("parity", 2) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_the_line_names_the_file_the_file_system_and_what_is_free(tmp_path: Path) -> None:
    line = resources.explain(FULL, tmp_path / "new" / "weights.safetensors")
    assert line is not None
    assert str(tmp_path / "new" / "weights.safetensors") in line
    mounted = next(p for p in (tmp_path, *tmp_path.parents) if p.is_mount())
    assert f"the file system at {mounted} has " in line
    assert resources.size(resources.free(tmp_path))[-3:] in line


@pytest.mark.parametrize("stage", resources.LOWER)
def test_the_parameters_that_save_memory_exist(stage: str) -> None:
    line = resources.explain(MemoryError(), stage=stage)
    assert line is not None
    for key in resources.LOWER[stage]:
        assert key in line
        section: Any = parameters.load(ROOT / paths.PARAMETERS)
        for part in key.split("."):
            section = section[part] if isinstance(section, Mapping) else getattr(section, part)


# Writers: each is stopped by a limit on the size of files, and repeated without it.


def array(folder: Path) -> Path:
    files.write_array(folder / "a.npy", np.arange(10_000))
    return folder / "a.npy"


def text(folder: Path) -> Path:
    files.write(folder / "a.json", "x" * 3 * LIMIT)
    return folder / "a.json"


def weights(folder: Path) -> Path:
    with files.replacing(folder / "a.safetensors") as fresh:
        save_file({"a": torch.arange(10_000)}, fresh)
    return folder / "a.safetensors"


def probabilities(folder: Path) -> Path:
    random = np.random.default_rng(0)
    answers = confidence.from_logits(random.normal(size=(3000, 4)), np.zeros(3000, dtype=int))
    confidence.save(folder / "a.npz", answers)
    return folder / "a.npz"


WRITERS = [array, text, weights, probabilities]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_does_not_fit_leaves_the_previous_one_and_is_written_when_it_fits(
    tmp_path: Path, small_files: Callable[[], None], writer: Callable[[Path], Path]
) -> None:
    (tmp_path / "disturbed").mkdir()
    (tmp_path / "disturbed" / "previous").touch()
    with pytest.raises(ResourceError) as caught:
        writer(tmp_path / "disturbed")
    assert [file.name for file in (tmp_path / "disturbed").iterdir()] == ["previous"]
    [line] = str(caught.value).splitlines()
    small_files()
    file = writer(tmp_path / "disturbed")
    assert str(file) in line
    assert file.read_bytes() == writer(tmp_path / "undisturbed").read_bytes()


def prepare(photographs: Path, folder: Path) -> dict[str, Any]:
    listing = sources.folder(photographs)
    assigned = splits.assign(listing.labelled, train=None, val=0.2, test=0.25, seed=0)
    return writing.write(folder, listing, assigned, {"source": "folder", "path": "x", "license": "CC0-1.0"})


def test_data_that_do_not_fit_are_prepared_when_they_fit(
    tmp_path: Path, photographs: Path, small_files: Callable[[], None]
) -> None:
    with pytest.raises(ResourceError, match=r"train"):
        prepare(photographs, tmp_path / "disturbed" / "data")
    assert not (tmp_path / "disturbed" / "data" / store.REPORT).exists()
    assert [path.name for path in (tmp_path / "disturbed").iterdir() if path.name != "data"] == []
    small_files()
    assert prepare(photographs, tmp_path / "disturbed" / "data") == prepare(photographs, tmp_path / "data")
    for name in ("train", "val", "test"):
        both = [store.read(folder, name) for folder in (tmp_path / "disturbed" / "data", tmp_path / "data")]
        assert both[0].hashes == both[1].hashes


def test_a_measurement_whose_temporary_files_are_cut_says_so(small_files: Callable[[], None]) -> None:
    part = Convolution(1, 1, 1, 16, 16, 8, "float", "float")
    with pytest.raises(ResourceError) as caught:
        kernels.measure([part])
    assert resources.SCRATCH in str(caught.value)
    small_files()
    assert kernels.measure([part])[0] > 0


def test_a_temporary_folder_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file" / "below"))
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="file"), resources.scratch():
        pass


def test_an_error_with_room_in_the_temporary_folder_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), resources.scratch() as folder:
        assert 1 / len(list(folder.iterdir()))
    assert not folder.exists()


# The teacher.


def teacher() -> nn.Module:
    torch.manual_seed(0)
    features = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(8, 5)).eval()


def test_the_teacher_answers_the_same_when_no_temporary_file_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_files: Callable[[], None]
) -> None:
    images = torch.randn(4, 3, 16, 16)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    disturbed = runtime.in_runtime(teacher(), 16)
    small_files()
    monkeypatch.undo()
    undisturbed = runtime.in_runtime(teacher(), 16)
    assert disturbed.engine == undisturbed.engine == f"ONNX Runtime {ort.__version__}"
    assert torch.equal(disturbed.module(images), undisturbed.module(images))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("can't allocate memory"), RuntimeError("std::bad_alloc"), FULL],
)
def test_a_teacher_that_the_machine_cannot_export_is_no_teacher_that_cannot_be_exported(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def export(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(type(error)):
        runtime.in_runtime(teacher(), 16)


def test_a_teacher_that_cannot_be_exported_says_why() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(torch.diag_embed(self.scale * x.mean((2, 3))))

    inference = runtime.in_runtime(Random().eval(), 16)
    assert inference.engine == f"PyTorch {torch.__version__}"
    assert "UnsupportedOperatorError" in str(inference)


# Whole processes.

LIMITED = """
import resource, sys
resource.setrlimit(resource.{limit}, ({value}, {value}))
from pipeline.running import process
with process.one_line_errors():
    {work}
"""


def run(
    work: str, *, limit: str = "RLIMIT_CORE", value: int = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    script = LIMITED.format(limit=limit, value=value, work=work)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.mark.parametrize(
    "work",
    [
        "x = bytearray(10**11)",
        "import numpy; x = numpy.ones(10**11)",
    ],
    ids=["Python", "NumPy"],
)
def test_a_process_without_memory_ends_in_one_line(work: str) -> None:
    ended = run(work, limit="RLIMIT_AS", value=1_500_000_000, stdin=subprocess.DEVNULL)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: ")


def test_a_stage_that_has_no_memory_for_its_imports_ends_in_one_line() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (600_000_000, 600_000_000))

    command = [sys.executable, "-m", "pipeline.stages.teach"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False, preexec_fn=limit
    )
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "`ulimit -v` is 600.0 MB" in line


def test_pytorch_without_memory_ends_in_one_line_that_names_parameters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit), process.one_line_errors():
        torch.empty(10**15)
    [line] = capsys.readouterr().err.splitlines()
    assert "compute.workers" in line


def test_output_to_a_full_disk_ends_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        ended = run("print('results')", stdout=full, env=buffered)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "/dev/full: no space" in line


def test_the_benchmark_compares_litert_files_but_for_the_commit_that_they_name(tmp_path: Path) -> None:
    def digest(network: bytes, *, labels: tuple[str, ...] = ("cat", "dog"), commit: str = "unknown") -> str:
        content = metadata.append(network, labels, {"git_commit": commit, "variant": "fp32"})
        (tmp_path / "litert").mkdir(exist_ok=True)
        (tmp_path / "litert" / "fp32.tflite").write_bytes(content)
        (tmp_path / "litert" / "litert.json").write_text(f"seconds of {commit}")
        return full_disk._digest(tmp_path, ("litert",))

    known = digest(b"network")
    assert digest(b"network", commit="0f1e2d-dirty") == known
    assert digest(b"netw0rk") != known
    assert digest(b"network", labels=("cat", "cow")) != known
