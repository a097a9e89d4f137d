"""What is recorded in MLflow, as plain values."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline import provenance
from pipeline.errors import DistilleryError
from pipeline.tracking import addresses

URI_VARIABLE = "MLFLOW_TRACKING_URI"
"""Environment variable that takes precedence over the configured address."""

NOTE = "mlflow.note.content"
"""Tag that MLflow's pages show as the description of a run or an experiment, in Markdown."""

PARENT_RUN = "mlflow.parentRunId"
"""Tag of a nested run: the id of its parent run."""

VARIANT = "variant"
"""Tag of a run, model or version: the name of the variant, or ``teacher``."""

STATE = "distillery.state"
"""Tag of a parent run: the hash of all outputs in `dvc.lock`."""

ARTIFACT = "distillery.artifact"
"""Tag of a nested run: the hash of the file or folder that it made. It is set last, so that a run that has it
is complete."""

RUNS = "runs"
"""Tag of a parent run: the run id of each of its variants, nested or linked, as JSON."""

CHAMPION = "champion"
"""Alias of the registered version that the budget selects, and tag of the parent run with its name."""

DATASET = "dataset"
"""Tag of a parent run, a registered model or a version: name and beginning of the digest of its data."""

DIGEST = "data_sha256"
"""Tag of a registered model or a version: digest of the prepared data."""

LATEST = "latest"
"""Tag of the runs of the variants of the newest state of a data set: the value of its tag ``dataset``."""

ANSWER = "answer"
"""Tag of a parent run: which variant to ship, and what it loses and gains, in one line of Markdown."""

UNFINISHED = "distillery.unfinished"
"""Tag of the run that is the parent of trainings that belong to no state yet."""

LONGEST_NAME = 40
"""Greatest number of characters of the name of a data set within other names."""

SHARED = ("data", "seed", "student", "teacher", "views")
"""Sections of a recipe that all variants of a state share."""

OWN = "build"
"""Section of the parameters of a run that holds what its variant does not share, the first by name."""


class TrackingError(DistilleryError):
    """The tracking server cannot be used."""


class UnreachableError(TrackingError):
    """A server is away, refuses, or does not answer as MLflow does. Nothing here has to be changed for the
    results to be delivered later."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing
        """Whether the next attempt may succeed: the connection failed, or the server failed by itself."""


@dataclass(frozen=True)
class TrackingServer:
    """Where MLflow writes."""

    uri: str
    """Address of a server or database; the variable ``MLFLOW_TRACKING_URI`` takes precedence over it."""
    experiment: str
    """Name of the experiment of the variants, with which the names of registered models begin; created if it
    does not exist."""
    home: Path
    """Folder that the path of a SQLite database is relative to; its ``mlartifacts`` lie there, too."""

    @property
    def model(self) -> str:
        """Beginning of the names of registered models: the experiment's name, with `-` for what MLflow does
        not allow there."""
        return re.sub(r'[/:;?"\\]+', "-", self.experiment).strip("-. ")

    @property
    def teacher_experiment(self) -> str:
        """Name of the experiment of the teachers, whose metrics are not comparable with the variants'."""
        return f"{self.experiment}-teachers"

    def address(self) -> str:
        """Address that is in effect, with an absolute path if it is a database.

        Raises:
            TrackingError: the environment names an address that is not valid.
        """
        uri = os.environ.get(URI_VARIABLE) or self.uri
        if (problem := addresses.problem(uri)) is not None:
            raise TrackingError(f"{URI_VARIABLE if uri != self.uri else 'tracking.uri'} = {uri!r}: {problem}")
        file = addresses.database(uri)
        if file is None or file.is_absolute():
            return uri
        address = f"{addresses.SQLITE}{(self.home / file).resolve()}"
        if (problem := addresses.problem(address)) is not None:
            raise TrackingError(f"{address}: {problem}")
        return address


