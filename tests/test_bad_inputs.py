"""Bad files, names, addresses and paths: each is one line before any work, and none a traceback."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import __main__, earlier, parameters, paths
from pipeline.parameters import ParameterError, UnknownVariantError, composition
from pipeline.parameters.variants import LONGEST_NAME
from pipeline.running import process
from pipeline.settings import merge
from pipeline.stages import check, distill, evaluate, export, prune
from pipeline.tracking import addresses, database
from pipeline.tracking.records import TrackingError, TrackingServer

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the settings of this repository, in which paths can be bad."""
    shutil.copytree(ROOT / paths.CONFIGS, tmp_path / paths.CONFIGS)
    shutil.copy(ROOT / paths.PARAMETERS, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("DATABRICKS_HOST", "DATABRICKS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def complaint(change: dict[str, Any]) -> str:
    values = merge(yaml.safe_load(paths.PARAMETERS.read_text()), change)
    with pytest.raises(ParameterError) as caught:
        parameters.check(values, "params.yaml")
    return str(caught.value)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"- a\n- b\n", "list"),
        (b"just words\n", "just words"),
        (b"\x00\x01\x02\xff", "params.yaml"),
        ("seed: 0 # é".encode("latin-1"), "UTF-8"),
        (b"\xff\xfes\x00e\x00e\x00d\x00", "UTF-8"),
        (b"seed: 0\nseed: 1\n", "'seed'"),
        (b"data:\n  path: a\n  path: b\n", "'path'"),
        (b"data:\n\tpath: a\n", "line 2"),
        (b"a: [1,", "params.yaml"),
        (b"a: 1\n---\nb: 2\n", "params.yaml"),
        (BOMB.encode(), "100,000"),
        (b"a: &a [*a]\n", "itself"),
        (b"a: !!python/object/apply:os.system ['touch hacked']\n", "python/object"),
        (b"seed: " + b"9" * 5000 + b"\n", "params.yaml"),
        (b"[" * 5000, "params.yaml"),
        (b"? [a, b]\n: 1\n", "params.yaml"),
        (b"seed: *nothing\n", "nothing"),
        (b"seed: 010\n", "line 1: 010"),
        (b"a: 0\nseed: -08\n", "line 2: -08"),
        (b"seed: 1:30\n", "1:30"),
        (b"a: {b: [1, 12:30:45.5]}\n", "12:30:45.5"),
        (b"variants: {007: {op: distill}}\n", "007"),
    ],
)
def test_a_broken_parameter_file_is_one_line(content: bytes, named: str, checkout: Path) -> None:
    paths.PARAMETERS.write_bytes(content)
    with pytest.raises(ParameterError) as caught:
        parameters.load()
    message = str(caught.value)
    assert "params.yaml" in message
    assert named in message
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    assert not (checkout / "hacked").exists()


def test_a_folder_or_a_dangling_link_in_place_of_the_parameters_is_named() -> None:
    paths.PARAMETERS.unlink()
    paths.PARAMETERS.symlink_to("nowhere")
    with pytest.raises(ParameterError, match=r"params\.yaml"):
        parameters.load()
    paths.PARAMETERS.unlink()
    paths.PARAMETERS.mkdir()
    with pytest.raises(ParameterError, match=r"params\.yaml is a folder"):
        parameters.load()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": True}, "seed = True"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**32}, "seed = 4294967296"),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"seed": 10**400}, "seed = 1000"),
        ({"seed": None}, "seed = None"),
        ({"gate": {"quantize": {"max_drop": True}}}, "gate.quantize.max_drop = True"),
        ({"gate": {"quantize": {"max_drop": float("nan")}}}, "gate.quantize.max_drop = nan"),
        ({"gate": {"quantize": {"max_drop": 10**400}}}, "gate.quantize.max_drop"),
        ({"benchmark": {"threads": [True]}}, "benchmark.threads"),
        ({"views": {"crop_scale": [False, 1.0]}}, "views.crop_scale"),
        ({"benchmark": {"seconds": float("-inf")}}, "benchmark.seconds = -inf"),
        ({"data": []}, "data = []"),
        ({"variants": []}, "variants = []"),
        ({"variants": {"fp32": None}}, "variants.fp32 = None"),
        ({"tracking": {"experiment": "x" * 10_000}}, "tracking.experiment"),
        ({"card": {"name": ["a"]}}, "card.name"),
        ({"data": {"val": 0}}, "data.val = 0"),
        ({"data": {"test": 0.999}}, "data.test = 0.999"),
        ({"data": {"val": 2.5}}, "data.val = 2.5"),
        ({"data": {"path": 5}}, "data.path = 5"),
        ({"quantize": {"float_layers": "[x]"}}, "quantize.float_layers = '[x]'"),
        ({"quantize": {"float_layers": [5]}}, "quantize.float_layers.0 = 5"),
        ({"quantize": {"ptq": ["magic"]}}, "quantize.ptq.0 = 'magic'"),
        ({"teacher": {"labels": {"a": 1}}}, "teacher.labels = {'a': 1}"),
        ({"probe": {"radii": [-1]}}, "probe.radii.0 = -1"),
        ({"probe": {"radii": []}}, "probe.radii = []"),
        ({"benchmark": {"threads": [0, 0]}}, "benchmark.threads = [0, 0]"),
    ],
)
def test_a_value_of_another_kind_is_one_short_line(change: dict[str, Any], named: str) -> None:
    message = complaint(change)
    assert message.startswith(f"params.yaml: {named}")
    assert len(message.splitlines()) == 1
    assert len(message) < 600


