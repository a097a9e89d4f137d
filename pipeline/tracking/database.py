"""MLflow's SQLite database: made whole or not at all, and looked at before MLflow opens it.

MLflow makes its tables in place, in dozens of steps. A process that is killed in between leaves a file that
MLflow can neither use nor repair. Here, a new database is made under a temporary name beside its own, and
renamed when it is complete.
"""

import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pipeline import files
from pipeline.tracking.records import TrackingError

BUSY_SECONDS = 10.0
"""Seconds to wait for another process that has locked the database or is making it in place."""

TABLES = ("experiments", "runs", "metrics", "params", "tags", "registered_models", "model_versions")
"""Tables that every complete database has."""

REVISION = "alembic_version"
"""Table with the revision of the schema."""


class DatabaseError(TrackingError):
    """The database cannot be used; the message says what can be done and what that costs."""


def prepare(file: Path, make: Callable[[Path], None]) -> None:
    """Make the database if there is none yet, and check it.

    Processes that need it at the same time wait for the one that makes it.

    Args:
        file: path of the database.
        make: writes a new database to a path.

    Raises:
        DatabaseError: the database is broken, locked, or cannot be made.
    """
    problem = check(file)
    if problem is not None:
        raise DatabaseError(problem)
    if not _is_empty(file):
        return
    try:
        with files.locked(file.with_name(f"{file.name}.lock")):
            if _is_empty(file):
                _remove_leftovers(file)
                _make(file, make)
    except (OSError, sqlite3.Error) as error:
        raise DatabaseError(f"{file}: the database could not be made: {reason(error)}") from error


def check(file: Path) -> str | None:
    """Say in one line why the database cannot be used or made, or None. No database is made."""
    try:
        if file.is_dir():
            return f"{file} is a folder, not a database; name a file, or move the folder away"
        if file.exists() and not file.is_file():
            return f"{file} is not a regular file; name another one"
        if (problem := _folder_problem(file)) is not None:
            return problem
        if _is_empty(file):
            return None
        deadline = time.monotonic() + BUSY_SECONDS
        while (problem := _problem(file)) is not None and time.monotonic() < deadline:
            # Perhaps MLflow is making it in place this very moment.
            if not (_half_made(problem) and time.time() - file.stat().st_mtime < BUSY_SECONDS):
                break
            time.sleep(0.5)
    except OSError as error:
        return f"{file}: the database could not be read: {reason(error)}"
    return problem


def reason(error: BaseException) -> str:
    """What SQLite or the system says, on one line and without the statement that failed."""
    text = " ".join(str(error).split())
    for marker in ("[SQL:", "(Background on this error"):
        text = text.partition(marker)[0]
    return text.removeprefix("(sqlite3.OperationalError)").removeprefix("(sqlite3.DatabaseError)").strip()


def explain(file: Path, error: BaseException) -> str:
    """One line for an error that came up while MLflow used the database."""
    text = reason(error)
    if "locked" in text:
        return f"{file} is locked by another process ({text}); end that process, or try again later"
    if "full" in text or "disk I/O error" in text:
        return f"{file} could not be written ({text}); make room on its disk"
    if "readonly" in text:
        return f"{file} is not writable ({text}); change its permissions and those of its folder"
    if "not a database" in text:
        cure = f"name another file, or, if this was MLflow's, {_move_away(file)}"
        return f"{file} is not a SQLite database; {cure}"
    if any(word in text for word in ("malformed", "no such table", "no such column")):
        return f"{file} is damaged ({text}); {_move_away(file)}"
    return f"{file}: {text}"


def _is_empty(file: Path) -> bool:
    return not file.exists() or file.stat().st_size == 0


def _folder_problem(file: Path) -> str | None:
    """Why no file can be made in the folder of the database, where SQLite puts its journals, too."""
    # Of a link, the folder that it leads to counts.
    folder = file.resolve().parent
    if not folder.exists():
        return f"{file}: there is no folder {folder}; make it, or name another file"
    if not folder.is_dir():
        return f"{file}: {folder} is not a folder; name another file"
    try:
        # A trial: root may write everywhere by its permissions, also where no file can be, as in /proc.
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        why = error.strerror or type(error).__name__
        return (
            f"{file}: {folder} is not writable, so that no database can be there ({why}); change its "
            "permissions, or name another file"
        )


