"""Addresses of tracking servers and databases, checked before any work and without MLflow."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

SQLITE = "sqlite:///"
DATABASES = ("postgresql", "mysql", "mssql")
"""Database servers, each with an optional driver: ``postgresql+psycopg``."""
ALLOWED = (
    "allowed: sqlite:///PATH, http://HOST, https://HOST, databricks, "
    f"or a database server ({', '.join(DATABASES)})"
)


def problem(address: str) -> str | None:
    """What is wrong with an address, or None.

    Whether a server answers is left open: it may be away now and back when the results are delivered.
    """
    return next(_problems(address), None)


def database(address: str) -> Path | None:
    """The file of a SQLite database, or None for an address of another kind."""
    return Path(address.removeprefix(SQLITE)) if address.startswith(SQLITE) else None


def is_local(address: str) -> bool:
    """Whether the address is that of a file, so that no server has to answer."""
    return database(address) is not None


def _problems(address: str) -> Iterator[str]:
    if address != address.strip() or not address.isprintable():
        yield f"blanks at the ends and control characters are not allowed; {ALLOWED}"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        yield f"{error}; {ALLOWED}"
        return
    kind = parts.scheme.partition("+")[0]
    if port == 0:
        yield "no server listens on port 0; allowed: 1 to 65535"
    if address.startswith("sqlite"):
        yield from _file_problems(address)
    elif kind in ("http", "https"):
        if not host or " " in parts.netloc:
            yield f"the name of the host is missing or is not valid; {ALLOWED}"
        elif parts.query or parts.fragment:
            yield f"`?` and `#` are of a page and not of a server; did you mean {_without_page(parts)}?"
    elif kind in DATABASES:
        if not host:
            yield f"the name of the host is missing; allowed: {kind}://USER:PASSWORD@HOST/DATABASE"
    elif address.partition(":")[0] == "databricks":
        if not _databricks_login():
            yield (
                "no login for Databricks; set DATABRICKS_HOST and DATABRICKS_TOKEN, or write ~/.databrickscfg"
            )
    elif kind in ("", "file"):
        yield f"a folder of files is no longer supported by MLflow; {ALLOWED}"
    else:
        yield f"the kind {kind!r} is unknown; {ALLOWED}"


def _without_page(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def missing_driver(address: str) -> str | None:
    """What is to be installed for a database server, or None; slow, since it imports the driver."""
    if urlsplit(address).scheme.partition("+")[0] not in DATABASES:
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(address).get_dialect().import_dbapi()
    except (ImportError, SQLAlchemyError) as error:
        return f"the driver of this database is not installed or is not known ({error})"
    return None


def _file_problems(address: str) -> Iterator[str]:
    path = address.removeprefix(SQLITE)
    if path == address or path in ("", ":memory:"):
        yield "the path of the file is missing; allowed: sqlite:///PATH (four slashes with an absolute path)"
    elif path.startswith("~"):
        yield f"`~` is not expanded; write {SQLITE}{Path(path).expanduser()}"
    elif any(character in path for character in "?%"):
        yield "a path with `?` or `%` has another meaning in such an address; allowed: another path"
    elif path.endswith("/"):
        yield "the path ends with `/`; allowed: the path of a file"


def _databricks_login() -> bool:
    config = Path(os.environ.get("DATABRICKS_CONFIG_FILE") or "~/.databrickscfg").expanduser()
    return bool(os.environ.get("DATABRICKS_HOST")) or config.is_file()
