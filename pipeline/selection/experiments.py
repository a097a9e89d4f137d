"""What DVC's experiments found, as one table to choose from."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipeline.errors import DistilleryError
from pipeline.selection.budget import TEACHER

METRICS = ("top1", "map")
UNFINISHED = ("queued", "running", "failed")


class ExperimentError(DistilleryError):
    """DVC has no experiments to tell of, or cannot tell."""


@dataclass(frozen=True)
class Candidate:
    """A variant of an experiment; ``budget.choose`` takes a table of them."""

    experiment: str
    name: str
    """Of the variant within its experiment."""
    origin: str
    """Its parent there, or ``teacher``."""
    score: float
    """On val: so many candidates would make a lucky one on test look good."""
    test: float
    """The score on test, which nothing is chosen by."""
    score_delta: float
    """On test, against the parent: what the gate judged."""
    verdict: str
    size_bytes: int
    latency_ms_p50: float
    """Brought to one machine's mood, see ``table``."""

    @property
    def variant(self) -> str:
        """A name that no other experiment has."""
        return f"{self.name} of {self.experiment}"

    @property
    def parent(self) -> str:
        return self.origin if self.origin == TEACHER else f"{self.origin} of {self.experiment}"


@dataclass(frozen=True)
class Experiment:
    """A finished state of the pipeline."""

    name: str
    """DVC's name, or ``workspace``."""
    data: Mapping[str, Any]
    """As `dvc exp show --json` has it."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.data["params"]["params.yaml"]["data"]

    @property
    def figures(self) -> dict[str, Mapping[str, Any]]:
        """The metrics of every variant that the parameters declare."""
        files = {name: f"artifacts/variants/{name}.json" for name in self.parameters["variants"]}
        found = self.data["metrics"]
        return {name: found[file]["data"] for name, file in files.items() if "data" in found.get(file, {})}

    @property
    def reference(self) -> str | None:
        """Hash of the file that latencies are ratios to."""
        return self.data["outs"].get("artifacts/onnx/fp32.onnx", {}).get("hash")


def read() -> tuple[list[Experiment], int]:
    """Finished experiments of this commit, the workspace first, and how many are not finished.

    Raises:
        ExperimentError: DVC says why it cannot show them.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise ExperimentError(shown.stderr.strip().splitlines()[-1].removeprefix("ERROR: "))
    return finished(json.loads(shown.stdout))


def finished(shown: Sequence[Mapping[str, Any]]) -> tuple[list[Experiment], int]:
    """The same from what `dvc exp show --json` printed."""
    found, open_ones = [], 0
    for base in shown:
        if base["rev"] == "workspace" and base["data"]:
            found.append(Experiment("workspace", base["data"]))
        for run in base["experiments"] or ():
            state, last = (run["executor"] or {}).get("state"), run["revs"][-1]
            if state in UNFINISHED or not last["data"]:
                open_ones += 1
            else:
                found.append(Experiment(run["name"], last["data"]))
    return [one for one in found if one.figures], open_ones


def table(found: Sequence[Experiment]) -> list[Candidate]:
    """All variants of all experiments.

    Latencies of separate runs differ by what else the machine did. Each run has timed ``fp32`` in turns with
    the others; where that is the same file, its median over the runs, divided by a variant's ratio to it,
    is the latency that is compared.

    Raises:
        ExperimentError: there is none with a variant.
    """
    times: dict[str, list[float]] = {}
    for one in found:
        if one.reference and "fp32" in one.figures:
            times.setdefault(one.reference, []).append(one.figures["fp32"]["latency_ms_p50"])
    candidates = [row for one in found for row in _rows(one, times)]
    if not candidates:
        raise ExperimentError(
            "no experiment of this commit is finished; docs/howto.md shows how to start some"
        )
    return candidates


def _rows(one: Experiment, times: Mapping[str, Sequence[float]]) -> Iterator[Candidate]:
    for name, figures in one.figures.items():
        metric = next(metric for metric in METRICS if metric in figures)
        ratio, latency = figures["latency_ratio_to_fp32"], figures["latency_ms_p50"]
        if ratio and one.reference:
            latency = median(times[one.reference]) / ratio
        yield Candidate(
            experiment=one.name,
            name=name,
            origin=one.parameters["variants"][name]["parent"],
            score=figures[f"val_{metric}"],
            test=figures[metric],
            score_delta=figures[f"{metric}_delta"],
            verdict=figures["verdict"],
            size_bytes=figures["size_bytes"],
            latency_ms_p50=latency,
        )


def differences(found: Sequence[Experiment]) -> dict[str, dict[str, Any]]:
    """Experiment to those of its parameters, as `-S` takes them, that are not the same in all."""
    flat = {one.name: dict(_leaves(one.parameters)) for one in found}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    varied = [key for key in keys if len({repr(values.get(key)) for values in flat.values()}) > 1]
    return {name: {key: values[key] for key in varied if key in values} for name, values in flat.items()}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
