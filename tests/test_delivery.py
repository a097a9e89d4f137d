import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from mlflow import MlflowClient

from pipeline.running import process
from pipeline.tracking import delivery, outbox, patience, records, runs
from pipeline.tracking.outbox import Delivery
from pipeline.tracking.records import TrackingError, UnreachableError
from tests import small_servers, tracked
from tests.tracked import Case, Server


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def case(tmp_path: Path, uri: str, request: pytest.FixtureRequest) -> Case:
    return tracked.case(tmp_path, uri, request.node.name)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_ANSWER", 1.0)
    monkeypatch.setattr(patience, "NEXT_ANSWER", 1.5)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", 0.5)
    # The thread that is left behind would restore it later.
    monkeypatch.setenv(records.URI_VARIABLE, "")


def package(case: Case) -> Delivery:
    return Delivery(case.server.experiment, case.state, case.teacher, case.variants)


def deliver(case: Case, uri: str, folder: Path) -> delivery.Outcome:
    return delivery.deliver(package(case), replace(case.server, uri=uri), folder)


@pytest.fixture(params=["refuses", "TLS", "no such host", *small_servers.BEHAVIOURS])
def bad_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as servers:
        if request.param == "refuses":
            yield "http://127.0.0.1:9"
        elif request.param == "no such host":
            yield "http://nowhere.invalid"
        elif request.param == "TLS":
            behaviour = small_servers.with_tls(small_servers.hang, tmp_path)
            yield servers.enter_context(small_servers.serve(behaviour)).replace("http:", "https:")
        else:
            yield servers.enter_context(small_servers.serve(small_servers.BEHAVIOURS[request.param]))
    for thread in patience._left_behind:  # In a stage, they end with the process.
        thread.join(10)
    patience._left_behind.clear()


def test_whatever_a_server_does_is_one_line_in_a_short_time_and_the_state_is_kept(
    case: Case, bad_server: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    outcome = deliver(case, bad_server, tmp_path / "undelivered")
    assert time.monotonic() - started < 5
    assert isinstance(outcome.problem, UnreachableError)
    message = str(outcome.problem)
    assert bad_server in message
    assert "\n" not in message
    assert len(message) < 500
    assert (outcome.run_id, outcome.undelivered) == (None, [case.state.sha256])
    assert outbox.read(tmp_path / "undelivered" / case.state.sha256).state.metrics == case.state.metrics


def test_kept_states_are_delivered_in_order_and_whole_by_the_next_call(
    case: Case, uri: str, tmp_path: Path
) -> None:
    folder = tmp_path / "undelivered"
    deliver(case, "http://127.0.0.1:9", folder)
    newer = case._replace(state=replace(case.state, sha256="b" * 64, champion="fp32"))
    deliver(newer, "http://127.0.0.1:9", folder)
    for variant in case.variants:  # They are replaced by those of the next run.
        variant.file.unlink()
    (tmp_path / "report" / "variants.csv").write_text("something else\n")
    others = [tracked.exported(tmp_path, case.server.experiment, name, seed=1) for name in ("fp32", "int8")]
    latest = case._replace(state=replace(case.state, sha256="c" * 64), variants=others)
    outcome = deliver(latest, uri, folder)
    assert outcome.problem is None
    assert outcome.late == ["a" * 64, "b" * 64]
    assert outcome.undelivered == []
    assert list(folder.iterdir()) == []
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(case.server.experiment)
    assert experiment is not None
    parents = client.search_runs([experiment.experiment_id], f"tags.`{records.STATE}` != ''")
    assert {run.data.tags[records.STATE][0] for run in parents} == {"a", "b", "c"}
    assert all(run.info.status == "FINISHED" for run in parents)
    champion = client.get_model_version_by_alias(f"{case.server.model}-photographs", "champion")
    assert champion.tags["sha256"] == others[1].artifact
    versions = client.search_model_versions(f"name = '{case.server.model}-photographs'")
    assert len(versions) == 4


def test_a_state_that_is_kept_twice_is_delivered_once(case: Case, uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "undelivered"
    for _ in range(2):
        deliver(case, "http://127.0.0.1:9", folder)
    outcome = deliver(case, uri, folder)
    assert (outcome.late, outcome.undelivered) == ([], [])
    assert outcome.run_id is not None


def test_numbers_that_are_not_finite_are_kept(case: Case, tmp_path: Path) -> None:
    history = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}]
    odd = case._replace(teacher=replace(case.teacher, history=history))
    place = outbox.keep(tmp_path / "undelivered", package(odd))
    assert [str(line["loss"]) for line in outbox.read(place).teacher.history] == ["nan", "inf"]


def test_a_damaged_kept_state_is_named(case: Case, uri: str, tmp_path: Path) -> None:
    place = outbox.keep(tmp_path / "undelivered", package(case))
    other = case._replace(state=replace(case.state, sha256="b" * 64))
    content = place / outbox.CONTENT
    content.write_bytes(content.read_bytes()[:100])
    outcome = deliver(other, uri, tmp_path / "undelivered")
    assert str(place) in str(outcome.problem)
    assert not isinstance(outcome.problem, UnreachableError)


