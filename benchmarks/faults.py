"""Whether a killed pipeline ends as if nothing had happened: kills at random moments, reruns, equal contents.

    python -m benchmarks.faults --kills 260 --seed 0

A small pipeline runs once undisturbed, in a folder of its own. Then `dvc repro` is killed with SIGKILL again
and again: DVC alone, the stage alone, their process group, or everything; within the stages, while DVC writes
dvc.lock, and while MLflow's database is made. After each kill, `python -m pipeline.stages.check` and
`dvc repro` go on, as `make repro` does. Every model, label, ONNX file and score of a run that was disturbed
must equal the undisturbed one's. Several kills hit each run. Results are JSON lines in the folder; the same
command goes on after it was stopped itself.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.killed_pipeline import ROOT, Kill, Pipeline

PER_RUN = 26
"""Largest number of kills in one run."""


def main() -> None:
    """Read the arguments, kill and compare; exit with status 1 unless all runs ended equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=260)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop before a run that ends later"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".tiny" / "faults")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    began = time.monotonic()
    pipeline = Pipeline(folder)
    reference = pipeline.reference()
    results = folder / "results.jsonl"
    kills = (
        [Kill(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() else []
    )
    kills = [kill for kill in kills if kill.run >= 0]
    run = 1 + max((kill.run for kill in kills), default=-1)
    before, started = len(kills), time.monotonic()
    while len(kills) < arguments.kills:
        spent = time.monotonic() - started
        if time.monotonic() - began + (spent / run if run else 0) > 60 * arguments.minutes:
            break
        count = min(PER_RUN, arguments.kills - len(kills))
        new = pipeline.disturbed(run, plan(run, count, arguments.seed, reference["seconds"]), reference)
        with results.open("a") as file:
            file.writelines(json.dumps(asdict(kill)) + "\n" for kill in new)
        kills += new
        run += 1
        rate = (time.monotonic() - started) / max(1, len(kills) - before)
        equal = sum(kill.equal for kill in kills)
        print(
            f"run {run}: {len(kills)} of {arguments.kills} kills, {equal} equal, "
            f"about {rate * (arguments.kills - len(kills)) / 60:.0f} minutes left",
            flush=True,
        )
    raise SystemExit(report(kills))


def plan(run: int, count: int, seed: int, seconds: dict[str, float]) -> list[Kill]:
    """Kills in the order of the stages: each stage in turn, at random moments."""
    source = random.Random(f"{seed} {run}")
    stages = list(seconds)
    places = [source.sample(stages, len(stages)) for _ in range(1 + count // len(stages))]
    kills = []
    for number, stage in enumerate([stage for part in places for stage in part][:count]):
        kind = source.choices(("stage", "lock"), (0.65, 0.35))[0]
        if number == 0:
            # The companion of the first training makes the database.
            stage, kind = "teach", "database"
        victim = source.choice(("dvc", "stage", "group", "all"))
        moment = source.random()
        if kind == "lock":
            victim, moment = source.choice(("dvc", "group")), source.uniform(0, 0.3)
        if kind == "database":
            victim, moment = "all", source.uniform(0, 4)
        kills.append(Kill(run, stage, kind, victim, moment))
    return sorted(kills, key=lambda kill: (stages.index(kill.stage), kill.kind == "lock"))


def report(kills: Sequence[Kill]) -> int:
    """Print what came of the kills, stage by stage; 1 unless all is well."""
    print(f"{'stage':24} {'killed':>6} {'finished':>8} {'equal':>6}")
    stages = Counter(kill.hit for kill in kills)
    for stage in stages:
        own = [kill for kill in kills if kill.hit == stage]
        print(_row(stage, own))
    for kind in ("stage", "lock", "database"):
        print(_row(f"(kind: {kind})", [kill for kill in kills if kill.kind == kind]))
    print(_row("total", kills))
    for problem in dict.fromkeys(f"run {kill.run}: {problem}" for kill in kills for problem in kill.problems):
        print(problem)
    return int(not kills or not all(kill.finished and kill.equal and not kill.problems for kill in kills))


def _row(name: str, kills: Sequence[Kill]) -> str:
    finished, equal = sum(kill.finished for kill in kills), sum(kill.equal for kill in kills)
    return f"{name:24} {len(kills):6} {finished:8} {equal:6}"


if __name__ == "__main__":
    main()