def _make(file: Path, make: Callable[[Path], None]) -> None:
    with files.replacing(file) as fresh:
        try:
            make(fresh)
        # MLflow, SQLAlchemy and Alembic raise errors of many kinds for a full disk or a missing permission.
        except Exception as error:
            raise DatabaseError(f"{file}: the database could not be made: {reason(error)}") from error
        if not _is_empty(file):
            # Another program has made one meanwhile, without this lock. Its content stays.
            fresh.unlink()
            raise DatabaseError(f"{file} was made by another program at the same time; try again")


def _remove_leftovers(file: Path) -> None:
    """Remove what killed processes have left; only the holder of the lock makes databases."""
    for leftover in file.parent.glob(f".{file.name}.*.new*"):
        leftover.unlink(missing_ok=True)
    # SQLite would play the journal of a database that was moved away into the new one.
    for ending in ("-journal", "-wal", "-shm"):
        file.with_name(f"{file.name}{ending}").unlink(missing_ok=True)


def _problem(file: Path) -> str | None:
    if not os.access(file, os.R_OK | os.W_OK):
        return f"{file} is not writable; change its permissions and those of its folder"
    revision = None
    try:
        with _open(file) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if REVISION in tables:
                revision = next(
                    (r for (r,) in connection.execute(f"SELECT version_num FROM {REVISION}")), None
                )
    except sqlite3.Error as error:
        return explain(file, error)
    if tables - {REVISION} and "experiments" not in tables and revision not in _migrations():
        return (
            f"{file} is the database of another program (its tables: {_head(sorted(tables))}); name another "
            "file for MLflow's"
        )
    missing = [table for table in TABLES if table not in tables]
    if missing or revision is None:
        what = f"the table {missing[0]} is missing" if missing else "its schema has no revision"
        return f"{file} is half made ({what}); {_move_away(file)}"
    return _revision_problem(file, revision)


def _head(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _half_made(problem: str) -> bool:
    return "is half made" in problem or "is older" in problem


def _revision_problem(file: Path, revision: str) -> str | None:
    earlier, this = _migrations(), f"MLflow {version('mlflow')}"
    if revision not in earlier:
        return (
            f"{file} has the schema {revision}, which {this} does not know: a newer MLflow wrote it; use "
            f"that one, or {_move_away(file)}"
        )
    if revision != latest():
        return (
            f"{file} is older than {this} (schema {revision}); copy it, then run `mlflow db upgrade "
            f"sqlite:///{file}`; if that fails, it is half made: {_move_away(file)}"
        )
    return None


def latest() -> str:
    """The schema revision of the installed MLflow."""
    known = _migrations()
    return next(revision for revision in known if revision not in known.values())


@cache
def _migrations() -> dict[str, str]:
    """Each schema revision of the installed MLflow and the one before it, without an import of MLflow."""
    spec = find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "store" / "db_migrations" / "versions"
    pairs = {}
    for source in folder.glob("*_*.py"):
        named = dict(
            re.findall(r'^(revision|down_revision) = "(\w+)"', source.read_text(encoding="utf-8"), re.M)
        )
        if "revision" in named:
            pairs[named["revision"]] = named.get("down_revision", "")
    return pairs


def _move_away(file: Path) -> str:
    """The cure for a broken database and what is lost by it."""
    runs = _count_runs(file)
    lost = "it holds no runs" if runs == 0 else f"MLflow then shows its {runs or 'earlier'} runs no longer"
    return f"move it away ({lost}), and a new one is made"


def _count_runs(file: Path) -> int | None:
    try:
        with _open(file) as connection:
            return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])
    except sqlite3.OperationalError as error:
        return 0 if "no such table" in str(error) else None
    except sqlite3.Error:
        return None


@contextmanager
def _open(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection to an existing file. It may write: SQLite first undoes what a killed process left."""
    address = f"{file.resolve().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as connection:
        yield connection