@pytest.mark.parametrize(
    "name",
    [
        "teacher",
        "teacher-head",
        "none",
        "",
        " ",
        "a b",
        "a/b",
        "../up",
        "a.b",
        "a@b",
        "a:b",
        "FP32",
        "é",
        "-a",
        "a\n",
        "a'b",
        "${x}",
        "x" * (LONGEST_NAME + 1),
    ],
)
def test_a_bad_name_of_a_variant_is_one_line_with_the_name(name: str) -> None:
    message = complaint({"variants": {name: {"parent": "teacher", "op": "distill"}}})
    assert len(message.splitlines()) == 1
    assert repr(name)[:50] in message
    assert "cycle" not in message


@pytest.mark.parametrize(
    "name", ["", "  ", " birds", "birds ", "a\nb", "a\tb", "\x00", "///", "é" * 201, "\u202eevil"]
)
def test_an_experiment_name_that_mlflow_would_garble_is_refused(name: str) -> None:
    assert complaint({"tracking": {"experiment": name}}).startswith("params.yaml: tracking.experiment = ")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "mlruns",
        "./mlruns",
        "file:///tmp/mlruns",
        "foo://x",
        "ftp://example.org",
        "http://",
        "http:///path",
        "http://a b/",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://host:5000/#/experiments/1",
        "http://host:5000/?page=2",
        "https://[",
        " http://host",
        "http://host\n",
        "sqlite:mlflow.db",
        "sqlite://mlflow.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///~/mlflow.db",
        "sqlite:///a?b.db",
        "sqlite:///a%20b.db",
        "sqlite:///folder/",
        "postgresql://",
        "postgresql://host:0/db",
        "postgres://host/db",
        "databricks",
        "databricks://profile",
        "uc:x",
    ],
)
def test_an_address_that_is_not_one_is_refused_with_what_is_allowed(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = complaint({"tracking": {"uri": uri}})
    assert message.startswith(f"params.yaml: tracking.uri = {uri!r}: ")
    assert len(message.splitlines()) == 1
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI = "):
            TrackingServer("sqlite:///mlflow.db", "x", Path()).address()


@pytest.mark.parametrize("user", ["me", ""])
def test_no_message_shows_the_password_of_an_address(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"postgres://{user}:se:cret@host/db"
    with pytest.raises(SystemExit), process.one_line_errors():
        raise TrackingError(complaint({"tracking": {"uri": uri}}))
    message = capsys.readouterr().err
    assert "secret" not in message.replace(":", "")
    assert f"postgres://{user}:***@host/db" in message


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "sqlite:////var/my data/ü [1] $x.db",
        "http://host:5000/prefix",
        "https://user:p%40ss@host",
        "http://[::1]:5000",
        "postgresql+psycopg://user:word@host/db",
    ],
)
def test_a_good_address_is_taken(uri: str) -> None:
    assert addresses.problem(uri) is None


