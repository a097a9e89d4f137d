"""A dvc.lock that a kill has cut is noticed and mended."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import paths
from pipeline.running import lock_file
from pipeline.running.lock_file import LockFileError

VARIANTS = ("fp32", "int8")
NAMES = ("check", "prepare", "build@fp32", "build@int8", "track")


def entry(name: str, number: int) -> str:
    """What DVC writes of a stage; the number tells versions apart."""
    return f"""  {name}:
    cmd: python -m pipeline.stages.{name.partition("@")[0]}
    deps:
    - path: configs
      hash: md5
      md5: b13fa6f5d84dd7b94f85b331249af886.dir
      size: 11822
      nfiles: 21
    params:
      params.yaml:
        seed: {number}
    outs:
    - path: artifacts/{name}/a
      hash: md5
      md5: 259b12bd6f24ac3cbd0b7e3683446aee
      size: {number}
    - path: artifacts/{name}/b
      hash: md5
      md5: 006127bd6bac8a4c0cc7324d07d2d8d1.dir
      size: {number}
      nfiles: 12
"""


def text(**numbers: int) -> str:
    versions = {name: numbers.get(name.replace("@", "_"), 1) for name in NAMES}
    return "schema: '2.0'\nstages:\n" + "".join(entry(name, number) for name, number in versions.items())


def sizes() -> dict[str, int]:
    """The version of each stage in dvc.lock."""
    stages = yaml.safe_load(paths.LOCK.read_text())["stages"]
    return {name: stage["outs"][-1]["size"] for name, stage in stages.items()}


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (tmp_path / lock_file.TEMPORARY).mkdir(parents=True)
    stages = {name: {"cmd": "true"} for name in ("check", "prepare", "track")}
    stages |= {"build": {"foreach": "${variants}"}}
    paths.PIPELINE.write_text(yaml.safe_dump({"stages": stages}))
    return tmp_path


def test_wherever_a_kill_cuts_the_file_all_stages_are_there_again_and_none_is_older_than_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, after = text(), text(prepare=2)
    cuts = [*range(0, len(after), 79), len(after) - 1]
    for cut in cuts:
        paths.LOCK.write_text(before)
        lock_file.keep_copy()
        paths.LOCK.write_text(after[:cut])
        lock_file.keep_copy()  # a cut file takes no copy's place
        lock_file.mend(VARIANTS)
        written = after.index("  build@fp32:") <= cut
        assert sizes() == {**dict.fromkeys(NAMES, 1), "prepare": 2 if written else 1}, cut
        note = capsys.readouterr().err
        assert len(note.splitlines()) == 1
        assert "dvc.lock" in note
        assert (lock_file.COPY).read_text() == paths.LOCK.read_text()
        assert lock_file.DAMAGED.read_text() == after[:cut]
    assert len(cuts) > 25


def test_a_cut_in_the_entry_of_a_new_stage_loses_that_entry_alone(capsys: pytest.CaptureFixture[str]) -> None:
    older = text()[: text().index("  track:")]
    for cut in range(len(older) + 1, len(text()), 37):
        paths.LOCK.write_text(older)
        lock_file.keep_copy()
        paths.LOCK.write_text(text()[:cut])
        lock_file.mend(VARIANTS)
        if "size: 1\n    - path" not in paths.LOCK.read_text()[len(older) :]:
            assert paths.LOCK.read_text() == older
        assert all(outs == 1 for outs in sizes().values())
    assert "dvc.lock" in capsys.readouterr().err


def test_without_a_copy_the_committed_file_is_taken_and_without_that_what_is_whole(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = text(prepare=2)[: text().index("  build@int8:") + 100]
    paths.LOCK.write_text(cut)
    lock_file.mend(VARIANTS)
    assert sizes() == {"check": 1, "prepare": 2, "build@fp32": 1}
    lock_file.COPY.unlink()

    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    paths.LOCK.write_text(text())
    for arguments in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], cwd=checkout, check=True)
    paths.LOCK.write_text(cut)
    lock_file.mend(VARIANTS)
    assert sizes() == {**dict.fromkeys(NAMES, 1), "prepare": 2}
    assert "git" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "schema: '2.0'\nstages:\n", "schema", "stages: {"])
def test_a_file_in_which_nothing_is_whole_is_removed_if_there_is_no_other(
    content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.LOCK.write_text(content)
    lock_file.mend(VARIANTS)
    assert not paths.LOCK.exists()
    assert "removed" in capsys.readouterr().err


def unchanged(content: str, variants: tuple[str, ...] = VARIANTS) -> bool:
    paths.LOCK.write_text(content)
    lock_file.mend(variants)
    return paths.LOCK.read_text() == content


def test_stages_that_are_gone_on_purpose_stay_gone(capsys: pytest.CaptureFixture[str]) -> None:
    paths.LOCK.write_text(text())
    lock_file.keep_copy()
    # The last variant is no longer there, in params.yaml and in a dvc.lock of that time.
    fewer = text()[: text().index("  build@int8:")] + entry("track", 1)
    assert unchanged(fewer, ("fp32",))
    paths.LOCK.write_text(text())
    lock_file.keep_copy()
    without_track = text()[: text().index("  track:")]
    paths.PIPELINE.write_text(paths.PIPELINE.read_text().replace("track", "other"))
    assert unchanged(without_track)
    # An entry that somebody removed from the middle.
    paths.LOCK.write_text(text())
    lock_file.keep_copy()
    assert unchanged(text().replace(entry("prepare", 1), ""))
    # The whole file.
    paths.LOCK.unlink()
    lock_file.mend(VARIANTS)
    assert not paths.LOCK.exists()
    assert not lock_file.COPY.exists()
    assert capsys.readouterr().err == ""


def test_the_committed_file_is_taken_as_it_is(checkout: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    shorter = text()[: text().index("  track:")]
    paths.LOCK.write_text(shorter)
    for arguments in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], cwd=checkout, check=True)
    paths.LOCK.write_text(text())
    lock_file.keep_copy()
    assert unchanged(shorter)  # `git checkout dvc.lock`


def test_a_merge_that_is_not_resolved_is_left_to_its_owner() -> None:
    conflict = text().replace("  prepare:", "<<<<<<< HEAD\n  prepare:")
    paths.LOCK.write_text(conflict)
    with pytest.raises(LockFileError, match=r"dvc\.lock .*merge"):
        lock_file.mend(VARIANTS)
    assert paths.LOCK.read_text() == conflict


HOLD = """
import sys, time, zc.lockfile
lock = zc.lockfile.LockFile(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_nothing_is_written_while_dvc_holds_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file, "WAIT_SECONDS", 0.2)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock_file.TEMPORARY / "lock")], stdout=subprocess.PIPE, text=True
    ) as dvc:
        assert dvc.stdout
        assert dvc.stdout.readline() == "held\n"
        assert unchanged(text()[:100])
        dvc.kill()
    assert not unchanged_or_gone(text()[:100])


