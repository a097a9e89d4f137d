"""One network pruned to the same multiply-accumulates by us and by others, fine-tuned alike, side by side.

    python -m benchmarks.pruning_peers --json

Takes a finished run's artifacts and its `params.yaml`, or those of `benchmarks.published_pruning`. Ours is
the variant as it was made; peers cut the same parent to its multiply-accumulates, and are fine-tuned by the
same loop towards the same stored answers, with the settings in that variant's card; where that says 0 epochs,
nobody is fine-tuned. Further variants of ours, such as int8 files of the first, are rows beside it. All are
written by our exporter, scored on test and timed in ONNX Runtime. `benchmarks/requirements.txt` says what to
install; a tool that is missing or fails is a row with the reason. With `--into FOLDER` it continues where it
was interrupted. To try: `--epochs 0.02 --images 200 --sessions 3`, which is unfair to the peers.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

import students
from benchmarks import pruning_makers, published_pruning, side_by_side
from benchmarks.pruning_makers import MAKERS, Cut
from benchmarks.side_by_side import Row
from pipeline import parameters, paths, provenance
from pipeline.data import store, views
from pipeline.data.batches import ViewSet
from pipeline.distillation import learning, training_data
from pipeline.distillation.settings import StudentTraining
from pipeline.distillation.training_data import TrainingData
from pipeline.models import costs, storage
from pipeline.models.storage import Model
from pipeline.onnx import export
from pipeline.parameters import ParameterError
from pipeline.pruning import masks, plans, reconstruction, surgery
from pipeline.running import affinity
from pipeline.running.process import one_line_errors
from pipeline.training import compute, norms

SAME_MACS = 0.02
"""Multiply-accumulates within this share count as the same."""
HALVINGS = 10
"""Number of halvings of the interval of ratios in the search for the multiply-accumulates."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all."""

    parent: Model
    fabric: Fabric
    data: TrainingData
    training: StudentTraining | None
    """None if nothing is trained."""
    seed: int
    workers: int
    folder: Path