@pytest.mark.parametrize("name", ["artifacts/models/pruned-25", "elsewhere/artifacts/models/fp32"])
def test_a_student_of_another_run_or_of_another_name_may_be_a_start(name: str) -> None:
    Path(name).mkdir(parents=True)
    values = yaml.safe_load(paths.PARAMETERS.read_text())
    change = {"student": {"init": {"source": "run", "path": name}}}
    init = parameters.check(merge(values, change), "params.yaml").student.init
    assert init is not None
    assert init.path == name


def test_databricks_needs_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_HOST", "https://example.org")
    assert addresses.problem("databricks") is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"source": "folder", "path": "~/photos"}}, "data.path = '~/photos': `~`"),
        ({"data": {"source": "folder", "path": "params.yaml"}}, "data.path = 'params.yaml': this is a file"),
        ({"data": {"source": "folder", "path": ""}}, "data.path = ''"),
        ({"data": {"source": "folder", "path": " "}}, "data.path = ' '"),
        ({"evaluation": {"metadata": ""}}, "evaluation.metadata = ''"),
        ({"probe": {"out_of_distribution": ""}}, "probe.out_of_distribution = ''"),
        ({"teacher": {"source": "timm", "name": ""}}, "teacher.name = ''"),
        ({"teacher": {"weights": ""}}, "teacher.weights = ''"),
        ({"student": {"init": {"source": "run", "path": ""}}}, "student.init.path = ''"),
        ({"data": {"source": "folder", "path": "x" * 300}}, "data.path = 'xxx"),
        ({"data": {"source": "folder", "path": "a\x00b"}}, "data.path = 'a\\x00b'"),
        ({"data": {"source": "folder", "path": "s3://bucket/x"}}, "data.path = 's3:"),
        ({"evaluation": {"metadata": "configs"}}, "evaluation.metadata = 'configs': this is a folder"),
        ({"evaluation": {"metadata": "~/m.csv"}}, "evaluation.metadata = '~/m.csv': `~`"),
        (
            {"probe": {"out_of_distribution": "params.yaml"}},
            "probe.out_of_distribution = 'params.yaml': this",
        ),
        ({"teacher": {"name": "efficientnet_lite9"}}, "teacher.name = 'efficientnet_lite9'"),
        ({"teacher": {"name": "../x"}}, "teacher.name = '../x'"),
        ({"teacher": {"weights": "best.pth"}}, "teacher.weights = 'best.pth': no such file"),
        ({"teacher": {"weights": "~/best.safetensors"}}, "teacher.weights = '~/best.safetensors': `~`"),
        ({"teacher": {"weights": "/"}}, "teacher.weights = '/': this is a folder"),
        ({"student": {"init": {"source": "run", "path": "~/old"}}}, "student.init.path = '~/old': `~`"),
        (
            {"student": {"init": {"source": "run", "path": "artifacts/models/fp32"}}},
            "student.init.path = 'artifacts/models/fp32': this run writes there",
        ),
        (
            {
                "teacher": {
                    "source": "student",
                    "name": "configs/../artifacts/models/fp32/weights.safetensors",
                }
            },
            "teacher.name = 'configs/../artifacts/models/fp32/weights.safetensors': this run writes there",
        ),
        (
            {"teacher": {"source": "onnx", "name": "artifacts/onnx/int8-qat.onnx"}},
            "teacher.name = 'artifacts/onnx/int8-qat.onnx': this run writes there",
        ),
        (
            {"teacher": {"weights": "artifacts/teacher/weights.safetensors"}},
            "teacher.weights = 'artifacts/teacher/weights.safetensors': this run writes there",
        ),
    ],
)
def test_a_path_that_cannot_be_used_is_said_with_its_key(change: dict[str, Any], named: str) -> None:
    assert f"params.yaml: {named}" in complaint(change)


