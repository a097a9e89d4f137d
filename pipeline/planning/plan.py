"""The plan for a folder: what is in it, what will be done, and how long that takes on this machine."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import students
from pipeline import parameters, paths
from pipeline.data import sources, views
from pipeline.distillation import adaptation, trial
from pipeline.distillation import sources as teachers
from pipeline.errors import DistilleryError
from pipeline.models.settings import InitSettings
from pipeline.parameters import Parameters, composition, configuration, spelling
from pipeline.planning import proof, rates, schedule, starts, survey
from pipeline.planning.rates import Rates
from pipeline.planning.schedule import Schedule
from pipeline.planning.starts import Beginning
from pipeline.planning.survey import Survey
from pipeline.settings import merge
from pipeline.tasks import TASKS
from pipeline.training import compute
from students.mobilenet_v1 import scaled_channels
from teachers.teacher import replace_heads

PUBLISHED = "published_075_192"
"""Member of the group `student` that starts from published weights."""
PLAIN = "mobilenet_v1_075_192"
"""Member of the group `student` that starts from random weights."""
GROUPS = {"recipe": "photographs", "teacher": "efficientnet_lite0_128"}
"""Members of other groups that suit photographs."""


class PlanError(DistilleryError):
    """No plan can be made."""


@dataclass(frozen=True)
class Plan:
    """What will be done, as values for `configs/run.yaml`, and why."""

    groups: Mapping[str, str]
    values: Mapping[str, Any]
    survey: Survey
    beginning: Beginning
    parameters: Parameters
    schedule: Schedule
    minutes: float

    def lines(self) -> list[str]:
        """The plan in sentences for a terminal and for the head of the file."""
        p = self.parameters
        teacher = f"teacher: {p.teacher.source} {p.teacher.name} at {p.teacher.size} pixels"
        epochs = [
            f"{_epochs(settings.epochs)} of the {'last layer' if part == 'head' else 'whole network'}"
            for part, settings in p.teacher.parts().items()
            if settings is not None
        ]
        phases = p.distill["phases"]
        sizes = f", first at {phases[0]['size']} pixels" if phases else ""
        total = self.schedule.total
        late = total > 60 * self.minutes
        return [
            *self.survey.lines(),
            *proof.lines(p, self.survey),
            f"start of the student: {self.beginning.reason}",
            f"{teacher}{': ' if epochs else ''}{', then '.join(epochs)}",
            f"student: {p.student.architecture} {p.student.width:g} at {p.student.size} pixels: "
            f"{_epochs(p.distill['epochs'])} with {p.views.per_image} views per image{sizes}",
            f"variants: {', '.join(p.variants)}",
            f"time: about {_time(total)} on this machine, measured a moment ago ({self._parts()})"
            + (
                f", more than the {self.minutes:g} minutes; shorter trainings would learn too little"
                if late
                else ""
            ),
        ]

    def _parts(self) -> str:
        """Times of the long stages."""
        seconds = self.schedule.seconds
        long = sorted(seconds, key=lambda name: -seconds[name])[:4]
        rest = sum(value for name, value in seconds.items() if name not in long)
        parts = [f"{name} {_time(value)}" for name, value in seconds.items() if name in long]
        return ", ".join([*parts, f"{len(seconds) - len(long)} other stages {_time(rest)}"])


def make(folder: Path, minutes: float, words: Sequence[str] = (), start: str | None = None) -> Plan:
    """Look at a folder and at this machine, and plan the pipeline. Nothing is written.

    Args:
        folder: folder of images.
        minutes: time that the whole pipeline may take.
        words: ``GROUP=NAME`` and ``KEY=VALUE`` of a person, which take precedence over the plan.
        start: initial weights of the student; see ``starts.choose``.

    Raises:
        SourceError: the folder cannot be used.
        ParameterError: a value is not valid.
    """
    groups, given = read_words(words)
    sources.check_place(folder)
    beginning = starts.choose(_published(), start)
    groups = {
        "data": survey.source_of(folder),
        **GROUPS,
        "student": PUBLISHED if beginning.init else PLAIN,
        **groups,
    }
    given = {"data.path": str(folder)} | given
    if beginning.init is not None and groups["student"] == PUBLISHED:
        given = {"student.init.path": beginning.init.path} | given
    words = [f"{key}={value}" for key, value in (groups | given).items()]
    values, _ = composition.merged(words)
    fixed = nested({key: value_at(values, key) for key in given})
    base = parameters.check(values, str(configuration.FILE))
    found = survey.look(
        base.data,
        base.seed,
        drawn="data.val" in given,
        share_of_test=None if "data.test" in given else functools.partial(proof.share_of_test, base),
    )
    drawn = {"val": found.data.val} | ({"test": found.data.test} if found.test_is_drawn else {})
    fixed = merge({"data": {**drawn, "train_side": _train_side(base)}}, fixed)
    base = parameters.check(merge(values, fixed), str(configuration.FILE))
    result = schedule.fit(base, found, _measure(base, found), 60 * minutes, fixed)
    final = parameters.check(merge(values, result.values), str(configuration.FILE))
    return Plan(groups, result.values, found, beginning, final, result, minutes)


def read_words(words: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Members of groups and values of keys, from ``GROUP=NAME`` and ``KEY=VALUE`` after a folder.

    Raises:
        PlanError: a word is neither, or says which images are used.
        CompositionError: a group has no such member.
        ParameterError: a key is given two values.
    """
    spelling.check_once(words)
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    groups = {
        name: composition.check_member(name, given.pop(name))
        for name in list(given)
        if spelling.is_group(name)
    }
    if unknown := [word for word in words if "=" not in word]:
        raise PlanError(f"{unknown[0]}: allowed are GROUP=NAME and KEY=VALUE after the folder")
    if "data" in groups or "data.path" in given:
        raise PlanError("data and data.path: the folder says which images are used; allowed: data.KEY=VALUE")
    return groups, given


