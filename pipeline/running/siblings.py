"""The processes that train one network together: which of them this one is, and their common end.

Lightning Fabric, torchrun or SLURM starts them. A process that dies leaves the others waiting in a collective
operation, for half an hour or for ever. So each has a connection to the first one that carries nothing until
a process ends: the kernel closes it, however its owner ends, and keep-alive packets notice a machine that is
gone.
"""

import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, MutableSequence, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from pipeline.errors import DistilleryError

NUMBERS = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_NNODES",
)
"""Environment variables in which launchers number and count processes."""
FIRST = "DISTILLERY_FIRST_PROCESS"
"""Environment variable that names the first process to those that Fabric starts for it."""
GRACE_SECONDS = 10.0
"""Seconds that other processes leave the first one to report an error that all of them have."""
NOTICE_SECONDS = 3.0
"""Seconds in which the end of a process is noticed, after which operations with it fail."""
JOIN_SECONDS = 120.0
"""Seconds in which all processes, which have met before, connect to the first one."""
POLL_SECONDS = 0.2
"""Seconds between two looks at processes that are not connected yet."""
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A machine that does not answer for 20 seconds counts as gone."""

DONE, FAILED = b"0", b"1"
"""Last word of a process: it has finished, or it has failed and has said why. One that was killed says
nothing."""

_joined = threading.Event()
_connections: dict[int, socket.socket] = {}
"""Number of each connected process to the connection."""


def is_first() -> bool:
    """Whether this process is the first of its siblings, or alone, by the environment of its launcher.

    The first one writes, reports and holds locks.
    """
    names = ["LOCAL_RANK", "NODE_RANK"]
    if "RANK" in os.environ:
        names = ["RANK"]
    elif in_slurm_step():
        names = ["SLURM_PROCID"]
    return not any(_number(name, 0) for name in names)


def in_slurm_step() -> bool:
    """Whether `srun` started this process as one of several; a batch script is no step."""
    return "SLURM_STEP_ID" in os.environ and _number("SLURM_NTASKS", 1) > 1


def check_environment() -> None:
    """Check the variables of launchers.

    Raises:
        DistilleryError: one is not a whole number.
    """
    for name in NUMBERS:
        if (text := os.environ.get(name)) and not (text.isascii() and text.isdecimal()):
            raise DistilleryError(
                f"environment variable {name} = {text!r}: allowed: a whole number, as the launcher of "
                "several processes sets it; otherwise unset it"
            )


def _number(name: str, default: int) -> int:
    """A variable of a launcher; the default for one that is unset, or that ``check_environment`` refuses."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else default


def end_with_first() -> None:
    """End this process when the first one, which has started it, ends before both are connected."""
    number = os.environ.get(FIRST)
    if number is None or is_first():
        return

    def watch() -> None:
        while not _joined.wait(POLL_SECONDS):
            if os.getppid() != int(number):
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def watch_started(children: MutableSequence["subprocess.Popen[Any]"], say: Callable[[str], None]) -> None:
    """End this process when one that Fabric starts for it ends before both are connected.

    Args:
        children: the list that Fabric's launcher fills. The processes are taken out of it: Fabric would end
            all by SIGKILL, without a line.
        say: prints an error.
    """
    os.environ[FIRST] = str(os.getpid())
    started: list[subprocess.Popen[Any]] = []
    _started.append(started)

    def watch() -> None:
        while not _joined.wait(POLL_SECONDS):
            while children:
                started.append(children.pop(0))
            for number, child in enumerate(started, 1):
                if child.poll():
                    if child.returncode < 0:
                        say(_ended(number, len(started) + 1, f"process {child.pid}", child.returncode))
                    _end_all()

    threading.Thread(target=watch, daemon=True).start()


_started: list[Sequence["subprocess.Popen[Any]"]] = []
"""Processes that were started for this one."""