@pytest.mark.parametrize(
    "name",
    ["my photos", "[2024]", "ü é", "it's", 'say "x"', "$HOME", "a,b", "a=b", "{x}", "1e3", "null x", "#1"],
)
def test_a_folder_of_any_name_can_be_given_on_the_command_line(name: str) -> None:
    Path(name).mkdir()
    composition.write(["data=folder", f"data.path={name}", "distill.epochs=6", "benchmark.threads=[2]"])
    p = parameters.load()
    assert (p.data.path, p.distill["epochs"], p.benchmark.threads) == (Path(name), 6, (2,))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["data.pth=x"], "data.pth"),
        (["nothing.here=1"], "nothing.here"),
        (["data=nosuch"], "nosuch"),
        (["nosuch"], "nosuch"),
        (["config", "tiny"], "tiny"),
        (["seed=ten"], "seed"),
        (["seed=[1"], "seed"),
        (["data=folder", "data.path=nowhere"], "data.path"),
        (["data=folder"], "data.path"),
        (["seed.x=1"], "seed"),
        (["seed=010"], "010"),
        (["teacher.labels=[01, 02]"], "01"),
        (["data=folder/../tiny"], "folder/../tiny"),
        (["data=a,b"], "a,b"),
        (["data="], "fashion_mnist"),
        (["recipe=[1]"], "recipe"),
        (["variants=[1]"], "variants = [1]"),
        (["variants={}"], "variants"),
        (["variants={a: {parent: b, op: prune, macs: 0.5}}"], "variants.a.parent"),
        (['variants={"a b": {parent: teacher, op: distill}}'], "'a b'"),
        (["configs/tiny.yaml"], "did you mean `tiny`"),
        (["data/folder"], "data/folder"),
        (["=1"], "="),
        (["seed=1", "distill.epochs=2", "seed=3"], "seed: it is given 2 values (1, 3)"),
        (["recipe=quick", "recipe=paper"], "recipe: it is given 2 values (quick, paper)"),
        (["data=folder", "data=fashion_mnist"], "data: it is given"),
    ],
)
def test_a_wrong_change_is_named_and_nothing_is_written(words: list[str], named: str) -> None:
    before = paths.PARAMETERS.read_bytes()
    with pytest.raises((ParameterError, composition.CompositionError), match=re.escape(named)) as caught:
        composition.write(words)
    assert len(str(caught.value).splitlines()) == 1
    assert paths.PARAMETERS.read_bytes() == before


def test_all_variants_can_be_given_on_the_command_line() -> None:
    composition.write(["variants={small: {parent: teacher, op: distill, epochs: 2}}"])
    assert list(parameters.load().variants) == ["small"]


@pytest.mark.parametrize("file", ["config.yaml", "tiny.yaml", "data/folder.yaml"])
def test_a_number_of_two_meanings_in_a_configuration_is_said_with_its_file(file: str) -> None:
    path = paths.CONFIGS / file
    path.write_text(path.read_text() + "# a comment: 010\nmore: 010\n")
    with pytest.raises(composition.CompositionError, match=rf"{re.escape(file)}.* 010 ") as caught:
        composition.write([])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content", ["- a\n", "defaults: 5\n", "defaults: [5]\n", "a: [1,\n", "a: ${b}\n", "\x00"]
)
def test_a_configuration_that_is_none_is_one_line(content: str) -> None:
    (paths.CONFIGS / "own.yaml").write_text(content)
    with pytest.raises((ParameterError, composition.CompositionError)) as caught:
        composition.write(["own", "seed=1"])
    assert len(str(caught.value).splitlines()) == len(caught.value.args)


def test_a_text_in_quotes_is_no_number() -> None:
    composition.write(["card.name='010'", 'card.developers="5"', 'card.contact="a" and b'])
    card = parameters.load().card
    assert (card.name, card.developers, card.contact) == ("010", "5", '"a" and b')


@pytest.mark.parametrize("key", ["false", "2024-01-01", "null", "7", "1.5"])
def test_a_key_that_yaml_does_not_take_for_a_text_is_shown_as_it_is_written(key: str) -> None:
    content = paths.PARAMETERS.read_text()
    for changed, named in (
        (
            content.replace("variants:\n", f"variants:\n  {key}: {{parent: teacher, op: distill}}\n"),
            "variants: ",
        ),
        (f"{content}{key}: 1\n", ""),
    ):
        paths.PARAMETERS.write_text(changed)
        with pytest.raises(ParameterError) as caught:
            parameters.load()
        assert str(caught.value).startswith(f"params.yaml: {named}the key {key} ")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["predict", "fp32", ""], ["predict", "", "a.png"], ["run", " "], ["ship", "x", ""]]
)
def test_an_empty_argument_is_refused_before_anything_is_read(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pipeline", *words])
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 2
    assert "empty" in capsys.readouterr().err


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("stage", "variant"),
    [(export, "nosuch"), (evaluate, "../up"), (distill, "nosuch"), (distill, "int8-qat"), (prune, "fp32")],
)
def test_a_stage_for_a_variant_that_it_cannot_make_is_one_line(stage: Any, variant: str) -> None:
    with pytest.raises(UnknownVariantError, match=re.escape(repr(variant))) as caught:
        stage.main(variant)
    assert len(str(caught.value).splitlines()) == 1


