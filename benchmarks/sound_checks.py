"""Whether the checks of an exported file let sound students pass: weak, strong, pruned, float and int8.

    python -m benchmarks.sound_checks --runs 200 --seed 0

Each run draws a student and what is done to it: 2 to 1,000 classes or attributes, 32 to 192 pixels, mean and
standard deviation, width, activation and padding; no, hardly any or some training on made-up images; channels
removed or not; and float, post-training quantisation with any steps, or quantisation-aware training, with
seven or eight bits and some first layers in float. Then it does what the stages `export` and `evaluate` do:
it writes the file, verifies it, and climbs the parity ladder. Every refusal is a false alarm, since the file
is never changed. Each run prints a line; results are JSON lines in the folder, and the same command goes on
after it was stopped. The status is 1 if there was an alarm.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

import students
from pipeline.models.layers import trace
from pipeline.models.storage import Card, Model
from pipeline.onnx import export
from pipeline.parity import ladder, verification
from pipeline.pruning import surgery, widths
from pipeline.quantization import aware_training, stem
from pipeline.quantization.post_training import STEPS, Workbench
from pipeline.quantization.settings import Step
from pipeline.tasks import TASKS, TaskName
from pipeline.training import norms
from students.mobilenet_v1 import Activation, Padding, scaled_channels
from teachers.contract import InputContract

ROOT = Path(__file__).parents[1]
Strength = Literal["initial", "barely trained", "trained", "nearly constant", "saturated", "mostly dead"]
Method = Literal["float", "ptq", "qat"]
TRAINING_STEPS: dict[Strength, int] = {"barely trained": 3, "trained": 40}
NORMALISATIONS = (
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.4, 0.3, 0.6), (0.1, 0.3, 0.2)),
)
CALIBRATED, VERIFIED, CLIMBED, BATCH = 16, 32, 64, 16
"""Numbers of images: for calibration, for the verification, for the ladder, and in a batch."""


@dataclass(frozen=True)
class Plan:
    """One student and what is done to it."""

    run: int
    seed: int
    task: TaskName
    classes: int
    size: int
    width: float
    activation: Activation
    padding: Padding
    normalisation: int
    strength: Strength
    pruned: float | None
    """Share of the channels that stay; None for all."""
    method: Method
    weight_limit: int
    float_layers: int
    """Number of first layers in float."""
    ptq: tuple[Step, ...]
    learn_steps: bool

    def __str__(self) -> str:
        words: list[str] = [
            f"{self.classes} {'classes' if self.task == 'single_label' else 'attributes'}",
            f"{self.size} px",
            f"width {self.width:g}",
            self.activation,
            self.padding,
            self.strength,
        ]
        words += [f"pruned to {self.pruned:.0%}"] if self.pruned else []
        if self.method != "float":
            bits = 7 if self.weight_limit == 63 else 8
            words += [f"{self.method} {bits} bits", f"{self.float_layers} float layers"]
            words += ["learned steps"] if self.learn_steps else []
            words += ["+".join(self.ptq)] if self.ptq else []
        else:
            words.append("float")
        return ", ".join(words)


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    plan: dict[str, Any]
    figures: dict[str, float]
    """Figures of the verification, and the greatest share of ties and margin on the ladder."""
    alarm: str | None
    seconds: float


def draw(run: int, seed: int) -> Plan:
    """A plan at random; every 25th is of the real size, and the widest is rare, so that runs take seconds."""
    source = random.Random(f"{seed} {run}")
    method = source.choices(get_args(Method), (1, 3, 1.5))[0]
    ranges = source.choice(("", "entropy_ranges", "percentile_ranges"))
    wanted: list[Step] = []
    for step in STEPS:
        if ranges == step if step.endswith("_ranges") else source.random() < 0.4:
            wanted.append(step)
    task: TaskName = "multi_label" if source.random() < 0.25 else "single_label"
    real = run % 25 == 24
    return Plan(
        run=run,
        seed=source.randrange(2**31),
        task=task,
        classes=source.choice((2, 3, 5, 10, 100, 1000) if task == "single_label" else (1, 2, 5, 40)),
        size=192 if real else source.choice((32, 33, 40, 48, 64)),
        width=source.choices((0.1, 0.25, 0.5, 0.75), (2, 4, 2, 1))[0],
        activation=source.choice(get_args(Activation)),
        padding=source.choice(get_args(Padding)),
        normalisation=source.randrange(len(NORMALISATIONS)),
        strength=source.choices(get_args(Strength), (1, 2, 3, 1, 1, 1))[0],
        pruned=source.choice((None, None, 0.3, 0.5, 0.8)),
        method=method,
        weight_limit=source.choice((63, 127)),
        float_layers=source.choice((0, 0, 0, 1, 2, 5)) if method != "float" else 0,
        ptq=tuple(wanted) if method == "ptq" else (),
        learn_steps=method == "qat" and source.random() < 0.5,
    )


def attempt(plan: Plan, folder: Path) -> Outcome:
    """Make the student, export it, and check the file as the stages do."""
    began, figures, alarm = time.perf_counter(), {}, None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            figures = _check(plan, folder)
    except Exception as error:  # A traceback ends a run as well.
        alarm = f"{type(error).__name__}: {error}"
    return Outcome(asdict(plan), figures, alarm, round(time.perf_counter() - began, 2))


def _check(plan: Plan, folder: Path) -> dict[str, float]:
    """Make a student and its file, and check it; returns what the checks measured."""
    prototypes = torch.rand(min(plan.classes, 100), 3, 4, 4)
    model = _quantise(plan, _student(plan, prototypes), prototypes)
    images, labels = pictures(plan, prototypes, CLIMBED - 4)
    # Black, white and noise as well: the first layers saturate, and the sums are greatest.
    noise = torch.randint(0, 256, (2, plan.size, plan.size, 3)).to(torch.uint8)
    extreme = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand_as(noise)
    images = torch.cat([extreme, noise, images]).contiguous()
    labels = torch.cat([labels[:4], labels])
    path = folder / "model.onnx"
    export.export(model, path, export.metadata_for(model.card, model.quantization, "benchmark"))
    figures = verification.verify(path, model, images[:VERIFIED])
    rungs = ladder.climb(model, path, images.split(BATCH), labels.numpy())["rungs"]
    ties = [rung["ties"] for rung in rungs if "ties" in rung]
    margins = [rung["margin"] for rung in rungs if rung.get("ties")]
    return figures | {"ties": max(ties) / len(images), "margin": max(margins, default=0.0)}


def pictures(
    plan: Plan, prototypes: Float[Tensor, "kinds 3 4 4"], count: int
) -> tuple[UInt8[Tensor, "count size size 3"], Tensor]:
    """Smooth pictures around the prototypes of their classes, with noise, and their labels."""
    kinds = torch.randint(0, len(prototypes), (count,))
    smooth = 0.7 * prototypes[kinds] + 0.3 * torch.rand(count, 3, 4, 4)
    large = nn.functional.interpolate(smooth, size=(plan.size, plan.size), mode="bicubic")
    large = (large + 0.05 * torch.randn_like(large)).clamp(0, 1)
    images = large.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    if plan.task == "single_label":
        return images, kinds
    present = torch.arange(plan.classes)[None] % (kinds[:, None] + 1) == 0
    return images, present.float()


def _student(plan: Plan, prototypes: Tensor) -> Model:
    mean, std = NORMALISATIONS[plan.normalisation]
    contract = InputContract(plan.size, mean=mean, std=std)
    arguments = {
        "classes": plan.classes,
        "channels": list(scaled_channels(plan.width)),
        "activation": plan.activation,
        "padding": plan.padding,
        "size": plan.size,
    }
    module = students.build("mobilenet_v1", arguments)
    _train(plan, module, contract, prototypes, TRAINING_STEPS.get(plan.strength, 0))
    if plan.pruned:
        channels = [max(8, int(count * plan.pruned)) for count in widths.output_channels(module)]
        module, arguments = surgery.remove_channels(
            module, arguments, channels, size=plan.size, criterion="l1"
        )
        _train(plan, module, contract, prototypes, TRAINING_STEPS.get(plan.strength, 0) // 4)
    norms.reestimate(module, [contract.normalise(pictures(plan, prototypes, BATCH)[0]) for _ in range(2)])
    _weaken(plan, module)
    card = Card(
        variant="student",
        parent="teacher",
        op="distill",
        architecture="mobilenet_v1",
        arguments=arguments,
        input=contract,
        labels=tuple(f"class {number}" for number in range(plan.classes)),
        teacher="none",
        data_sha256="",
        license="CC0-1.0",
        settings={},
        task=plan.task,
    )
    return Model(module.eval(), card)


@torch.no_grad()
def _weaken(plan: Plan, module: nn.Module) -> None:
    """Make a student that a training may end with, but seldom does."""
    head = module.get_submodule("classifier")
    assert isinstance(head, nn.Linear)
    batch_norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    match plan.strength:
        case "nearly constant":  # All answers are near ties.
            head.weight.copy_(head.weight[:1] + 1e-4 * torch.randn_like(head.weight) * head.weight.std())
        case "saturated":  # Great weights and biases: sums are great, and many values are clipped.
            for part in batch_norms:
                part.weight.mul_(4)
                part.bias.normal_(std=2)
        case "mostly dead":  # Most channels are never positive, as after a learning rate that was too great.
            for part in batch_norms:
                part.bias.copy_(torch.where(torch.rand_like(part.bias) < 0.7, -6.0, 0.5))


def _train(plan: Plan, module: nn.Module, contract: InputContract, prototypes: Tensor, steps: int) -> None:
    """A few steps of Adam on made-up pictures; leaves the network in evaluation mode."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 3e-3)
    module.train()
    for _ in range(steps):
        images, labels = pictures(plan, prototypes, BATCH)
        loss = TASKS[plan.task].cross_entropy(module(contract.normalise(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()


def _quantise(plan: Plan, parent: Model, prototypes: Tensor) -> Model:
    """The student by the plan's method, as the stage ``quantize`` makes it."""
    if plan.method == "float":
        return parent
    layers = tuple(trace(parent.module).layers)[: plan.float_layers]
    if not layers:
        parent = stem.read_bytes(parent)
    contract = parent.card.input
    stored = contract.normalise(pictures(plan, prototypes, CALIBRATED)[0])

    def calibration() -> Iterator[Tensor]:
        yield from stored.split(BATCH)

    bench = Workbench(parent, calibration, weight_limit=plan.weight_limit, float_layers=layers)
    network, quantization = bench.make(plan.ptq)
    if plan.method == "qat":
        prepared = aware_training.prepare(network, quantization, learn_steps=plan.learn_steps)
        _train(plan, prepared.module, contract, prototypes, 1 + TRAINING_STEPS.get(plan.strength, 0) // 8)
        network, quantization = aware_training.finish(prepared)
    arguments = {**parent.card.arguments, "norm": False}
    card = replace(parent.card, variant="student-int8", op="quantize", arguments=arguments)
    return Model(network.module, card, quantization)


def main() -> None:
    """Read the arguments, make and check students; exit with status 1 if there was an alarm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / ".tiny" / "sound")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = arguments.folder / f"seed-{arguments.seed}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    done = {outcome.plan["run"] for outcome in outcomes}
    for run in range(arguments.runs):
        if run in done:
            continue
        plan = draw(run, arguments.seed)
        with tempfile.TemporaryDirectory() as folder:
            outcome = attempt(plan, Path(folder))
        with file.open("a") as results:
            results.write(json.dumps(asdict(outcome)) + "\n")
        outcomes.append(outcome)
        largest = ", ".join(f"{name} {value:.3g}" for name, value in outcome.figures.items())
        print(f"{run:4} {outcome.seconds:5.1f} s  {plan}: {outcome.alarm or largest}", flush=True)
    raise SystemExit(report(outcomes))


def report(outcomes: Sequence[Outcome]) -> int:
    """Print what came of the runs; 1 if there was an alarm."""
    alarms = [outcome for outcome in outcomes if outcome.alarm]
    for key in ("method", "strength", "task", "size"):
        counts = Counter(str(outcome.plan[key]) for outcome in outcomes)
        print(f"{key}: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}")
    for name in sorted({name for outcome in outcomes for name in outcome.figures}):
        values = [outcome.figures[name] for outcome in outcomes if name in outcome.figures]
        extreme = min(values) if name == "argmax" else max(values)
        print(f"{'least' if name == 'argmax' else 'greatest'} {name}: {extreme:.3g} of {len(values)} runs")
    seconds = float(np.sum([outcome.seconds for outcome in outcomes]))
    print(f"{len(outcomes)} runs in {seconds:.0f} s, {len(alarms)} alarms")
    for outcome in alarms:
        print(f"run {outcome.plan['run']}: {outcome.alarm}")
    return int(bool(alarms))


if __name__ == "__main__":
    main()
