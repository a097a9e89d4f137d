"""The plan for a folder of images: what it holds, what fits into the time, and where it is written."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import __main__, parameters, paths
from pipeline.data.listing import SourceError
from pipeline.data.settings import DataSettings
from pipeline.models.settings import InitSettings
from pipeline.parameters import composition, configuration
from pipeline.planning import plan, proof, schedule, starts, survey
from pipeline.planning.rates import Network, Rates
from pipeline.settings import merge
from teachers import hubs
from teachers.errors import WeightsError

ROOT = Path(__file__).parents[1]
PUBLISHED = InitSettings(source="hugging_face", path="google/mobilenet_v1_0.75_192")
SIZES = (64, 128, 192)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the configurations, without a network, and with a folder of photographs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    configs = tmp_path / "own-configs"
    configs.mkdir()
    for entry in (ROOT / "configs").iterdir():
        (configs / entry.name).symlink_to(entry)
    (tmp_path / "configs").unlink()
    configs.rename(tmp_path / "configs")
    (tmp_path / "configs" / "run.yaml").unlink(missing_ok=True)
    write_photographs(tmp_path / "photos", {"cat": 20, "dog": 12, "owl": 8})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hubs, "problem_of", lambda _: "no network")
    monkeypatch.setattr(hubs, "in_hugging_face_cache", lambda *_: False)
    monkeypatch.setattr(plan, "_measure", lambda *_: rates())
    return tmp_path


def write_photographs(folder: Path, counts: dict[str, int]) -> None:
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(256, size=(24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def rates(factor: float = 1.0) -> Rates:
    learning = {size: factor * 1e-3 * (size / 64) ** 2 for size in SIZES}
    return Rates(
        start=4 * factor,
        render=2e-3 * factor,
        cores=2,
        head=2e-3 * factor,
        teacher=Network({128: 1e-2 * factor}, 1e-2 * factor, 3e-3 * factor),
        student=Network(learning, 1.5 * max(learning.values()), 4e-3 * factor),
    )


def base(**changes: Any) -> parameters.Parameters:
    values = composition.composed(overrides=["recipe=photographs", "teacher=efficientnet_lite0_128"])
    return parameters.check(merge(values, changes), "test")


def photographs(train: int, val: int = 300, test: int = 300) -> survey.Survey:
    data = DataSettings(source="folder", path=Path("photos"))
    return survey.Survey(
        data=data,
        classes=("a", "b"),
        images={"train": train, "val": val, "test": test},
        per_class=(("a", train // 2), ("b", train // 2)),
        sides=(400, 300),
        rejected="",
        notes=(),
        seconds=train / 300,
        sample=(),
    )


def test_a_survey_counts_what_prepare_will_find(project: Path) -> None:
    (project / "photos" / "cat" / "broken.jpg").write_bytes(b"no image")
    (project / "photos" / "notes.txt").write_text("hello")
    data = DataSettings(source="folder", path=project / "photos")
    found = survey.look(data, seed=0)
    assert sum(found.images.values()) == 40
    assert found.classes == ("cat", "dog", "owl")
    assert [name for name, _ in found.per_class] == ["cat", "dog", "owl"]
    assert sum(count for _, count in found.per_class) == found.images["train"]
    assert found.sides == (32, 24)
    assert "1 damaged" in found.rejected


def test_a_small_data_set_gets_more_validation_images_unless_a_person_said_how_many(project: Path) -> None:
    data = DataSettings(source="folder", path=project / "photos")
    assert survey.look(data, seed=0).data.val == 0.2
    assert survey.look(data, seed=0, drawn=True).data.val == data.val


@pytest.mark.parametrize("minutes", [10, 20, 30, 60, 240])
@pytest.mark.parametrize("train", [40, 300, 3_000, 30_000])
@pytest.mark.parametrize("started", [False, True])
def test_the_plan_keeps_the_time_or_is_the_shortest_sensible_one(
    minutes: int, train: int, started: bool
) -> None:
    p = base(student={"init": PUBLISHED.model_dump()}) if started else base()
    found = photographs(train)
    result = schedule.fit(p, found, rates(), 60.0 * minutes, {})
    effort = schedule.limits(p, train)
    epochs = result.values["distill"]["epochs"]
    assert effort.least <= epochs <= effort.most
    assert result.total <= 60.0 * minutes or epochs == effort.least
    if epochs < effort.most - 0.5:
        more = schedule.propose(p, found, epochs + max(0.6, 0.05 * epochs))
        longer = parameters.Parameters.model_validate(merge(p.model_dump(mode="json"), more))
        assert sum(schedule.estimate(longer, found, rates()).values()) > schedule.SHARE * 60 * minutes


def test_a_slower_machine_and_less_time_mean_fewer_epochs() -> None:
    found = photographs(3_000)
    epochs = [
        schedule.fit(base(), found, rates(factor), 60.0 * minutes, {}).values["distill"]["epochs"]
        for factor, minutes in ((1.0, 40), (1.0, 25), (2.0, 25))
    ]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1]


def test_every_stage_of_the_pipeline_has_a_time() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    p = base()
    seconds = schedule.estimate(p, photographs(1_000), rates())
    expected = {name for name, stage in stages.items() if "foreach" not in stage}
    expected |= {*p.variants} | {f"{step} {name}" for step in ("export", "evaluate") for name in p.variants}
    per_variant = {name for name, stage in stages.items() if "foreach" in stage}
    assert {*seconds} - per_variant == expected - per_variant
    assert all(value > 0 for value in seconds.values())


@pytest.mark.usefixtures("project")
def test_what_a_person_says_takes_precedence() -> None:
    words = ["student.size=128", "distill.epochs=7", "data.val=0.25", "teacher=efficientnet_lite0"]
    made = plan.make(Path("photos"), 20.0, words)
    p = made.parameters
    assert (p.student.size, p.distill["epochs"], p.data.val) == (128, 7, 0.25)
    assert made.groups["teacher"] == "efficientnet_lite0"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["data=fashion_mnist"], "data"),
        (["data.path=elsewhere"], "data.path"),
        (["student.sice=128"], "student.sice"),
        (["distill.epochs=-1"], "distill.epochs"),
        (["teacher=nobody"], "nobody"),
        (["quickly"], "quickly"),
    ],
)
def test_a_wrong_word_is_refused_before_any_work(words: list[str], named: str) -> None:
    with pytest.raises(Exception, match=named) as caught:
        plan.make(Path("photos"), 20.0, words)
    assert isinstance(caught.value, parameters.ParameterError | composition.CompositionError | plan.PlanError)


def test_a_folder_without_classes_is_refused(project: Path) -> None:
    (project / "nothing").mkdir()
    with pytest.raises(SourceError):
        plan.make(Path("nothing"), 20.0)


@pytest.mark.usefixtures("project")
def test_the_plan_is_a_file_that_composes_to_the_planned_parameters() -> None:
    made = plan.make(Path("photos"), 20.0)
    plan.write(made, "the command")
    assert parameters.load() == made.parameters
    assert configuration.planned() == made.parameters
    assert configuration.written_by() == "the command"


@pytest.mark.usefixtures("project")
def test_what_a_person_edits_in_the_plan_is_composed() -> None:
    plan.write(plan.make(Path("photos"), 20.0), "the command")
    values = yaml.safe_load(configuration.FILE.read_text())
    values["distill"]["epochs"] = 3.5
    configuration.FILE.write_text(yaml.safe_dump(values))
    configuration.compose()
    assert parameters.load().distill["epochs"] == 3.5


@pytest.mark.usefixtures("project")
def test_the_command_plans_once_and_goes_on_with_its_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pipeline", "run", "photos", "--minutes", "15", "--plan", "data.license=CC0-1.0"]
    monkeypatch.setattr("sys.argv", words)
    __main__.main()
    first = configuration.FILE.read_text()
    assert parameters.load().data.license == "CC0-1.0"
    __main__.main()
    assert configuration.FILE.read_text() == first
    assert not configuration.PREVIOUS.exists()
    monkeypatch.setattr("sys.argv", ["pipeline", "run", "photos", "--minutes", "16", "--plan"])
    __main__.main()
    assert configuration.PREVIOUS.read_text() == first
    assert parameters.load().data.license == "unknown"
    assert "photos" in capsys.readouterr().out


@pytest.mark.usefixtures("project")
def test_without_a_plan_the_command_says_how_to_make_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pipeline", "run"])
    with pytest.raises(SystemExit) as exit_:
        __main__.main()
    assert exit_.value.code == 1
    assert "configs/run.yaml" in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_without_published_weights_the_student_starts_at_random_and_the_reason_is_given() -> None:
    beginning = starts.choose(PUBLISHED)
    assert beginning.init is None
    assert PUBLISHED.path in beginning.reason


@pytest.mark.usefixtures("project")
def test_a_local_copy_of_published_weights_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = paths.RAW / "mobilenet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "mobilenet_v1"}')
    monkeypatch.setattr("pipeline.models.initialisation.hugging_face", lambda _: None)
    beginning = starts.choose(PUBLISHED)
    assert beginning.init == InitSettings(source="hugging_face", path=str(folder))


def test_given_weights_that_cannot_be_used_end_the_plan(project: Path) -> None:
    (project / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty"):
        plan.make(Path("photos"), 20.0, start="empty")


def test_a_server_that_never_answers_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "SECONDS", 0.2)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: time.sleep(10))
    beginning = starts.choose(PUBLISHED)
    assert beginning.init is None


@pytest.mark.parametrize(
    ("images", "test"), [(600, 0.2), (1_142, 0.2), (1_143, 381), (1_300, 433), (2_000, 488), (2_440, 0.2)]
)
def test_a_folder_gets_the_test_images_that_int8_needs_where_a_third_has_them(
    images: int, test: int | float
) -> None:
    assert proof.share_of_test(base(), images) == test
    assert proof.share_of_test(base(data={"test": 500}), images) == 500


@pytest.mark.parametrize(
    ("test", "rejected"),
    [(92, ("93", "189", "381")), (120, ("189", "381")), (189, ("381",)), (380, ("381",)), (381, ())],
)
def test_a_plan_says_which_variants_cannot_be_accepted_with_so_few_test_images(
    test: int, rejected: tuple[str, ...]
) -> None:
    lines = proof.lines(base(), photographs(300, test=test))
    assert len(lines) == bool(rejected)
    for number in ("93", "189", "381"):
        assert any(f"({number} needed)" in line for line in lines) == (number in rejected)
    for line in lines:
        assert f"{test} test images" in line
        assert "int8-ptq" in line
        assert "data.test" in line
        assert "gate.quantize.max_drop" in line
        assert ("pruned-50 (" in line) == ("189" in rejected)


def test_more_images_of_a_given_test_split_and_no_share_are_asked_for() -> None:
    found = dataclasses.replace(photographs(300, test=50), test_is_drawn=False)
    (line,) = proof.lines(base(), found)
    assert "add test photographs" in line
    assert "data.test" not in line


@pytest.mark.usefixtures("project")
def test_the_plan_shows_what_cannot_be_accepted() -> None:
    lines = plan.make(Path("photos"), 20.0).lines()
    assert any("381 needed" in line for line in lines)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
        (["phootos"], 1, ("phootos does not exist", "did you mean photos?")),
        (["photos/cat/0.png"], 1, ("photos/cat/0.png is not a folder",)),
        (["photos", "--minuts", "8"], 2, ("pipeline run", "--minuts", "did you mean --minutes?")),
        (["photos", "studnet.size=96"], 1, ("studnet.size", "`student.size`")),
        (["photos", "studnet.sice=96"], 1, ("studnet.sice", "`student`")),
        (["photos", "--start", "/nowhere"], 1, ("/nowhere does not exist", "--start random")),
        (["photos", "--start", "./nowhere"], 1, ("./nowhere does not exist",)),
        (["photos", "--start", "someone/something"], 1, ("someone/something", "--start random")),
        (["photos/cat"], 1, ("did you mean", "`cat`", "`dog`")),
    ],
)
def test_a_slip_of_the_pen_is_answered_in_the_words_of_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    parts: tuple[str, ...],
) -> None:
    monkeypatch.setattr("sys.argv", ["pipeline", "run", "--plan", *words])
    with pytest.raises(SystemExit) as exit_:
        __main__.main()
    assert exit_.value.code == status
    output = capsys.readouterr()
    for part in parts:
        assert part in output.err
    assert "student.init" not in output.err
    assert ("reading the images" in output.out) == Path(words[0]).is_dir() or status == 2


@pytest.mark.usefixtures("project")
def test_a_plan_that_was_made_a_moment_ago_is_not_announced_as_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write(plan.make(Path("photos"), 20.0), "the command")
    for words, announced in ((["--planned"], False), ([], True)):
        monkeypatch.setattr("sys.argv", ["pipeline", "run", "--plan", *words])
        __main__.main()
        assert ("going on" in capsys.readouterr().out) == announced
