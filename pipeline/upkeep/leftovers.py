"""What can be removed without making anything again: remains of killed processes and of earlier states."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil

from pipeline import paths, resources
from pipeline.errors import DistilleryError
from pipeline.running.locks import BusyError
from pipeline.upkeep import dvc_cache

SCRATCH = re.compile(rf"{re.escape(resources.SCRATCH)}(\d+)-.*")
"""Name of a folder for temporary files, with the number of its process."""

EARLIER_SCRATCH = re.compile(r"tmp[a-z0-9_]{8}")
"""Name of such a folder in ``artifacts/`` of an earlier version."""

LABELS, QUANTIZED, TEACHER = "labels-", "quantized-", "teacher-"
"""Beginnings of the names of checkpoints that are not those of a variant's training."""

EXPERIMENTS = Path(".dvc", "tmp", "exps")
"""Copies of the workspace in which DVC runs queued experiments."""

DATABASE = Path("mlflow.db")


@dataclass(frozen=True)
class Leftover:
    """Something that can be removed."""

    path: Path
    bytes: int
    reason: str


def find(variants: Collection[str]) -> list[Leftover]:
    """List everything that can be removed, apart from DVC's cache and MLflow's database.

    Args:
        variants: names of the variants that the parameters declare.
    """
    return sorted(
        [
            *_remains(paths.ARTIFACTS),
            # All checkouts share this folder. What is there of a process that lives is not listed.
            *_scratch_folders(Path(tempfile.gettempdir()), "of any folder of the pipeline on this machine"),
            *_stale_checkpoints(variants),
            *(
                Leftover(folder, disk_usage(folder), "copy of the workspace of an ended experiment")
                for folder in EXPERIMENTS.glob("tmp*")
                if not working(folder.resolve())
            ),
        ],
        key=lambda leftover: -leftover.bytes,
    )


def find_cached() -> Leftover | None:
    """What DVC's cache holds that neither the workspace nor anything with a name in git refers to."""
    files = dvc_cache.unused()
    if not files:
        return None
    return Leftover(
        next(iter(files)).parents[3],
        sum(files.values()),
        f"{len(files)} files of DVC's cache that no branch, tag, experiment nor the workspace refers to",
    )


def find_deleted_runs() -> Leftover | None:
    """Runs that were deleted in MLflow's pages, with their files, in the database of this folder."""
    if not DATABASE.is_file():
        return None
    with closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute("SELECT artifact_uri FROM runs WHERE lifecycle_stage = 'deleted'")
            folders = [Path(unquote(urlsplit(uri).path)) for (uri,) in rows]
        except sqlite3.DatabaseError:
            return None  # `track` says what is wrong with the database
    if not folders:
        return None
    taken = sum(disk_usage(folder) for folder in folders)
    return Leftover(DATABASE, taken, f"{len(folders)} deleted runs of MLflow and their files")


def remove(leftovers: Iterable[Leftover]) -> None:
    """Remove files and folders that ``find`` lists.

    Raises:
        BusyError: a process works in this folder.
    """
    check_idle()
    for leftover in leftovers:
        if leftover.path.is_dir() and not leftover.path.is_symlink():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink(missing_ok=True)


def remove_cached() -> None:
    """Remove what ``find_cached`` counts. The run cache stays."""
    check_idle()
    for file in dvc_cache.unused():
        file.unlink(missing_ok=True)


def remove_deleted_runs() -> None:
    """Remove the runs that were deleted in MLflow, for good.

    Raises:
        DistilleryError: MLflow cannot do it.
    """
    check_idle()
    store = f"sqlite:///{DATABASE}"
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store, "--tracking-uri", store]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["it gives no reason"])[-1]
        raise DistilleryError(f"`mlflow gc` could not remove the deleted runs of {DATABASE}: {reason}")