def unchanged_or_gone(content: str) -> bool:
    paths.LOCK.write_text(content)
    lock_file.mend(VARIANTS)
    return paths.LOCK.exists() and paths.LOCK.read_text() == content


def test_a_stage_that_dvc_runs_mends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "check")
    assert unchanged(text()[:100])


@pytest.mark.parametrize("content", ["", '{"write": {"/a', "[]", "null", "\x00\x00"])
def test_notes_of_dvc_that_are_cut_are_removed(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    lock_file.HOLDERS.write_text(content)
    lock_file.mend(VARIANTS)
    assert not lock_file.HOLDERS.exists()
    assert "rwlock" in capsys.readouterr().err
    whole = json.dumps({"write": {"/a": {"pid": 1, "cmd": "dvc repro"}}, "read": {}})
    lock_file.HOLDERS.write_text(whole)
    lock_file.mend(VARIANTS)
    assert lock_file.HOLDERS.read_text() == whole


def test_notes_of_processes_that_have_ended_are_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone, here = ({"pid": pid, "cmd": "dvc repro"} for pid in (ended.pid, 1))
    notes = {"write": {"/a": gone, "/b": here}, "read": {"/c": [gone, here], "/d": [gone]}}
    lock_file.HOLDERS.write_text(json.dumps(notes))
    lock_file.mend(VARIANTS)
    left = json.loads(lock_file.HOLDERS.read_text())
    assert left == {"write": {"/b": here}, "read": {"/c": [here]}}
    assert capsys.readouterr().err == ""


def test_bytes_that_are_no_text_are_mended(capsys: pytest.CaptureFixture[str]) -> None:
    paths.LOCK.write_text(text())
    lock_file.keep_copy()
    paths.LOCK.write_bytes(text().encode()[:700] + b"\xff\x00\xfe" + text().encode()[760:])
    lock_file.mend(VARIANTS)
    assert sizes() == dict.fromkeys(NAMES, 1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_real_file_is_whole_wherever_it_is_cut_it_is_not(checkout: Path) -> None:
    root = Path(__file__).parents[1]
    whole = (root / paths.LOCK).read_text()
    shutil.copy(root / paths.PIPELINE, checkout)
    variants = {name.partition("@")[2] for name in yaml.safe_load(whole)["stages"] if "@" in name}
    paths.LOCK.write_text(whole)
    lock_file.mend(variants)
    assert lock_file.COPY.read_text() == whole
    for cut in range(0, len(whole), 2999):
        assert not unchanged(whole[:cut], tuple(variants))
        assert paths.LOCK.read_text() == whole
