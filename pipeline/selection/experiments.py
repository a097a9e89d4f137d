"""The variants of all DVC experiments in one table, to select from."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipeline import paths
from pipeline.errors import DistilleryError
from pipeline.lineage import REFERENCE
from pipeline.selection.table import TEACHER

METRICS = ("top1", "map")
"""Names of scores, of which every variant has one."""

UNFINISHED = ("queued", "running", "failed")
"""States of an experiment that has no results."""


class ExperimentError(DistilleryError):
    """There are no finished experiments, or DVC cannot show them."""


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
    verdict: str
    """Verdict of the gate: ``accept`` or ``reject``."""
    size_bytes: int
    """Size of the ONNX file."""
    latency_ms_p50: float
    """Median latency in milliseconds, made comparable as ``collect`` describes."""

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
    data: Mapping[str, Any]
    """What `dvc exp show --json` prints about it."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Content of `params.yaml`."""
        return self.data["params"][str(paths.PARAMETERS)]["data"]

    @property
    def figures(self) -> dict[str, Mapping[str, Any]]:
        """Metrics of every variant that the parameters declare."""
        files = {name: str(paths.FIGURES / f"{name}.json") for name in self.parameters["variants"]}
        metrics = self.data["metrics"]
        return {
            name: metrics[file]["data"] for name, file in files.items() if "data" in metrics.get(file, {})
        }

    @property
    def reference_hash(self) -> str | None:
        """Hash of the ONNX file whose latency others are compared with."""
        return self.data["outs"].get(str(paths.onnx(REFERENCE)), {}).get("hash")


def read() -> tuple[list[Experiment], int]:
    """Return the finished experiments of this commit, the workspace first, and the number of unfinished ones.

    Raises:
        ExperimentError: DVC cannot show them.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ExperimentError(process.stderr.strip().splitlines()[-1].removeprefix("ERROR: "))
    return finished(json.loads(process.stdout))


def finished(output: Sequence[Mapping[str, Any]]) -> tuple[list[Experiment], int]:
    """Return the same as ``read`` from the output of `dvc exp show --json`."""
    experiments, unfinished = [], 0
    for base in output:
        if base["rev"] == "workspace" and base["data"]:
            experiments.append(Experiment("workspace", base["data"]))
        for run in base["experiments"] or ():
            state, last = (run["executor"] or {}).get("state"), run["revs"][-1]
            if state in UNFINISHED or not last["data"]:
                unfinished += 1
            else:
                experiments.append(Experiment(run["name"], last["data"]))
    return [experiment for experiment in experiments if experiment.figures], unfinished


def collect(experiments: Sequence[Experiment]) -> list[ExperimentResult]:
    """Return all variants of all experiments, with comparable latencies.

    Latencies of separate runs differ by what else the machine did. Each run has timed ``fp32`` interleaved
    with the others. Where that is the same file in several runs, the latency of a variant is the median of
    fp32's latencies over these runs, divided by the variant's ratio to fp32.

    Raises:
        ExperimentError: there are no variants.
    """
    latencies: dict[str, list[float]] = {}
    for experiment in experiments:
        if experiment.reference_hash and REFERENCE in experiment.figures:
            latency = experiment.figures[REFERENCE]["latency_ms_p50"]
            latencies.setdefault(experiment.reference_hash, []).append(latency)
    results = [result for experiment in experiments for result in _results(experiment, latencies)]
    if not results:
        raise ExperimentError(
            "no experiment of this commit is finished; start some, for example with "
            "`dvc exp run -S distill.epochs=6`"
        )
    return results


def _results(experiment: Experiment, latencies: Mapping[str, Sequence[float]]) -> Iterator[ExperimentResult]:
    for name, figures in experiment.figures.items():
        metric = next(metric for metric in METRICS if metric in figures)
        ratio, latency = figures["latency_ratio_to_fp32"], figures["latency_ms_p50"]
        if ratio and experiment.reference_hash:
            latency = median(latencies[experiment.reference_hash]) / ratio
        yield ExperimentResult(
            experiment=experiment.name,
            name=name,
            parent_name=experiment.parameters["variants"][name]["parent"],
            score=figures[f"val_{metric}"],
            test_score=figures[metric],
            score_delta=figures[f"{metric}_delta"],
            verdict=figures["verdict"],
            size_bytes=figures["size_bytes"],
            latency_ms_p50=latency,
        )


def differences(experiments: Sequence[Experiment]) -> dict[str, dict[str, Any]]:
    """Return the parameters of each experiment that are not the same in all of them, as `-S` takes them."""
    flat = {experiment.name: dict(_flatten(experiment.parameters)) for experiment in experiments}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    varied = [key for key in keys if len({repr(values.get(key)) for values in flat.values()}) > 1]
    return {name: {key: values[key] for key in varied if key in values} for name, values in flat.items()}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