@dataclass(frozen=True)
class RunRecord:
    """What identifies a run while its training goes on and when it has ended."""

    name: str
    """Name of the variant, or ``teacher``."""
    params: Mapping[str, Any]
    """Nested settings. Runs with equal settings are distinguished by their training histories."""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedModel:
    """A run and its results."""

    run: RunRecord
    artifact: str
    """Hash of the result. If a run with the same hash exists, it is linked and not logged again."""
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    """One line per epoch with ``step``, ``epoch`` and metrics. Each part of a training counts from 0."""
    tags: Mapping[str, str]
    files: Sequence[tuple[str, Path]] = ()
    """Files or folders to log, each after the artifact folder that it belongs into."""


@dataclass(frozen=True)
class ExportedFile(TrainedModel):
    """A variant with its ONNX file and its figures in the table of variants."""

    file: Path = Path()
    """Path of the ONNX file."""
    verdict: str = "reject"
    """Verdict of the gate against the parent: ``accept`` or ``reject``."""
    accepted: bool = False
    """Whether the gate accepts the variant and all its ancestors."""
    summary: Mapping[str, str] = field(default_factory=dict)
    """Heading and cell of each column of the tables of variants. They are tags of the run, too, and of its
    version, by which MLflow's pages show them."""
    card: str | None = None
    """Model card in Markdown."""


@dataclass(frozen=True)
class PipelineState:
    """The results of one `dvc repro`."""

    name: str
    """Name of the parent run."""
    sha256: str
    """Hash of all outputs of the DVC stages."""
    tags: Mapping[str, str]
    """Git commit, hashes in `dvc.lock`, and whatever else distinguishes one state from another."""
    parameters: Mapping[str, Any]
    """Parameters that all variants share, nested."""
    data: Mapping[str, Any]
    """Report on the data set."""
    metrics: Mapping[str, float]
    """Metrics of the state as a whole, and those of the variant that the budget selects."""
    files: Sequence[tuple[str, Path]]
    """Files or folders to log on the parent run, each after the artifact folder that it belongs into."""
    champion: str | None
    """Name of the variant that the budget selects; None if no variant meets the limits."""
    reason: str
    """Sentence that says why."""
    dataset: str
    """Name of the data set."""
    budget: str
    """Limits of the budget in words."""
    answer: str
    """Which variant to ship, and what it loses and gains, in one line of Markdown."""
    costs: tuple[str, ...]
    """Metrics of the variants that compression reduces, the most important one first."""
    score: str
    """Metric of the variants that compression should keep."""

    @property
    def data_slug(self) -> str:
        """Name of the data set in letters, digits, `_`, `.` and `-`, for names and addresses."""
        return slug(self.dataset)[:LONGEST_NAME].rstrip("-.")

    @property
    def data_id(self) -> str:
        """Name of the data set and the beginning of its digest: two folders of one name are told apart."""
        return f"{self.data_slug} {self.data['data_sha256'][:8]}"


def slug(text: str) -> str:
    """The text with `-` for everything but letters, digits, `_` and `.`."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.") or "data"


def parameters(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe in the order in which MLflow's pages sort it: what a variant does not share comes first."""
    own = {key: value for key, value in recipe.items() if key not in SHARED}
    return {**({OWN: own} if own else {}), **{key: recipe[key] for key in SHARED if key in recipe}}


def source_tags() -> dict[str, str]:
    """Tags that MLflow's pages show as the source of a run."""
    return {
        "mlflow.source.name": "dvc repro",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": provenance.git_commit(),
    }


class LockFileError(TrackingError):
    """DVC's record of the results is missing."""


def dvc_outputs(lock: Path) -> dict[str, dict[str, str]]:
    """Hash of each output path of each stage, as `dvc.lock` records them.

    Raises:
        LockFileError: there is no such file.
    """
    if not lock.is_file():
        raise LockFileError(f"{lock} does not exist: start this stage with `dvc repro`, which writes it")
    stages = yaml.safe_load(lock.read_text())["stages"]
    return {
        name: {out["path"]: out["md5"] for out in stage.get("outs", ())} for name, stage in stages.items()
    }
