"""Disk space, write permission, memory and processes that a machine has no more of.

Every library reports them in its own way: as an `OSError` with or without a number, as a `RuntimeError` of
C++, as an error of Rust or of a database. They are recognised here, and described in one line with the place,
the space that is free there, and what to do.
"""

import errno
import os
import re
import resource
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from pipeline import paths
from pipeline.errors import DistilleryError

Kind = Literal["room", "size", "quota", "access", "name", "device", "files", "processes", "memory", "shared"]

NUMBERS: dict[int, Kind] = {
    errno.ENOSPC: "room",
    errno.EFBIG: "size",
    errno.EDQUOT: "quota",
    errno.EROFS: "access",
    errno.EACCES: "access",
    errno.EPERM: "access",
    errno.EISDIR: "name",
    errno.ENOTDIR: "name",
    errno.EEXIST: "name",
    errno.ENAMETOOLONG: "name",
    errno.ELOOP: "name",
    errno.EIO: "device",
    errno.ESTALE: "device",
    errno.EMFILE: "files",
    errno.ENFILE: "files",
    errno.ENOMEM: "memory",
}
"""Error numbers of the operating system that its user can do something about."""

WORDS: dict[Kind, str] = {
    "shared": r"shared memory|bus error|</torch_\d+",
    "memory": (
        r"can.t allocate memory|cannot allocate memory|failed to allocate|not enough memory|out of memory|"
        # The last one: the system has ended a process that renders images.
        r"bad_alloc|bad allocation|alloc_failed|failed to map segment|worker .* killed by signal: killed"
    ),
    "quota": r"disk quota exceeded",
    "size": r"file too large",
    "room": (
        # NumPy and PyTorch give no error number, and SQLite has words of its own.
        r"no space left|disk is full|^\d+ requested and \d+ written$|PytorchStreamWriter failed|"
        r"no usable temporary directory"
    ),
    "access": r"read-only file system|permission denied|readonly database",
    "device": r"disk I/O error|input/output error",
    "processes": r"can.t start new thread",
}
"""Words of libraries that give no error number; the first kind that fits is taken."""

FORKS = ("subprocess.py", "popen_fork.py")
"""Files of Python's library in which processes are started; elsewhere, EAGAIN means a lock that is held."""

LOWER: dict[str, tuple[str, ...]] = {
    "prepare": ("data.train_side", "data.train"),
    "teach": ("teacher.full.batch_size", "teacher.head.batch_size", "teacher.size", "compute.workers"),
    "label": ("teacher.size", "views.per_image", "compute.workers"),
    "load": ("student.size", "compute.workers"),
    "distill": ("distill.batch_size", "student.size", "compute.workers"),
    "prune": ("prune.batch_size", "student.size", "compute.workers"),
    "quantize": ("quantize.batch_size", "quantize.calibration", "compute.workers"),
    "evaluate": ("evaluation.parity", "student.size", "compute.workers"),
    "litert": ("evaluation.parity", "student.size", "compute.workers"),
    "benchmark": ("benchmark.batch_sizes", "benchmark.processes"),
    "probe": ("probe.corrupted", "probe.attacked", "probe.out_of_distribution_images"),
    "explain": ("explain.images", "student.size"),
    "sensitivity": ("sensitivity.images", "sensitivity.size"),
}
"""Name of a stage to the parameters on which its memory depends most, the greatest first."""

SCRATCH = ".distillery-"
"""Beginning of the names of folders for temporary files; the number of the process follows."""

TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.new")
"""Name of a file that is not whole yet: the final name and the number of the process."""

KEPT = "repeat the command then: what was finished is kept"


class ResourceError(DistilleryError):
    """The machine has no room, no memory or no permission for what is to be done; the message says where."""


@dataclass(frozen=True)
class Shortage:
    """Something that the machine lacks, as an exception reports it."""

    kind: Kind
    error: BaseException
    file: Path | None
    """File that was to be written or read, if the exception names it."""