def join(
    number: int, count: int, host: str | None, share: Callable[[Any], Any], say: Callable[[str], None]
) -> None:
    """Connect all processes with the first one; from here on, they end together.

    Args:
        number: number of this process, from 0.
        count: number of all processes.
        host: name of the machine of the first process; None if all run on this machine.
        share: returns what the first process gives it, in all processes.
        say: prints an error.
    """
    name = f"{socket.gethostname()}, process {os.getpid()}"
    if number == 0:
        with _server(host) as server:
            server.settimeout(JOIN_SECONDS)
            key = secrets.token_hex(16)
            share((server.getsockname()[1], key, name))
            names: dict[int, str] = {}
            while len(names) < count - 1:
                connection, _ = server.accept()
                connection.settimeout(JOIN_SECONDS)
                with suppress(OSError, ValueError, KeyError):
                    # Without a buffer, which could swallow a last word that follows.
                    hello = json.loads(connection.makefile("rb", buffering=0).readline())
                    if secrets.compare_digest(hello["key"], key):
                        names[hello["number"]] = hello["name"]
                        _connections[hello["number"]] = connection
    else:
        port, key, first = share(None)
        connection = socket.create_connection((host or "127.0.0.1", port), timeout=JOIN_SECONDS)
        hello = {"key": key, "number": number, "name": name}
        connection.sendall(json.dumps(hello).encode() + b"\n")
        _connections[0], names = connection, {0: first}
    for connection in _connections.values():
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        # The processes that render images live on for seconds when their parent is killed.
        os.register_at_fork(after_in_child=connection.close)
    _joined.set()
    threading.Thread(target=_listen, args=(names, number, count, say), daemon=True).start()


def _server(host: str | None) -> socket.socket:
    """A socket that takes connections from this machine alone if ``host`` is None."""
    if host is None:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _listen(names: dict[int, str], own: int, count: int, say: Callable[[str], None]) -> None:
    """Wait for the last words of the connected processes; end with those that fail or are killed."""
    with selectors.DefaultSelector() as waiting:
        for number, connection in _connections.items():
            waiting.register(connection, selectors.EVENT_READ, number)
        while waiting.get_map():
            for key, _ in waiting.select():
                try:
                    word = os.read(key.fd, 1)
                except OSError:
                    word = b""
                waiting.unregister(key.fileobj)
                if word == DONE:
                    continue
                if word != FAILED and own <= 1:
                    # DVC, the launcher or a person may have ended all of them, and this one in a moment.
                    time.sleep(NOTICE_SECONDS / 3)
                    say(_ended(key.data, count, names[key.data], _status(key.data)))
                _end_all()


def _status(number: int) -> int | None:
    """How a process that was started for this one has ended: a status, or minus a signal."""
    for started in _started:
        with suppress(IndexError, subprocess.TimeoutExpired):
            return started[number - 1].wait(timeout=2.0)
    return None


def _ended(number: int, count: int, name: str, status: int | None) -> str:
    how = f" by {signal.Signals(-status).name}" if status and status < 0 else ""
    return (
        f"rank {number} of the {count} processes of this stage ({name}) was ended{how}, so all of them end; "
        "finished epochs are kept, and the same command goes on from there"
    )


def _end_all() -> NoReturn:
    """End this process, and with the first one all others."""
    leave(failed=True)
    for started in _started:
        for child in started:
            if child.poll() is None:
                child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


def leave(*, failed: bool) -> None:
    """Say the last word: this process has finished, or has failed and has said why."""
    for connection in _connections.values():
        with suppress(OSError):
            connection.sendall(FAILED if failed else DONE)
    if failed and _connections:
        # At the end of Python, libraries would wait for operations that others do not join any more.
        timer = threading.Timer(GRACE_SECONDS, os._exit, [1])
        timer.daemon = True
        timer.start()


def are_joined() -> bool:
    """Whether this process shares its work with others at the moment."""
    return bool(_connections)


def give_way(*, perhaps_theirs: bool = False) -> None:
    """Before an error is reported, let those go first who end this process if the report is theirs.

    That is the first process, which has the same error, or whoever notices that another one was killed.

    Args:
        perhaps_theirs: whether the error can come from the end of another process.
    """
    if not is_first():
        time.sleep(GRACE_SECONDS)
    elif perhaps_theirs and are_joined():
        time.sleep(NOTICE_SECONDS)