def check_idle() -> None:
    """Check that neither a stage nor DVC works in this folder or below it.

    Raises:
        BusyError: one does.
    """
    if busy := working(Path.cwd()):
        process = busy[0]
        raise BusyError(
            f"process {process.pid} (`{' '.join(process.cmdline())}`) works in {process.cwd()}; "
            "nothing is removed while the pipeline runs"
        )


def check_parameters_unused() -> None:
    """Check that no stage runs with the parameters of this folder, before they are written.

    Experiments from DVC's queue run in copies, with parameters of their own.

    Raises:
        BusyError: one does; it would end, since its results would not count (``pipeline.running.inputs``).
    """
    here = Path.cwd()
    for process in working(here):
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            is_stage = "pipeline.stages." in command and "pipeline.stages.follow" not in command
            if is_stage and Path(process.cwd()) == here:
                raise BusyError(
                    f"process {process.pid} (`{command}`) works in this folder with {paths.PARAMETERS}, "
                    "which would change; wait for its end, or use another copy of this checkout"
                )


def working(root: Path) -> list[psutil.Process]:
    """Processes of this user that run a stage or DVC in a folder or below it."""
    found = []
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            stage = any(part.startswith("pipeline.stages.") for part in command)
            dvc = any(Path(part).name == "dvc" for part in command[:3])
            if (stage or dvc) and process.pid not in own and Path(process.cwd()).is_relative_to(root):
                found.append(process)
        except psutil.Error:
            continue
    return found


def disk_usage(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 if there is neither."""
    if path.is_dir() and not path.is_symlink():
        return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() or file.is_symlink())
    return path.lstat().st_size if path.exists() else 0


def _remains(folder: Path) -> Iterator[Leftover]:
    """Temporary files and folders of processes that have ended, and files that were set aside."""
    yield from _scratch_folders(folder)
    yield from _scratch_folders(folder / "raw")
    for path in folder.glob("tmp*"):
        if EARLIER_SCRATCH.fullmatch(path.name):
            yield Leftover(path, disk_usage(path), "temporary folder of an earlier version")
    for path in folder.rglob(".*.new"):
        name = resources.TEMPORARY.fullmatch(path.name)
        if name and not psutil.pid_exists(int(name[2])):
            yield Leftover(path, disk_usage(path), "unfinished file of an ended process")
    # Elsewhere such a name is that of a photograph or of a class.
    for path in paths.CHECKPOINTS.rglob("*.damaged*"):
        yield Leftover(path, disk_usage(path), "damaged file that was set aside")
    for path in (*paths.ONNX.glob("*.unverified"), *paths.LITERT.glob("*.unverified")):
        yield Leftover(path, disk_usage(path), "export that did not come to its end")


def _scratch_folders(parent: Path, whose: str = "") -> Iterator[Leftover]:
    for path in parent.glob(f"{resources.SCRATCH}*"):
        name = SCRATCH.fullmatch(path.name)
        if name and not psutil.pid_exists(int(name[1])) and path.stat().st_uid == os.getuid():
            reason = f"temporary folder of an ended process{f', {whose}' if whose else ''}"
            yield Leftover(path, disk_usage(path), reason)


def _stale_checkpoints(variants: Collection[str]) -> Iterator[Leftover]:
    """Checkpoints that no training goes on from.

    Those of a teacher stay, and so do the teacher's answers while there is no complete store of them.
    """
    for folder in paths.CHECKPOINTS.glob("*"):
        if not folder.is_dir() or folder == paths.LOCKS or folder.name.startswith(TEACHER):
            continue
        if folder.name.startswith(LABELS):
            card = paths.LABELS / "card.json"
            newest = max((file.stat().st_mtime for file in folder.iterdir()), default=0.0)
            if card.is_file() and card.stat().st_mtime > newest:
                reason = "the teacher's answers for settings before the current ones"
                yield Leftover(folder, disk_usage(folder), reason)
        elif folder.name.removeprefix(QUANTIZED) not in variants:
            reason = f"checkpoint of a variant that {paths.PARAMETERS} does not have"
            yield Leftover(folder, disk_usage(folder), reason)