def test_check_knows_the_layers_and_the_database() -> None:
    values = yaml.safe_load(paths.PARAMETERS.read_text())
    values["quantize"]["float_layers"] = ["nosuch"]
    paths.PARAMETERS.write_text(yaml.safe_dump(values))
    result = run("pipeline.stages.check")
    assert result.returncode == 1
    assert "float_layers = 'nosuch'" in result.stderr
    assert "stem" in result.stderr
    assert "Traceback" not in result.stderr
    shutil.copy(ROOT / paths.PARAMETERS, ".")
    Path("mlflow.db").write_bytes(b"garbage")
    result = run("pipeline.stages.check")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "mlflow.db" in result.stderr


def tables(file: Path, *statements: str) -> None:
    with sqlite3.connect(file) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


COMPLETE = [f"CREATE TABLE {name} (x)" for name in database.TABLES] + [
    "CREATE TABLE alembic_version (version_num)",
    "INSERT INTO runs VALUES (1), (2), (3)",
]


def of_another_program(file: Path) -> None:
    tables(file, "CREATE TABLE studies (x)", "CREATE TABLE alembic_version (version_num)")


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(5000))


def half_made(file: Path) -> None:
    tables(file, "CREATE TABLE experiments (x)", "CREATE TABLE alembic_version (version_num)")


def without_revision(file: Path) -> None:
    tables(file, *COMPLETE)


def newer(file: Path) -> None:
    tables(file, *COMPLETE, "INSERT INTO alembic_version VALUES ('ffffffffffff')")


def older(file: Path) -> None:
    tables(file, *COMPLETE, "INSERT INTO alembic_version VALUES ('451aebb31d03')")


def cut(file: Path) -> None:
    tables(file, *COMPLETE, *[f"CREATE TABLE more_{n} (x)" for n in range(200)])
    os.truncate(file, 20_000)


@pytest.mark.parametrize(
    ("breaking", "lost"),
    [
        (Path.mkdir, "folder"),
        (garbage, "another file"),
        (garbage, "earlier runs"),
        (half_made, "no runs"),
        (without_revision, "3 runs"),
        (newer, "3 runs"),
        (older, "3 runs"),
        (cut, "damaged"),
    ],
)
def test_a_broken_database_is_one_line_with_the_file_and_what_is_lost(
    breaking: Any, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    file = tmp_path / "mlflow.db"
    breaking(file)
    message = database.check(file)
    assert message is not None
    assert str(file) in message
    assert lost in message
    assert "move" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("/proc/mlflow.db", "/proc"),
        ("absent/mlflow.db", "absent"),
        ("params.yaml/mlflow.db", "params.yaml"),
        ("/dev/null", "/dev/null"),
        ("x" * 300, "xxx"),
    ],
)
def test_a_place_where_no_database_can_be_is_said_and_nothing_is_made(
    name: str, named: str, checkout: Path
) -> None:
    before = {*checkout.rglob("*")}
    message = database.check(Path(name))
    assert message is not None
    assert named in message
    assert "move" not in message
    assert {*checkout.rglob("*")} == before


def test_the_database_of_another_program_is_not_to_be_moved_away(tmp_path: Path) -> None:
    file = tmp_path / "studies.db"
    of_another_program(file)
    message = database.check(file)
    assert message is not None
    assert "studies" in message
    assert "move" not in message


def test_where_a_database_can_be_made_there_is_no_problem_and_nothing_is_made(checkout: Path) -> None:
    before = {*checkout.rglob("*")}
    assert database.check(Path("mlflow.db")) is None
    assert {*checkout.rglob("*")} == before


def test_a_database_server_without_its_driver_is_said() -> None:
    assert addresses.missing_driver("http://host:5000") is None
    assert addresses.missing_driver("sqlite:///mlflow.db") is None
    message = addresses.missing_driver("postgresql+nosuch://user:word@host/db")
    assert message is not None
    assert "nosuch" in message


