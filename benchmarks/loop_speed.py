"""Images a second of the training loop, beside the bare step and beside the same step as a CUDA graph.

    python -m benchmarks.loop_speed --json FILE
    python -m benchmarks.loop_speed --sizes 192 --batches 32 --steps 20 --rounds 5 --against CHECKOUT
    python -m benchmarks.loop_speed --profile --against CHECKOUT

The loop is the product's own (`pipeline.training.loop.train` with the optimiser, clipping, averages and
objective of `distill` in params.yaml) on batches that are ready on the device, so that no loader is measured.
The bare step is what PyTorch needs at least: forward, cross entropy, backward, clipping, AdamW; on a GPU in
bf16, once launched kernel by kernel (eager) and once replayed as a CUDA graph (replayed). All take turns,
round by round.

With `--against`, the loop of this checkout and that of another one take turns, each in a process of its own,
and the ratio is given with its 95 % interval. With `--profile`, a tiny network trains on tiny images, so that
hardly anything but Python is left: microseconds of a step within PyTorch's operators and outside of them.
"""

import argparse
import json
import math
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from lightning_fabric import Fabric
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

import pipeline
import students
from pipeline import paths
from pipeline.data import batches
from pipeline.data.arrow import Rows
from pipeline.data.batches import Batch, Request, ViewSet
from pipeline.data.store import ImageSet
from pipeline.distillation.objective import loss_terms
from pipeline.distillation.settings import Objective
from pipeline.quantization import wrappers
from pipeline.running import affinity
from pipeline.statistics import intervals
from pipeline.tasks import SINGLE_LABEL
from pipeline.training import compute, loop
from pipeline.training.loop import Run
from pipeline.training.settings import ComputeSettings, TrainingSettings
from teachers.contract import InputContract

UNTIMED = 25 if torch.cuda.is_available() else 3
"""Number of steps before the timed ones; on a GPU more than the trial of a CUDA graph takes."""
CLASSES = 10
TRAININGS = ("distill", "qat")
RECIPE = ("optimizer", "weight_decay", "clip", "ema", "learning_rate")  # keys of `distill`
STEP = "step#"
"""Mark of a step in a profile."""
CHILD = "LOOP_SPEED_CASE"
"""Environment variable that holds the case of a process that measures one checkout."""


@dataclass(frozen=True)
class Case:
    """What is measured."""

    training: str
    size: int
    """Side of the images in pixels."""
    batch: int
    """Number of images per step."""
    steps: int
    precision: str
    """Arithmetic of the loop; the bare step takes bf16 unless it is ``32-true``."""
    threads: int
    channels: int | None
    """Number of channels of every layer; None takes those of the default student."""
    profiled: bool


