"""A command of `python -m pipeline` in the process of a test."""

import shlex
import sys

import pytest

from pipeline import __main__ as command_line


def run(monkeypatch: pytest.MonkeyPatch, arguments: str) -> int:
    """The exit status."""
    monkeypatch.setattr(sys, "argv", ["pipeline", *shlex.split(arguments)])
    try:
        command_line.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0