def test_a_locked_database_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    file = tmp_path / "mlflow.db"
    tables(file, *COMPLETE)
    holder = sqlite3.connect(file)
    holder.execute("BEGIN EXCLUSIVE")
    message = database.check(file)
    assert message is not None
    assert f"{file} is locked" in message
    holder.close()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("disk is full"), KeyboardInterrupt()]
)
def test_a_database_is_made_whole_or_not_at_all(error: BaseException, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "mlflow.db"
    file.parent.mkdir()

    def fail(fresh: Path) -> None:
        fresh.write_bytes(b"half")
        raise error

    with pytest.raises((database.DatabaseError, KeyboardInterrupt)):
        database.prepare(file, fail)
    assert not file.exists()
    assert [left.name for left in file.parent.iterdir()] == ["mlflow.db.lock"]


def test_what_a_killed_maker_left_goes_and_an_old_journal_is_not_played_into_a_new_database(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mlflow.db"
    for name in (".mlflow.db.123.new", ".mlflow.db.123.new-journal", "mlflow.db-journal"):
        (tmp_path / name).write_bytes(b"old")
    database.prepare(file, lambda fresh: tables(fresh, *COMPLETE))
    assert sorted(left.name for left in tmp_path.glob("*mlflow*")) == ["mlflow.db", "mlflow.db.lock"]


def test_what_a_killed_writer_left_in_a_database_is_undone(tmp_path: Path) -> None:
    file, copy = tmp_path / "mlflow.db", tmp_path / "copy" / "mlflow.db"
    tables(file, *COMPLETE, f"INSERT INTO alembic_version VALUES ('{database.latest()}')")
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("PRAGMA cache_size = 1")  # so that it writes before it commits
    writer.execute("BEGIN")
    writer.executemany("INSERT INTO runs VALUES (?)", [("x" * 1000,) for _ in range(500)])
    copy.parent.mkdir()
    for name in ("mlflow.db", "mlflow.db-journal"):
        shutil.copy(tmp_path / name, copy.parent)
    writer.close()
    assert database.check(copy) is None
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (3,)


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.touch()
    database.prepare(file, lambda fresh: tables(fresh, *COMPLETE))
    assert file.stat().st_size


def test_check_says_where_parameters_differ_by_hand_and_not_in_an_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = yaml.safe_load(paths.PARAMETERS.read_text())
    paths.PARAMETERS.write_text(yaml.safe_dump(values | {"seed": values["seed"] + 1}))
    assert "seed" in run("pipeline.stages.check").stdout
    monkeypatch.setenv("DVC_EXP_NAME", "bold-fox")
    assert "seed" not in run("pipeline.stages.check").stdout


def test_data_that_were_not_downloaded_are_a_note_before_dvc_and_an_error_within(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = "artifacts/raw/fashion-mnist is not there; `python -m pipeline fetch` downloads it"
    before = run("pipeline.stages.check")
    assert f"note: {words}" in before.stdout
    assert words not in before.stderr
    monkeypatch.setenv("DVC_STAGE", "check")
    with pytest.raises(ParameterError, match=words):
        check.main()


@pytest.mark.parametrize(
    ("change", "stage", "file"),
    [
        ({"teacher": {"source": "timm", "name": "resnet18", "weights": "w.pth"}}, "teach", "w.pth"),
        (
            {"teacher": {"source": "onnx", "name": "mine.onnx", "head": None, "full": None}},
            "teach",
            "mine.onnx",
        ),
        ({"teacher": {"head": None, "full": None, "labels": "names.txt"}}, "teach", "names.txt"),
        ({"student": {"init": {"source": "run", "path": "old"}}}, "distill", "old/card.json"),
        (
            {"student": {"init": {"source": "slim", "path": "net/model.ckpt"}}},
            "distill",
            "net/model.ckpt.index",
        ),
    ],
)
def test_check_makes_a_stage_run_again_whose_local_files_have_changed(
    change: dict[str, Any], stage: str, file: str
) -> None:
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("first")
    p = parameters.check(merge(yaml.safe_load(paths.PARAMETERS.read_text()), change), "params.yaml")
    found = check.local_files(p)
    assert {name: [str(place) for place in places] for name, places in found.items() if places} == {
        stage: [file]
    }
    before = earlier.digest(*found[stage])
    Path(file).write_text("second")
    assert earlier.digest(*found[stage]) != before


def test_the_default_run_depends_on_no_local_file_of_weights() -> None:
    Path("data").mkdir()
    assert check.local_files(parameters.load()) == {"teach": [], "distill": []}
