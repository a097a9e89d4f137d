"""The variants of all DVC experiments, to select from.

Scores are comparable where they were measured on the same images only. Experiments are therefore divided by
the content of their val and test images, and each group has a reference of its own.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import paths
from pipeline.errors import DistilleryError
from pipeline.lineage import REFERENCE
from pipeline.selection import budget, table
from pipeline.selection.budget import Choice
from pipeline.selection.table import TEACHER, Row, TableError
from pipeline.upkeep import dvc_cache

DATA_REPORT = "report.json"
"""Name of the report on the data, within the folder of the data."""
UNFINISHED = ("queued", "running", "failed")
"""States of an experiment that has no results."""
NONE = (
    "no experiment of this commit is finished; start some, for example with `dvc exp run -S distill.epochs=6`"
)


class ExperimentError(DistilleryError):
    """There are no finished experiments to choose among, or DVC cannot show them."""


@dataclass(frozen=True)
class ExperimentResult:
    """A variant of an experiment. ``budget.choose`` accepts a list of them."""

    experiment: str
    """Name of the experiment."""
    name: str
    """Name of the variant within its experiment."""
    parent_name: str
    """Name of its parent within the experiment, or ``teacher``."""
    score: float
    """Score on the validation split: among so many variants, the best one on test may be there by chance."""
    test_score: float
    """Score on the test split, which the selection does not use."""
    score_delta: float
    """Difference from the parent's score on the test split, which the gate judged."""
    delta_lo: float
    verdict: str
    """Verdict of the gate: ``accept`` or ``reject``."""
    max_drop: float
    """Loss against the parent that the gate allows; it and the next two are those of ``table.Row``."""
    test_images: int
    images_needed: int | None
    size_bytes: int
    """Size of the ONNX file."""
    latency_ms_p50: float
    """Median latency in milliseconds, made comparable as ``collect`` describes."""
    latency_ratio_to_fp32: float | None
    latency_ratio_lo: float | None
    latency_ratio_hi: float | None
    reference_delta: float
    """Difference from the reference of the group, as ``collect`` describes; ``_lo`` and ``_hi`` are the ends
    of its interval."""
    reference_lo: float
    reference_hi: float

    @property
    def variant(self) -> str:
        """A name that is unique among all experiments."""
        return f"{self.name} of {self.experiment}"

    @property
    def parent(self) -> str:
        """The parent's unique name, or ``teacher``."""
        return TEACHER if self.parent_name == TEACHER else f"{self.parent_name} of {self.experiment}"


@dataclass(frozen=True)
class Experiment:
    """A finished state of the pipeline."""

    name: str
    """DVC's name of the experiment, or ``workspace``."""
    parameters: Mapping[str, Any]
    """Content of `params.yaml`."""
    images: str
    """SHA-256 over the content of its val and test images."""
    val_images: int | None
    """Number of its val images; None if it is not known."""
    rows: Sequence[Row]
    """Its table of variants."""
    noisy: bool
    """Whether other work disturbed the measurement of its latencies."""

    @property
    def reference_file(self) -> str | None:
        """Hash of the ONNX file whose latency others are compared with."""
        return next((row.sha256 for row in self.rows if row.variant == REFERENCE), None)


def read() -> tuple[list[Experiment], int]:
    """Return the finished experiments of this commit, the workspace first, and the number of unfinished ones.

    An experiment whose table DVC's cache lacks counts as unfinished.

    Raises:
        ExperimentError: DVC cannot show them.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ExperimentError(process.stderr.strip().splitlines()[-1].removeprefix("ERROR: "))
    return finished(json.loads(process.stdout), dvc_cache.folder())


def finished(output: Sequence[Mapping[str, Any]], cache: Path) -> tuple[list[Experiment], int]:
    """Return the same as ``read`` from the output of `dvc exp show --json` and the folder of DVC's cache."""
    experiments, unfinished = [], 0
    for base in output:
        if base["rev"] == "workspace" and base["data"]:
            workspace = _experiment("workspace", base["data"], cache)
            experiments += [workspace] if workspace else []
        for run in base["experiments"] or ():
            state, last = (run["executor"] or {}).get("state"), run["revs"][-1]
            experiment = None
            if state not in UNFINISHED and last["data"]:
                experiment = _experiment(run["name"], last["data"], cache)
            unfinished += experiment is None
            experiments += [experiment] if experiment else []
    return experiments, unfinished


def _experiment(name: str, data: Mapping[str, Any], cache: Path) -> Experiment | None:
    """An experiment from what DVC shows about it; None if its results are missing or of an older form."""
    parameters = data["params"].get(str(paths.PARAMETERS), {}).get("data", {})
    outs = {path: out.get("hash") or "" for path, out in data["outs"].items()}
    files = _files(cache, outs.get(str(paths.DATA), ""))
    report = _files(cache, outs.get(str(paths.REPORT), ""))
    try:
        rows = table.read(_cached(cache, report[paths.VARIANTS.name]))
    except (KeyError, TableError):
        return None
    # Of a state that was changed since, the parameters may declare other variants than the table has.
    declared = parameters.get("variants", {})
    rows = [row for row in rows if row.variant in declared]
    if not any(row.parent == TEACHER for row in rows):
        return None
    scored = {path: digest for path, digest in files.items() if path.startswith(("val/", "test/"))}
    images = hashlib.sha256(json.dumps(scored, sort_keys=True).encode()).hexdigest()
    noisy = table.is_noisy(_cached(cache, outs.get(str(paths.BENCHMARK), "")))
    val_images = _val_images(_cached(cache, files.get(DATA_REPORT, "")))
    return Experiment(name, parameters, images, val_images, rows, noisy)


