import sys

import pytest

from pipeline import process
from pipeline.stages import compare, export


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
        process.check_arguments()
    assert caught.value.code == status
    out, err = capsys.readouterr()
    assert ("artifacts/" in out) == (status == 0)
    assert len(err.splitlines()) == (1 if status else 0)


@pytest.mark.parametrize(("module", "arguments"), [(compare, []), (export, ["fp32"])])
def test_a_stage_starts_with_the_arguments_that_its_main_takes(
    monkeypatch: pytest.MonkeyPatch, module: object, arguments: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", ["stage", *arguments])
    process.check_arguments()