def main() -> None:
    """Prune, fine-tune, score and time; print a table, or one JSON object."""
    arguments = _arguments()
    artifacts: Path = arguments.artifacts
    p = parameters.load(arguments.parameters)
    models = artifacts / paths.MODELS.name
    parent, first = (storage.load(models / name) for name in (arguments.parent, arguments.ours[0]))
    own = {name: storage.load(models / name) for name in arguments.ours}
    _check_descent(own, arguments.parent, models)
    fabric, workers = compute.start(p.compute, trials=paths.precision_trials()), p.compute.workers
    contract = parent.card.input
    data = artifacts / paths.DATA.name
    if (artifacts / paths.TEACHER.name).is_dir():
        training_set = training_data.load(
            data,
            artifacts / paths.TEACHER.name,
            artifacts / paths.LABELS.name,
            views.space(p.views, p.seed),
            contract,
        )
    else:
        training_set = published_pruning.learnt_from(fabric, parent, workers, artifacts)
    training_set = replace(training_set, val_set=_part(training_set.val_set, arguments.images))
    target = costs.count_macs(first.module, contract.size)
    training = recipe(first.card.settings, arguments.epochs)
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = arguments.into or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        setting = Setting(parent, fabric, training_set, training, p.seed, workers, folder)
        rows: dict[str, Row] = {
            arguments.parent: {"how": "the parent", **_weight(parent.module, contract.size)}
        }
        for name, model in own.items():
            rows[name] = {"how": _describe(model), **_weight(model.module, contract.size)}
        after = {name: artifacts / paths.ONNX.name / f"{name}.onnx" for name in rows}
        before: dict[str, Path] = {}
        if (start := _start_of(first, setting)) is not None:
            before[arguments.ours[0]] = _write(f"{arguments.ours[0]}-before", start, setting)
        for name in arguments.peers:
            rows[name] = {"how": side_by_side.description(MAKERS[name])}
            try:
                network, rows[name]["ratio_removed"] = at_macs(MAKERS[name], parent, target)
            except Exception as error:  # whatever a peer dies of is a row
                rows[name]["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                print(f"{name}: {rows[name]['reason']}", file=sys.stderr)
                continue
            rows[name] |= _weight(network, contract.size)
            before[name], after[name] = _tune(name, network, setting)
        test = _part(ViewSet(store.read(data, "test"), None, contract), arguments.images)
        about = _measure(rows, before, after, test, arguments)
    result = {
        "parent": arguments.parent,
        "training": training and training.model_dump(mode="json"),
        "same_training": (training.epochs if training else 0) == first.card.settings["epochs"],
        **about,
        "rows": rows,
    }
    print(json.dumps(result, indent=2) if arguments.json else _page(result, arguments.ours[0]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifacts", type=Path, default=paths.ARTIFACTS, help="default: %(default)s")
    parser.add_argument("--parameters", type=Path, default=paths.PARAMETERS, help="default: %(default)s")
    parser.add_argument("--parent", default="fp32", help="the variant to prune (default: %(default)s)")
    parser.add_argument(
        "--ours",
        nargs="+",
        default=["pruned-50"],
        help="its pruned variant, and what else of ours is shown beside it (default: pruned-50)",
    )
    parser.add_argument("--peers", nargs="*", choices=MAKERS, default=list(MAKERS), help="default: all")
    parser.add_argument("--epochs", type=float, help="of the peers' fine-tuning (default: as ours had)")
    parser.add_argument("--images", type=int, help="of val and of test (default: all)")
    parser.add_argument("--sessions", type=int, default=8, help="of timing (default: %(default)s)")
    parser.add_argument("--into", type=Path, help="folder that keeps files and trainings")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def recipe(settings: Mapping[str, Any], epochs: float | None) -> StudentTraining | None:
    """What ``learning.learn`` takes, from a pruned variant's settings; None for 0 epochs."""
    training = {name: settings[name] for name in StudentTraining.model_fields}
    training |= {} if epochs is None else {"epochs": epochs}
    return StudentTraining.model_validate(training) if training["epochs"] else None


def at_macs(cut: Cut, parent: Model, target: int) -> tuple[nn.Module, float]:
    """The parent cut as near to ``target`` multiply-accumulates as the tool comes, and the ratio for it."""
    low, high = 0.0, 1.0
    best: tuple[float, nn.Module, float] | None = None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        network = _rebuilt(cut(copy.deepcopy(parent.module).cpu().eval(), ratio), parent)
        macs = costs.count_macs(network, parent.card.input.size)
        miss = abs(macs / target - 1)
        if best is None or miss < best[0]:
            best = miss, network, ratio
        low, high = (ratio, high) if macs > target else (low, ratio)
    assert best is not None
    return best[1:]


def _channels(module: nn.Module) -> list[int]:
    """Channels of every convolution whose number is free; depthwise ones follow theirs."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return [part.out_channels for part in convolutions if part.groups == 1]


def _rebuilt(network: nn.Module, parent: Model) -> nn.Module:
    """What a tool has left, as a student of ours with the same tensors."""
    card = parent.card
    module = students.build(card.architecture, {**card.arguments, "channels": _channels(network)})
    module.load_state_dict(network.state_dict())
    surgery.check_same_logits(network.eval(), module.eval(), card.input.size)
    return module


def _start_of(ours: Model, setting: Setting) -> nn.Module | None:
    """Ours before fine-tuning, where the card determines it: one step, by an importance of weights alone."""
    settings = ours.card.settings
    if settings["criterion"] not in ("l1", "l2", "fpgm") or settings.get("steps", 1) > 1:
        return None
    convolutions = {
        path: part.out_channels for path, part in ours.module.named_modules() if isinstance(part, nn.Conv2d)
    }
    module = setting.parent.module
    channel_masks = masks.channel_masks(
        module, convolutions, settings["criterion"], pruning_makers.GRAPH_SIZE
    )
    start = students.build(ours.card.architecture, ours.card.arguments)
    start.load_state_dict(masks.remove_masked(module, channel_masks, pruning_makers.GRAPH_SIZE))
    images = norms.plain_images(
        setting.fabric, setting.data.train_set, reconstruction.IMAGES, plans.BATCH, setting.workers
    )
    reconstruction.fit(module.eval(), start.eval(), list(images))
    return start


def _tune(name: str, network: nn.Module, setting: Setting) -> tuple[Path, Path]:
    """The files before fine-tuning, with batch norm's statistics taken anew, and after it.

    If nothing is trained, both are the same.
    """
    fabric, train, workers = setting.fabric, setting.data.train_set, setting.workers
    norms.settle(fabric, network, train, workers)
    before = _write(f"{name}-before", network, setting)
    if setting.training is None:
        return before, before
    network, _ = learning.learn(
        fabric,
        network,
        setting.data,
        setting.training,
        name=name,
        start=provenance.identity(network=storage.fingerprint(network)),
        seed=setting.seed,
        workers=workers,
        folder=setting.folder / paths.CHECKPOINTS.name / name,
    )
    norms.settle(fabric, network, train, workers)
    return before, _write(name, network, setting)


def _write(name: str, network: nn.Module, setting: Setting) -> Path:
    card = setting.parent.card
    arguments = {**card.arguments, "channels": _channels(network)}
    card = replace(card, variant=name, parent=card.variant, op="prune", arguments=arguments)
    path = setting.folder / f"{name}.onnx"
    export.export(Model(copy.deepcopy(network).cpu(), card), path, export.metadata_for(card, None))
    return path


def _weight(module: nn.Module, size: int) -> Row:
    return {
        "macs": costs.count_macs(module, size),
        "parameters": costs.count_parameters(module),
        "channels": _channels(module),
    }


def _describe(ours: Model) -> str:
    settings = ours.card.settings
    words = [str(settings[key]) for key in ("criterion", "shape") if key in settings]
    if quantization := ours.quantization:
        words.append(f"int8 with weights of {quantization.weight_limit.bit_length() + 1} bits")
    elif not settings.get("epochs", 1):
        words.append("fitted by least squares, not trained")
    return f"ours: {', '.join(words)}"


def _check_descent(own: Mapping[str, Model], parent: str, models: Path) -> None:
    """Check that the first variant is made of the parent, and the others, in one step or more.

    Raises:
        ParameterError: one is not.
    """
    for number, (name, model) in enumerate(own.items()):
        ancestor = model.card.parent
        while number and ancestor != parent and (models / ancestor).is_dir():
            ancestor = storage.load(models / ancestor).card.parent
        if ancestor != parent:
            raise ParameterError(f"--ours {name} is made of {ancestor}, not of {parent}")


def _part(seen: ViewSet, count: int | None) -> ViewSet:
    return replace(seen, images=side_by_side.spread(seen.images, count))


def _measure(
    rows: dict[str, Row],
    before: Mapping[str, Path],
    after: Mapping[str, Path],
    test: ViewSet,
    arguments: argparse.Namespace,
) -> Row:
    """Fill the rows; returns what is said of all of them."""
    all_of_them = {**{f"{name} before": path for name, path in before.items()}, **after}
    answers = side_by_side.answer(all_of_them, test, affinity.physical_cores())
    times, about = side_by_side.timings(after, arguments.parent, sessions=arguments.sessions, seed=0)
    reference = answers[arguments.parent]
    target = rows[arguments.ours[0]]["macs"]
    for name, path in after.items():
        rows[name] |= side_by_side.accuracy(answers[name], reference)
        rows[name] |= {"size_bytes": path.stat().st_size, **times[name]}
        if name in arguments.peers:
            rows[name]["same_macs"] = abs(rows[name]["macs"] / target - 1) <= SAME_MACS
    for name in before:
        rows[name]["before"] = side_by_side.accuracy(answers[f"{name} before"], reference)
    peers = [name for name in arguments.peers if name in after]
    if peers:
        columns = ("top1", "ratio")  # all have the same work; their bytes are no aim
        about["verdicts"] = side_by_side.verdicts(rows, answers, arguments.ours[:1], peers, columns)
    return about


def _page(result: Mapping[str, Any], ours: str) -> str:
    """What is printed without ``--json``."""
    rows = result["rows"]
    header = [
        "network",
        "how",
        "MACs, M",
        "test top-1, %, before fine-tuning (95 %)",
        "after (95 %)",
        f"points against {result['parent']} (95 %, paired)",
        "among the images' classes, %",
        "points (95 %, paired)",
        "MB",
        f"times {result['parent']}'s speed (95 %)",
    ]
    lines = []
    for name, row in rows.items():
        if "reason" in row:
            lines.append([name, row["how"], f"none: {row['reason']}", *["-"] * (len(header) - 3)])
            continue
        mark = "" if row.get("same_macs", True) else " (not the same)"
        lines.append(
            [
                name,
                row["how"],
                f"{row['macs'] / 1e6:.1f}{mark}",
                side_by_side.percent(row.get("before", {}), "top1"),
                side_by_side.percent(row, "top1"),
                side_by_side.percent(row, "delta", signed=True),
                side_by_side.percent(row, "shown_top1"),
                side_by_side.percent(row, "shown_delta", signed=True),
                f"{row['size_bytes'] / 1e6:.2f}",
                side_by_side.ratio(row),
            ]
        )
    training = result["training"]
    tuned = f"fine-tuned for {training['epochs']:g} epochs" if training else "not fine-tuned"
    tuned += "" if result["same_training"] else f", {ours} otherwise"
    return "\n".join(
        [
            side_by_side.table(header, lines),
            f"n = {rows[ours]['n']} test images; {tuned}; machine: {side_by_side.noise(result)}",
            side_by_side.sentences(result.get("verdicts", {})),
        ]
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