def _val_images(report: Path) -> int | None:
    try:
        return int(json.loads(report.read_text())["images"]["val"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _cached(cache: Path, digest: str) -> Path:
    """The file with this content in DVC's cache."""
    return cache / digest[:2] / digest[2:]


def _files(cache: Path, digest: str) -> dict[str, str]:
    """Path to hash of the files in a folder that DVC tracks; nothing if the cache lacks its listing."""
    try:
        listing = json.loads(_cached(cache, digest).read_text())
        return {entry["relpath"]: entry["md5"] for entry in listing}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def group(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """Divide experiments by the images that they were scored on, the group of the workspace or of the first
    one first."""
    groups: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(experiment.images, []).append(experiment)
    return list(groups.values())


def choose(experiments: Sequence[Experiment], **limits: Any) -> tuple[Choice, ExperimentResult]:
    """Choose among experiments that were scored on the same images.

    Args:
        experiments: one group of ``group``.
        limits: limits of the budget and what ranks the variants, as ``budget.choose`` takes them.

    Returns:
        The choice, and the variant that it names as the closest.

    Raises:
        ExperimentError: there are no variants.
    """
    results = collect(experiments)
    choice = budget.choose(results, **limits)
    closest = next(result for result in results if result.variant == choice.closest)
    noisy = next(one.noisy for one in experiments if one.name == closest.experiment)
    return budget.choose(results, **limits, noisy=noisy), closest


def collect(experiments: Sequence[Experiment]) -> list[ExperimentResult]:
    """Return all variants of experiments that were scored on the same images, in comparable figures.

    Latencies of separate runs differ by what else the machine did. Each run has timed ``fp32`` interleaved
    with the others. Where that is the same file in several runs, the latency of a variant is the median of
    fp32's latencies over these runs, divided by the variant's ratio to fp32.

    The reference is the variant distilled from the teacher that is the most accurate on val, in any of the
    experiments. Each experiment has compared its variants with its own such variant, in pairs on the test
    images. The difference between the two references on val, which is 0 where they are the same file, is
    added to the difference and to the ends of its interval.

    Raises:
        ExperimentError: there are no variants.
    """
    if not experiments:
        raise ExperimentError(NONE)
    latencies: dict[str, list[float]] = {}
    for experiment in experiments:
        for row in experiment.rows:
            if row.variant == REFERENCE:
                latencies.setdefault(row.sha256, []).append(row.latency_ms_p50)
    students = [row for experiment in experiments for row in experiment.rows if row.parent == TEACHER]
    best = max(row.val_score for row in students)
    return [result for experiment in experiments for result in _results(experiment, latencies, best)]


def _results(
    experiment: Experiment, latencies: Mapping[str, Sequence[float]], best: float
) -> Iterator[ExperimentResult]:
    own = budget.reference(experiment.rows).val_score
    for row in experiment.rows:
        latency, ratio = row.latency_ms_p50, row.latency_ratio_to_fp32
        if ratio and experiment.reference_file:
            latency = median(latencies[experiment.reference_file]) / ratio
        yield ExperimentResult(
            experiment=experiment.name,
            name=row.variant,
            parent_name=row.parent,
            score=row.val_score,
            test_score=row.score,
            score_delta=row.score_delta,
            delta_lo=row.delta_lo,
            verdict=row.verdict,
            max_drop=row.max_drop,
            test_images=row.test_images,
            images_needed=row.images_needed,
            size_bytes=row.size_bytes,
            latency_ms_p50=latency,
            latency_ratio_to_fp32=ratio,
            latency_ratio_lo=row.latency_ratio_lo,
            latency_ratio_hi=row.latency_ratio_hi,
            reference_delta=row.reference_delta + own - best,
            reference_lo=row.reference_lo + own - best,
            reference_hi=row.reference_hi + own - best,
        )


def differences(experiments: Sequence[Experiment]) -> dict[str, dict[str, Any]]:
    """Return the parameters of each experiment that are not the same in all of them, as `-S` takes them."""
    flat = {experiment.name: dict(_flatten(experiment.parameters)) for experiment in experiments}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    varied = [key for key in keys if len({repr(values.get(key)) for values in flat.values()}) > 1]
    return {name: {key: values[key] for key in varied if key in values} for name, values in flat.items()}


def options(settings: Mapping[str, Any]) -> str:
    """Settings as options of `dvc exp run`: ``-S distill.epochs=6 -S seed=1``."""
    return " ".join(f"-S {key}={json.dumps(value)}".replace('"', "") for key, value in settings.items())


def lines(experiments: Sequence[Experiment]) -> list[str]:
    """A table of experiments that were scored on the same images, one line each.

    There is one column per variant: the score on val in percent, with an asterisk where the gate accepts the
    variant. The last column has what differs between the experiments.
    """
    names = list(dict.fromkeys(row.variant for experiment in experiments for row in experiment.rows))
    cells = [["experiment", *names, "differs in"]]
    settings = differences(experiments)
    for experiment in experiments:
        scores = {
            row.variant: f"{100 * row.val_score:.2f}{'*' if row.verdict == 'accept' else ' '}"
            for row in experiment.rows
        }
        cells.append(
            [
                experiment.name,
                *(scores.get(name, "- ") for name in names),
                options(settings[experiment.name]) or "-",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index in (0, len(widths) - 1) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
