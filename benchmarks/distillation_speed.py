"""Images a second: distillation from the store, torchdistill's loop with a live teacher, and a plain loop.

The same photographs, batch size, loader processes, teacher (ResNet-50 at 224 pixels) and student (MobileNetV1
0.75 at 192) for all, rounds in turn; weights are random, which changes no speed. Each loop runs in a process
of its own; those of others have PyTorch as it comes, without this pipeline's settings of OpenMP and of the
allocator. What is compared with is in `benchmarks/requirements.txt`.

    python benchmarks/distillation_speed.py FOLDER --json

FOLDER holds class folders of images; without it images are made up.
"""

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, cast

# It also runs as a script, which finds only what lies beside it.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet50

import students
from pipeline import paths
from pipeline.data import sources, splits, writing
from pipeline.data.batches import ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import labelling, labels, learning, training_data
from pipeline.distillation.labels import Answers, Key
from pipeline.distillation.settings import StudentTraining
from pipeline.distillation.training_data import TrainingData
from pipeline.running import affinity
from pipeline.training import compute
from pipeline.training.settings import ComputeSettings
from teachers.contract import InputContract
from teachers.runtime import in_runtime

BATCH = 32
WORKERS = 2
TEACHER, STUDENT = InputContract(224), InputContract(192)
SPACE = ViewSpace(seed=0, crop_scale=(0.8, 1.0), crop_ratio=(0.9, 1.1))
VIEWS = 2
"""Stored for every image, as the default has it."""
EPOCHS = 10
"""That labelling is spread over."""
HELD_OUT = 16
"""Images of val and of test; neither is timed."""
LEAST = BATCH * (4 * WORKERS + 1)
"""Images of an epoch: more than the loader renders ahead, or its rendering would not be timed."""
MADE_UP = (400, 533)
"""Width and height in pixels, as photographs on the web have."""
GRAIN = 4.0
"""Standard deviation, of 255."""
OPENMP = "GOMP_SPINCOUNT"
"""What importing `pipeline` sets, before PyTorch is loaded."""

Loop = Callable[[argparse.Namespace, Path], dict[str, float]]
"""Takes the arguments and the folder of the training data; returns images per second."""


class Shrunk(nn.Module):
    """A student that takes what its teacher takes, since torchdistill hands both the same tensor."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, x: Tensor) -> Tensor:
        return self.student(nn.functional.interpolate(x, STUDENT.size, mode="bilinear", antialias=True))


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="class folders of images (default: made up)")
    parser.add_argument("--images", type=int, default=384, help="images of an epoch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each loop (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.images < LEAST:
        parser.error(f"--images {arguments.images}: at least {LEAST}, more than loaders render ahead")
    phases = yaml.safe_load(paths.PARAMETERS.read_text())["distill"]["phases"]
    shares = [(phase["size"] or STUDENT.size, phase["share"]) for phase in phases]
    rounds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        made_up = arguments.folder is None
        if made_up:
            arguments.folder = Path(folder) / "images"
            _make_up(arguments.folder, arguments.images + 2 * HELD_OUT)
        _write_training_data(Path(folder), arguments.folder, arguments.images)
        for turn in range(arguments.rounds):
            for loop in (_torchdistill, _plain, _ours):
                for name, rate in _alone(loop, arguments, Path(folder)).items():
                    rounds[name].append(rate)
                    print(f"round {turn + 1}: {name} {rate:.1f} images/s", file=sys.stderr)
    for turn in range(arguments.rounds):
        seconds = sum(share / rounds[f"store_{size}"][turn] for size, share in shares)
        rounds["store_recipe"].append(1 / seconds)
    result = _result(rounds, arguments)
    result["images_made_up"] = made_up
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, rate in result["images_per_second"].items():
        low, high = min(rounds[name]), max(rounds[name])
        print(f"{name:16}{rate:8.1f} images/s ({low:.1f} to {high:.1f})")
    for name in (name for name in result if name.startswith("ratio")):
        print(f"{name}: {result[name]:.2f}")


def _result(rounds: dict[str, list[float]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds; ratios are made within a round."""

    def spread(name: str, turn: int) -> float:
        """Images a second with labelling spread over the epochs."""
        return 1 / (1 / rounds[name][turn] + VIEWS / EPOCHS / rounds["labelling"][turn])

    def ratio(value: Callable[[int], float]) -> float:
        return statistics.median(value(turn) for turn in range(arguments.rounds))

    peer, plain = rounds["torchdistill"], rounds["plain"]
    return {
        "images_per_second": {name: statistics.median(rates) for name, rates in rounds.items()},
        "ratio_epoch": ratio(lambda turn: rounds["store_recipe"][turn] / peer[turn]),
        "ratio_amortised": ratio(lambda turn: spread("store_recipe", turn) / peer[turn]),
        "ratio_epoch_192": ratio(lambda turn: rounds["store_192_auto"][turn] / peer[turn]),
        "ratio_amortised_192": ratio(lambda turn: spread("store_192_auto", turn) / peer[turn]),
        "ratio_plain_192": ratio(lambda turn: rounds["store_192"][turn] / plain[turn]),
        "ratio_plain_192_auto": ratio(lambda turn: rounds["store_192_auto"][turn] / plain[turn]),
        "rounds": rounds,
        "batch_size": BATCH,
        "images": arguments.images,
        "threads": affinity.physical_cores(),
        "torch": torch.__version__,
        "cpu": _cpu(),
    }