def test_a_state_that_cannot_be_kept_is_an_error(case: Case, tmp_path: Path) -> None:
    (tmp_path / "undelivered").write_text("a file")
    with pytest.raises(TrackingError, match="undelivered"):
        deliver(case, "http://127.0.0.1:9", tmp_path / "undelivered")


def test_a_database_that_cannot_be_used_keeps_the_state_too(case: Case, tmp_path: Path) -> None:
    file = tmp_path / "garbage.db"
    file.write_bytes(b"garbage" * 1000)
    outcome = deliver(case, f"sqlite:///{file}", tmp_path / "undelivered")
    assert str(file) in str(outcome.problem)
    assert not isinstance(outcome.problem, UnreachableError)
    file.unlink()
    assert deliver(case, f"sqlite:///{file}", tmp_path / "undelivered").undelivered == []


def test_the_users_own_limits_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = patience.Watch()
    assert watch.limit() == patience.FIRST_ANSWER
    monkeypatch.setenv(patience.TIMEOUT, "100")
    monkeypatch.setenv(patience.RETRIES, "2")
    assert watch.limit() >= 300


def test_a_server_that_answers_slowly_is_waited_for(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def slow(*_arguments: object) -> tuple[str, list[str]]:
        import requests

        with small_servers.serve(small_servers.answer("200 OK", "{}")) as address:
            for _ in range(4):
                time.sleep(0.7)
                requests.get(address, timeout=5)
        return "id", []

    monkeypatch.setattr(runs, "track", slow)
    outcome = deliver(case, "http://127.0.0.1:9", tmp_path / "undelivered")
    assert (outcome.run_id, outcome.problem) == ("id", None)


def test_a_long_upload_is_waited_for_while_bytes_are_sent(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(100_000))

    def upload(*_arguments: object) -> tuple[str, list[str]]:
        import requests

        with small_servers.serve(small_servers.answer("200 OK", "{}")) as address, big.open("rb") as file:
            requests.get(address, timeout=5)
            for _ in range(8):
                time.sleep(0.4)
                file.read(10_000)
        return "id", []

    monkeypatch.setattr(runs, "track", upload)
    assert deliver(case, "http://127.0.0.1:9", tmp_path / "undelivered").run_id == "id"


def test_what_is_kept_is_readable(case: Case, tmp_path: Path) -> None:
    place = outbox.keep(tmp_path / "undelivered", package(case))
    content = json.loads((place / outbox.CONTENT).read_text())
    assert content["state"]["sha256"] == case.state.sha256
    assert outbox.size(tmp_path / "undelivered") > case.variants[0].file.stat().st_size


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_while_it_is_told_has_everything_once_afterwards(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_ANSWER", 10.0)
    monkeypatch.setattr(patience, "NEXT_ANSWER", 10.0)
    random, names, test = Random(0), ("fp32", "int8"), case.server.experiment
    server = Server(tmp_path)
    told = case
    try:
        for number in range(8):
            state = replace(case.state, sha256=f"{number}" * 64)
            variants = [tracked.exported(tmp_path, test, name, seed=number) for name in names]
            told = case._replace(state=state, variants=variants)
            timer = threading.Timer(random.uniform(0.1, 4.0), server.kill)
            timer.start()
            deliver(told, server.uri, tmp_path / "undelivered")
            timer.join()
            server.start()
        outcome = deliver(told, server.uri, tmp_path / "undelivered")
        assert (outcome.problem, outcome.undelivered) == (None, [])
        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name(test)
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id])
        parents = [run for run in found if records.STATE in run.data.tags]
        children = [run for run in found if records.ARTIFACT in run.data.tags]
        assert len(parents) == len({run.data.tags[records.STATE] for run in parents}) == 8
        assert len(children) == len({run.data.tags[records.ARTIFACT] for run in children}) == 16
        assert len(found) == 24
        assert {run.info.status for run in found} == {"FINISHED"}
        assert len(client.search_model_versions(f"name = '{case.server.model}-photographs'")) == 16
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_database_is_whole_after_its_maker_was_killed_at_any_moment(tmp_path: Path) -> None:
    random = Random(0)
    command = [sys.executable, "-m", "pipeline.tracking", f"sqlite:///{tmp_path}/mlflow.db"]
    for _ in range(12):
        for file in tmp_path.glob("mlflow.db"):
            file.unlink()
        makers = [subprocess.Popen(command) for _ in range(2)]
        time.sleep(random.uniform(0.3, 5))
        makers[0].kill()
        assert [maker.wait() for maker in makers][1] == 0
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("SELECT count(*) FROM experiments").fetchone() == (1,)
    subprocess.run(command, check=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["hangs", "trickles", "500"])
def test_a_training_is_not_held_by_the_server_that_it_is_shown_on(
    behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_servers.serve(small_servers.BEHAVIOURS[behaviour]) as address:
        monkeypatch.setenv(records.URI_VARIABLE, address)
        with process.run_alongside("pipeline.stages.follow", "fp32"):
            time.sleep(15)
            ended = time.monotonic()
        assert time.monotonic() - ended < 10  # 3 s, and what a busy machine adds