def main() -> None:
    """Measure, and print a table or write JSON."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write all results to")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 192], help="pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], help="images per step")
    parser.add_argument("--training", choices=TRAININGS, default="distill", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=60, help="timed steps per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument(
        "--precision", default="auto" if cuda else "32-true", help="of the loop (default: %(default)s)"
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of this project")
    parser.add_argument("--profile", action="store_true", help="microseconds of Python in a step")
    arguments = parser.parse_args()
    if arguments.profile:
        arguments.sizes, arguments.batches = [32], [2]
    cases = [
        Case(
            arguments.training,
            size,
            batch,
            arguments.steps,
            "32-true" if arguments.training == "qat" else arguments.precision,
            arguments.threads,
            8 if arguments.profile else None,
            arguments.profile,
        )
        for size in arguments.sizes
        for batch in arguments.batches
    ]
    if arguments.profile or arguments.against:
        rows = [_compare(case, arguments.rounds, arguments.against) for case in cases]
    else:
        rows = [_beside_the_bare_step(case, arguments.rounds) for case in cases]
    found = {"machine": _machine(), "torch": torch.__version__, "rounds": arguments.rounds, "results": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    for row in rows:
        print(_line(row))


def _beside_the_bare_step(case: Case, rounds: int) -> dict[str, Any]:
    """Images a second of the loop and of the bare step, and their ratios."""
    device = _fabric(case).device
    ways: dict[str, Callable[[], float]] = {
        "loop": lambda: _loop(case)["images_per_second"],
        "eager": lambda: _bare(case, device, replay=False),
    }
    if device.type == "cuda":
        ways["replayed"] = lambda: _bare(case, device, replay=True)
    rates: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds):
        for name, rate in ways.items():
            rates[name].append(rate())
            print(f"round {turn + 1}: {case.size} px, {name} {rates[name][-1]:.1f}", file=sys.stderr)
    ratios = {f"loop_to_{name}": _ratio(rates["loop"], rates[name]) for name in ways if name != "loop"}
    return {**asdict(case), "images_per_second": _medians(rates), **ratios, "rates": rates}


def _compare(case: Case, rounds: int, other: Path | None) -> dict[str, Any]:
    """What the loop of this checkout, and of another one, measures in processes of their own."""
    checkouts = {"here": Path(__file__).parents[1]} | ({"there": other.resolve()} if other else {})
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(rounds):
        for name in list(checkouts) if turn % 2 else reversed(checkouts):
            for measure, value in _in_checkout(case, checkouts[name]).items():
                values[measure][name].append(value)
        done = {measure: {name: found[-1] for name, found in by.items()} for measure, by in values.items()}
        print(f"round {turn + 1}: {case.size} px: {done}", file=sys.stderr)
    row = {**asdict(case), **{measure: _medians(by) for measure, by in values.items()}, "rounds": values}
    if other:
        ratios = {key: _ratio(by["here"], by["there"]) for key, by in values.items()}
        row["ratios"] = {f"here_to_there, {key}": ratio for key, ratio in ratios.items()}
    return row


def _in_checkout(case: Case, checkout: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), CHILD: json.dumps(asdict(case))}
    done = subprocess.run(
        [sys.executable, __file__], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found.pop("pipeline")).is_relative_to(checkout), "another checkout was measured"
    return found


class Feed:
    """Batches that are ready on the device; stands in for the loader, and takes the times."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.ready = [_batch(case.batch, case.size, device, seed) for seed in range(2)]
        self.found: dict[str, float] = {}
        self._profiler = profile(activities=[ProfilerActivity.CPU]) if case.profiled else None
        self._began = 0.0

    def load(
        self, _fabric: Fabric, _set: ViewSet, requests: Sequence[Request], _workers: int
    ) -> Iterator[Batch]:
        """Yield a batch per request, of the same kind as ``pipeline.data.batches.load``."""
        for number, request in enumerate(requests):
            if request.view is None:
                yield _batch(len(request.indices), request.size, self.device, 0)
                continue
            if number == UNTIMED:
                self._begin()
            elif number == UNTIMED + self.case.steps:
                self._end()
            with record_function(STEP) if self._profiler else nullcontext():
                yield self.ready[number % 2]

    def _begin(self) -> None:
        _wait(self.device)
        if self._profiler:
            self._profiler.__enter__()
        self._began = time.perf_counter()

    def _end(self) -> None:
        _wait(self.device)
        seconds = time.perf_counter() - self._began
        if self._profiler is None:
            self.found = {"images_per_second": self.case.steps * self.case.batch / seconds}
            return
        self._profiler.__exit__(None, None, None)
        steps = [event for event in self._profiler.events() or () if event.name == STEP]
        within = [list(_operators(step)) for step in steps]
        inside = [sum(part.time_range.elapsed_us() for part in found) for found in within]
        whole = [step.time_range.elapsed_us() for step in steps]
        # The fastest step: what else the machine does only adds.
        self.found = {
            "microseconds_in_python": min(map(operator.sub, whole, inside)),
            "microseconds_in_operators": min(inside),
            "operators": statistics.median(map(len, within)),
        }


def _operators(event: Any) -> Iterator[Any]:
    """The outermost operators within a mark; marks, such as those of optimisers, have a # in their names."""
    for child in event.cpu_children:
        if "#" in child.name:
            yield from _operators(child)
        else:
            yield child


def _loop(case: Case) -> dict[str, float]:
    """What the product's loop measures."""
    fabric = _fabric(case)
    feed = Feed(case, fabric.device)
    steps = UNTIMED + case.steps + 1
    recipe = yaml.safe_load(paths.PARAMETERS.read_text())["distill"]
    settings = TrainingSettings(epochs=1.0, batch_size=case.batch, **{name: recipe[name] for name in RECIPE})
    objective = Objective.model_validate(recipe["objective"])
    own, batches.load = batches.load, feed.load
    try:
        with tempfile.TemporaryDirectory() as folder:
            loop.train(
                fabric,
                _network(case),
                loss_terms(objective, InputContract(case.size), SINGLE_LABEL),
                objective.weights(),
                settings,
                train_set=ViewSet(_images(steps * case.batch), None, InputContract(case.size)),
                val_set=ViewSet(_images(8), None, InputContract(case.size)),
                views=1,
                seed=0,
                workers=0,
                run=Run("loop", Path(folder), ""),
            )
    finally:
        batches.load = own
    return feed.found