def _write_training_data(folder: Path, images: Path, count: int) -> None:
    """Some photographs with a store of random answers."""
    listing = sources.read("folder", images)
    made = splits.assign(listing.labelled, train=count, val=HELD_OUT, test=HELD_OUT, seed=0, anew=True)
    report = writing.write(folder / "data", listing, made, {"license": "unknown"})
    key = Key(report["data_sha256"], "random", SPACE, VIEWS, None)
    classes = len(listing.classes)
    answers = np.random.default_rng(0).normal(size=(count, VIEWS, classes)).astype(np.float16)
    labels.save(
        folder / "labels",
        key,
        teacher="random answers",
        engine="PyTorch",
        blocks=[Answers(answers, None, classes)],
        images=count,
    )
    (folder / "card.json").write_text(json.dumps({"identity": "random"}))


def _make_up(folder: Path, count: int) -> None:
    """JPEGs of blurred spots and grain, 35 kB each, in two class folders."""
    random = np.random.default_rng(0)
    width, height = MADE_UP
    for number in range(count):
        spots = Image.fromarray(random.integers(0, 256, (10, 8, 3), dtype=np.uint8))
        smooth = np.asarray(spots.resize(MADE_UP, Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.normal(0, GRAIN, (height, width, 1)).astype(np.int16)
        file = folder / f"class {number % 2}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, quality=85)


def _teacher(classes: int) -> nn.Module:
    return resnet50(weights=None, num_classes=classes).eval()


def _student(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return students.build("mobilenet_v1", {"classes": classes})


def _ours(_arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """This pipeline's labelling and loop, at all sizes of the recipe."""
    logging.disable(logging.INFO)
    fabric = compute.start(ComputeSettings())
    auto = compute.start(ComputeSettings(precision="auto"))
    recipe = yaml.safe_load(paths.PARAMETERS.read_text())["distill"]
    data = training_data.load(folder / "data", folder, folder / "labels", SPACE, STUDENT)
    rates = {
        "labelling": _labelling(fabric, _teacher(len(data.classes)), data.train_set, folder),
        "store_192_auto": _store(auto, data, STUDENT.size, recipe, folder),
    }
    for size in sorted({STUDENT.size, *(phase["size"] or STUDENT.size for phase in recipe["phases"])}):
        rates[f"store_{size}"] = _store(fabric, data, size, recipe, folder)
    return rates


def _store(fabric: Fabric, data: TrainingData, size: int, recipe: dict[str, Any], folder: Path) -> float:
    """The second of three epochs: not the loader's start, and no end that was rendered ahead."""
    training = {
        name: recipe[name] for name in ("learning_rate", "warmup", "weight_decay", "ema", "optimizer", "clip")
    }
    phase = {"share": 1.0, "size": size, "rate": 1.0}
    settings = StudentTraining.model_validate(
        {
            **training,
            "epochs": 3.0,
            "batch_size": BATCH,
            "phases": [phase],
            "objective": recipe["objective"],
        }
    )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _, history = learning.learn(
            fabric,
            _student(len(data.classes)),
            data,
            settings,
            name=f"{size} px",
            start="scratch",
            seed=0,
            workers=WORKERS,
            folder=Path(scratch),
        )
    return history[1]["images_per_second"]


def _labelling(fabric: Fabric, teacher: nn.Module, seen: ViewSet, folder: Path) -> float:
    view_set = ViewSet(seen.images, SPACE, TEACHER)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        began = time.perf_counter()
        network = in_runtime(teacher, TEACHER.size).module
        labelling.compute(
            fabric,
            [network],
            view_set,
            views=1,
            classes=len(seen.images.classes),
            top=None,
            partial=Path(scratch),
            workers=WORKERS,
        )
        return len(view_set) / (time.perf_counter() - began)


def _alone(loop: Loop, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """What a loop measures in a process of its own; the parent's setting of OpenMP is for ours."""
    spin = None if loop is _ours else os.environ.pop(OPENMP, None)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _fork_loaders) as pool:
        rates = pool.submit(loop, arguments, folder).result()
    if spin is not None:
        os.environ[OPENMP] = spin
    return rates


def _fork_loaders() -> None:
    """As Linux does; a spawned process would spawn its loader processes."""
    multiprocessing.set_start_method("fork", force=True)


def _photographs(arguments: argparse.Namespace, size: int) -> tuple[Subset[tuple[Tensor, int]], int]:
    """The first images of the folder at a size, and how many classes there are."""
    images = ImageFolder(
        str(arguments.folder),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=SPACE.crop_scale, ratio=SPACE.crop_ratio),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        ),
    )
    return Subset(images, range(arguments.images)), len(images.classes)


def _timed(step: Callable[[Any], None], loader: DataLoader[Any], rounds: int = 2) -> float:
    """Images a second of the last of some epochs."""
    rate = 0.0
    for _ in range(rounds):
        stream: Iterator[Any] = iter(loader)
        for batch in islice(stream, 1):
            step(batch)
        began, seen = time.perf_counter(), 0
        for batch in stream:
            step(batch)
            seen += len(batch[0])
        rate = seen / (time.perf_counter() - began)
    return rate


def _plain(arguments: argparse.Namespace, _folder: Path) -> dict[str, float]:
    """PyTorch's usual loop: fp32, AdamW, cross entropy, no teacher."""
    images, classes = _photographs(arguments, STUDENT.size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = _student(classes).train().to(device)
    optimizer = torch.optim.AdamW(student.parameters(), 0.001)

    def step(batch: Any) -> None:
        pixels, truth = (part.to(device) for part in batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(student(pixels), truth).backward()
        optimizer.step()

    loader = DataLoader(images, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    return {"plain": _timed(step, loader)}


def _torchdistill(arguments: argparse.Namespace, _folder: Path) -> dict[str, float]:
    """Its own loop, as its examples write it, towards KL at temperature 1."""
    from torchdistill.core.distillation import get_distillation_box  # pyright: ignore[reportMissingImports]

    logging.disable(logging.INFO)
    images, classes = _photographs(arguments, TEACHER.size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = _teacher(classes).to(device)
    student = Shrunk(_student(classes)).to(device)
    towards = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": 1.0,
        "alpha": 0.0,
        "reduction": "batchmean",
    }
    settings = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": BATCH, "num_workers": WORKERS, "drop_last": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 0.001}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": towards}, "weight": 1.0}}
            },
        },
    }
    box = get_distillation_box(teacher, student, {"train": images}, settings, device, None, False, 1.0)
    box.pre_epoch_process(epoch=0)

    def step(batch: Any) -> None:
        pixels, truth, more = batch
        box.post_forward_process(box.forward_process(pixels.to(device), truth.to(device), more))

    rate = _timed(step, cast(DataLoader[Any], box.train_data_loader))
    box.clean_modules()
    return {"torchdistill": rate}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