def write(plan: Plan, command: str) -> None:
    """Write `configs/run.yaml` and `params.yaml`.

    Args:
        plan: the plan.
        command: command that made the plan.
    """
    remarks = [
        "Edit it as you like: `python -m pipeline run` goes on with it as it is.",
        "docs/parameters.md describes every key.",
        *(part for line in plan.lines() for part in textwrap.wrap(line, 100)),
    ]
    configuration.write(plan.groups, plan.values, command, remarks)


def _measure(p: Parameters, found: Survey) -> Rates:
    fabric = compute.start(p.compute, trials=paths.precision_trials())
    teacher = teachers.load(p.teacher, p.student.overrides())
    contract = adaptation.contract(
        teacher, size=p.teacher.size, crop=p.views.eval_crop, corrections=p.teacher.input
    )
    parts = p.teacher.parts()
    task = TASKS["multi_label" if p.data.source == "attributes" else "single_label"]
    trial.try_out(teacher, contract, parts, task=task, classes=len(found.classes), key="teacher")
    if any(parts.values()):
        replace_heads(teacher, len(found.classes))
    student = students.build(
        p.student.architecture,
        {
            "channels": scaled_channels(p.student.width),
            "classes": len(found.classes),
            "size": p.student.size,
        },
    )
    sizes = {
        phase["size"] or p.student.size for phase in schedule.propose(p, found, 10.0)["distill"]["phases"]
    }
    return rates.measure(
        fabric,
        teacher.module,
        teacher.heads,
        student,
        teacher_size=contract.size,
        student_sizes=sorted({*sizes, p.student.size}),
        sample=found.sample,
        space=views.space(p.views, p.seed),
        train_side=p.data.train_side,
    )


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(lambda place, part: place[part], key.split("."), values)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted keys as nested mappings."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result = merge(
            result, functools.reduce(lambda inner, part: {part: inner}, key.split(".")[::-1], value)
        )
    return result


def _published() -> InitSettings:
    return InitSettings(**composition.composed(overrides=[f"student={PUBLISHED}"])["student"]["init"])


def _train_side(p: Parameters) -> int:
    """Side to which training images are reduced: enough for a whole view, and no more time to decode."""
    return int(max(256, 32 * round(p.student.size * 1.65 / 32)))


def _epochs(count: float) -> str:
    return f"{count:g} epoch{'' if count == 1 else 's'}"


def _time(seconds: float) -> str:
    """Minutes and seconds, rounded as an estimate deserves."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min"