def _bare(case: Case, device: torch.device, *, replay: bool) -> float:
    """Images a second of the bare step."""
    network = _network(case).train().to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 0.001, fused=True, capturable=replay)
    bf16 = (device.type == "cuda" and case.precision != "32-true") or case.precision == "bf16-mixed"
    given = [_batch(case.batch, case.size, device, seed) for seed in range(2)]
    static = _batch(case.batch, case.size, device, 0)

    def learn(batch: Batch) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(InputContract(case.size).normalise(batch.images))
        nn.functional.cross_entropy(logits.float(), batch.labels).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    step = learn
    if replay:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                learn(static)
        torch.cuda.current_stream().wait_stream(stream)
        optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            learn(static)

        def step(batch: Batch) -> None:
            static.images.copy_(batch.images)
            static.labels.copy_(batch.labels)
            graph.replay()

    began = 0.0
    for number in range(UNTIMED + case.steps):
        if number == UNTIMED:
            _wait(device)
            began = time.perf_counter()
        step(given[number % 2])
    _wait(device)
    return case.steps * case.batch / (time.perf_counter() - began)


def _network(case: Case) -> nn.Module:
    """The default student; for ``qat`` with rounded weights and activations, whose steps are learned."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"classes": CLASSES, "norm": case.training != "qat"}
    if case.channels:
        arguments["channels"] = [case.channels] * 14
    network = students.build("mobilenet_v1", arguments)
    return quantised(network) if case.training == "qat" else network


def quantised(network: nn.Module) -> nn.Module:
    """A network without batch norms with rounded weights and activations, whose steps are learned."""
    named = list(network.named_modules())
    layers = {name: part for name, part in named if isinstance(part, nn.Conv2d | nn.Linear)}
    return wrappers.wrap(
        network,
        steps={name: part.weight.detach().flatten(1).abs().amax(1) / 127 for name, part in layers.items()},
        bias_steps=dict.fromkeys(layers, 0.01),
        outputs={name: 0.02 for name, part in named if isinstance(part, nn.ReLU)},
        weight_limit=127,
        learn_steps=True,
    ).module


def _images(count: int) -> ImageSet:
    """A split of labels alone."""
    labels = np.random.default_rng(0).integers(0, CLASSES, count).tolist()
    table = Rows(pa.table({"label": labels, "source": ["made up"] * count}))
    return ImageSet(table, tuple(map(str, range(CLASSES))))


def _batch(images: int, size: int, device: torch.device, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    answers = torch.randn(images, CLASSES, generator=generator).half()
    return Batch(pixels.to(device), labels.to(device), answers.to(device))


def _fabric(case: Case) -> Fabric:
    settings = {"threads": case.threads, "precision": case.precision}
    return compute.start(ComputeSettings.model_validate(settings))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(found) for name, found in values.items()}


def _ratio(first: list[float], second: list[float]) -> dict[str, float]:
    """The geometric mean of the rounds' ratios, with its 95 % interval if there are several."""
    logarithms = np.log(np.divide(first, second))
    ends = intervals.mean_interval(logarithms) if len(logarithms) > 1 else ()
    values = zip(("ratio", "low", "high"), (logarithms.mean(), *ends), strict=False)
    return {name: math.exp(value) for name, value in values}


def _line(row: dict[str, Any]) -> str:
    """One row of the table: whatever was measured."""
    parts = [f"{row['training']}, {row['size']} px, batch {row['batch']}"]
    for name, value in {**row, **row.get("ratios", {})}.items():
        if isinstance(value, dict) and "ratio" in value:
            bounds = f" ({value['low']:.3f} to {value['high']:.3f})" if "low" in value else ""
            parts.append(f"{name} {value['ratio']:.3f}{bounds}")
        elif isinstance(value, dict) and name not in ("ratios", "rates", "rounds"):
            parts.append(f"{name}: " + ", ".join(f"{key} {number:.1f}" for key, number in value.items()))
    return "; ".join(parts)


def _machine() -> str:
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    gpu = torch.cuda.is_available()
    return torch.cuda.get_device_name() if gpu else f"{cpu}, {affinity.physical_cores()} cores"


if __name__ == "__main__":
    if case := os.environ.get(CHILD):
        print(json.dumps({**_loop(Case(**json.loads(case))), "pipeline": pipeline.__file__}))
    else:
        main()
