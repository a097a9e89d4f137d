"""How long a server may leave a request without an answer, whatever it does instead.

MLflow's own limits hold for each read of a socket: a server that sends one byte per second, or a name service
that does not answer, is waited for without an end.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
from sqlalchemy import Engine, event

from pipeline.tracking.records import UnreachableError

TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
DEFAULTS = {TIMEOUT: "10", RETRIES: "0"}
"""Seconds per request and number of repetitions where the environment says nothing. A repeated request could
make a run twice: what failed is looked for before it is made again."""

FIRST_ANSWER = 7.0
"""Seconds until a server that has not answered anything is given up."""

NEXT_ANSWER = 15.0
"""Seconds until a server that has answered before is given up."""

POLL_SECONDS = 0.25

RESPONSES = "urllib3.connectionpool"
"""Logger that has one line per response of a server, with its status."""

Result = TypeVar("Result")


class Watch:
    """Sees the answers of a server, and the bytes that it takes."""

    def __init__(self) -> None:
        self.started = self.latest = time.monotonic()
        self.answered = False
        self._positions: Any = None

    def answer(self) -> None:
        """The server has answered."""
        self.answered, self.latest = True, time.monotonic()

    def silence(self) -> float:
        """Seconds since the latest answer, or since a file that is being sent has moved on."""
        positions = [
            (file.path, getattr(file, "position", None))
            for file in psutil.Process().open_files()
            if not file.path.startswith("/proc/")
        ]
        if positions != self._positions and self._positions is not None and self.answered:
            self.latest = time.monotonic()
        self._positions = positions
        return time.monotonic() - self.latest

    def limit(self) -> float:
        """Seconds of silence after which the server is given up; longer limits of the user are kept to."""
        chosen = {name: os.environ.get(name, default) for name, default in DEFAULTS.items()}
        if chosen == DEFAULTS:
            return NEXT_ANSWER if self.answered else FIRST_ANSWER
        try:
            retries = int(chosen[RETRIES])
            # MLflow waits for 2, 4, 8, ... seconds between the repetitions.
            return max(NEXT_ANSWER, float(chosen[TIMEOUT]) * (retries + 1) + 2 ** (retries + 1))
        except ValueError:
            return NEXT_ANSWER

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the answers of HTTP servers and of database servers while the block runs."""

        def see(record: logging.LogRecord) -> bool:
            status = record.args[6] if isinstance(record.args, tuple) and len(record.args) == 8 else None
            if isinstance(status, int) and status < 500:
                self.answer()
            return record.levelno > logging.DEBUG

        def executed(*_: Any) -> None:
            self.answer()

        logger = logging.getLogger(RESPONSES)
        level = logger.level
        logger.addFilter(see)
        logger.setLevel(logging.DEBUG)
        event.listen(Engine, "after_cursor_execute", executed)
        try:
            yield
        finally:
            logger.removeFilter(see)
            logger.setLevel(level)
            event.remove(Engine, "after_cursor_execute", executed)


def patiently(work: Callable[[Watch], Result], address: str) -> Result:
    """Do some work that waits for a server, in a thread that is left behind when the server is silent.

    Raises:
        UnreachableError: the server has not answered for too long.
    """
    watch = Watch()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(watch))
        except BaseException as error:  # raised again where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    with watch.watching():
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if thread.is_alive() and (silence := watch.silence()) > watch.limit():
                _left_behind.append(thread)
                raise UnreachableError(f"MLflow at {address}: no answer for {silence:.0f} s")
    if errors:
        raise errors[0]
    return results[0]


_left_behind: list[threading.Thread] = []


def leave() -> None:
    """End this process now if a thread still waits for a server: Python would wait for it, too."""
    if any(thread.is_alive() for thread in _left_behind):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