def recognise(error: BaseException | None) -> Shortage | None:
    """What an exception, or one of its causes, says the machine lacks; None if it is about anything else."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if (kind := _kind(error)) is not None:
            return Shortage(kind, error, _file(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def explain(error: BaseException, file: Path | None = None, *, stage: str | None = None) -> str | None:
    """One line about what the machine lacks; None if the exception is about anything else.

    Args:
        error: an exception, of which the causes are looked at as well.
        file: file or folder that was to be written, for exceptions that name none.
        stage: name of the stage that runs, whose parameters are named if the memory is used up.
    """
    shortage = recognise(error)
    if shortage is None:
        return None
    place = shortage.file or file
    subject = f"{place}: " if place else ""
    match shortage.kind:
        case "memory" | "shared":
            return _memory(shortage, stage)
        case "processes":
            limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
            return (
                f"no further process or thread can be started (`ulimit -u` is {limit}); lower compute.workers"
            )
        case "files":
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return f"{subject}no further file can be opened (`ulimit -n` is {limit}); raise the limit"
        case "size":
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            allowed = "its file system" if limit == resource.RLIM_INFINITY else f"`ulimit -f` ({size(limit)})"
            return f"{subject}the file would be larger than {allowed} allows; raise the limit, and {KEPT}"
        case "room":
            return f"{subject}no space is left: {where(place)}; free space there, and {KEPT}"
        case "quota":
            return f"{subject}the disk quota of this user is used up; free space there, and {KEPT}"
        case kind:
            assert isinstance(shortage.error, Exception)
            reason = getattr(shortage.error, "strerror", None) or " ".join(str(shortage.error).split())
            advice = {
                "access": f"allow this user (uid {os.getuid()}) to read and write it",
                "name": "move what is in the way, or use another path",
                "device": "look at the disk or the network behind it",
            }[kind]
            return f"{subject or 'a file: '}{reason.lower()}; {advice}, and {KEPT}"


def is_exhausted(error: BaseException | None) -> bool:
    """Whether an exception, or one of its causes, says that there is no room or no memory left."""
    shortage = recognise(error)
    return shortage is not None and shortage.kind in ("room", "size", "quota", "memory", "shared")


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Name ``file`` in what a full disk or a missing permission raises in the block.

    Raises:
        ResourceError: the file cannot be written; other exceptions remain as they are.
    """
    try:
        yield
    except DistilleryError:
        raise
    except Exception as error:
        if (message := explain(error, file)) is None:
            raise
        raise ResourceError(message) from error


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder for temporary files, which is removed when the block ends.

    Its name holds the process number, so that `python -m pipeline tidy` recognises the folder of a process
    that was killed.

    Args:
        parent: where to create it; None takes the system's folder (``TMPDIR``).

    Raises:
        ResourceError: there is no room for the files.
    """
    with writing(parent or _temporary_folder()):
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-", dir=parent) as folder:
            try:
                yield Path(folder)
            except Exception as error:
                # Libraries in C++ write nothing or half of a file, in silence, and fail when they read it.
                if recognise(error) is None and not isinstance(error, DistilleryError) and _cut(Path(folder)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error
                raise


def temporary(path: Path) -> Path:
    """The name of a file until it is whole, which is this process's own."""
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def size(count: int) -> str:
    """A number of bytes in words: ``1.5 GB``."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count} bytes"


def free(path: Path) -> int:
    """Bytes that this user can write to the file system of a path, whether the path exists or not."""
    statistics = os.statvfs(existing(path))
    return statistics.f_bavail * statistics.f_frsize


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - links are not followed
    return next((p for p in (path, *path.parents) if p.exists()), Path("/"))


def where(file: Path | None) -> str:
    """The file system of a file and what is free on it, in words; the fullest one if no file is known."""
    if file is None:
        candidates = [Path(), paths.ARTIFACTS, paths.home(), _temporary_folder(), Path.home()]
        file = min(candidates, key=free)
        return f"the fullest file system in use is {where(file)}"
    found = existing(file)
    statistics = os.statvfs(found)
    total = statistics.f_blocks * statistics.f_frsize
    while found != found.parent and not found.is_mount():
        found = found.parent
    if statistics.f_files and not statistics.f_favail:
        return f"the file system at {found} has no entry for a further file (of {statistics.f_files})"
    return f"the file system at {found} has {size(free(file))} of {size(total)} free"


def _kind(error: BaseException) -> Kind | None:
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, BlockingIOError):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        return "processes" if Path(frame.f_code.co_filename).name in FORKS else None
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if number in NUMBERS and not (number == errno.ENOSPC and re.search(WORDS["shared"], text)):
        return NUMBERS[number]
    if isinstance(error, DistilleryError) or not isinstance(error, Exception):
        return None
    return next((kind for kind, words in WORDS.items() if re.search(words, text, re.IGNORECASE)), None)


def _file(error: BaseException) -> Path | None:
    # Of two names, as of a copy, the second one is written.
    names = (getattr(error, "filename2", None), getattr(error, "filename", None))
    file = next((Path(os.fsdecode(name)) for name in names if isinstance(name, str | bytes)), None)
    temporary = file and TEMPORARY.fullmatch(file.name)
    return file.with_name(temporary[1]) if file and temporary else file


def _memory(shortage: Shortage, stage: str | None) -> str:
    if shortage.kind == "shared":
        return (
            "the memory that processes share is used up "
            f"({where(Path('/dev/shm'))}); set compute.workers to 0, or enlarge /dev/shm"
        )
    memory = psutil.virtual_memory()
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    limited = "" if limit == resource.RLIM_INFINITY else f", `ulimit -v` is {size(limit)}"
    on_gpu = "CUDA" in str(shortage.error)
    which = "the memory of the GPU" if on_gpu else "the memory"
    figures = "" if on_gpu else f" ({size(memory.available)} of {size(memory.total)} free{limited})"
    keys = LOWER.get(stage or "", ("the batch size", "the size of the images", "compute.workers"))
    return f"{which} is used up{figures}; lower {' or '.join(keys)}, and {KEPT}"


def _temporary_folder() -> Path:
    """The folder for temporary files, also if nothing can be written to it."""
    with suppress(OSError):
        return Path(tempfile.gettempdir())
    return Path(os.environ.get("TMPDIR", "/tmp"))


def _cut(folder: Path) -> bool:
    """Whether files of a folder are incomplete: its file system is full, or one has the greatest size."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return free(folder) == 0 or (limit != resource.RLIM_INFINITY and max(sizes, default=0) >= limit)
