"""Quantise the parent: to eight-bit integers after training (ptq) or with it (qat), or to float16 (fp16).

Several processes share the training; the first one does everything before and after it.
"""

import functools
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from pipeline import cache, earlier, files, parameters, paths, provenance
from pipeline.data import batches, sampling, store, views
from pipeline.data.batches import Request, ViewSet
from pipeline.data.centred_views import CentredViews
from pipeline.distillation import learning, training_data
from pipeline.measurement import kernels, layer_costs
from pipeline.models import folding, layers, storage
from pipeline.models.layers import Network
from pipeline.models.storage import Model, Quantization
from pipeline.onnx import graph, judge
from pipeline.parameters import Parameters, Quantize
from pipeline.quantization import aware_training, half_precision, post_training, stem
from pipeline.quantization.half_precision import HalfPrecisionError
from pipeline.quantization.post_training import Judgement, Workbench
from pipeline.quantization.settings import Step
from pipeline.running import affinity, siblings
from pipeline.running.process import run_alongside, stage
from pipeline.training import compute, ranks, results, scoring
from pipeline.training.checkpoints import History
from pipeline.training.scoring import Score
from pipeline.training.settings import ComputeSettings
from teachers.contract import InputContract

BATCH = 32
"""Number of images per batch."""
JUDGED_IMAGES = 1000
"""Number of validation images on which the steps of post-training quantisation are selected."""


def main(variant: str) -> None:
    """Write `artifacts/models/<variant>/`."""
    p = parameters.load()
    settings = p.settings(variant, Quantize)
    trains = settings.method == "qat"
    if not trains and not siblings.is_first():
        return
    # In 32 bits: in fewer bits, an integer times its step is no longer on the grid of the shipped file.
    fabric = compute.start(p.compute.model_copy(update={"precision": "32-true"}), ranks=trains)
    parent = storage.load(paths.model(p.variants[variant].parent))
    results.check_parent(parent.card)
    if settings.method == "fp16":
        _to_half(variant, parent, settings.calibration, p)
    else:
        _to_integers(variant, parent, settings, p, fabric)


def _to_integers(variant: str, original: Model, settings: Quantize, p: Parameters, fabric: Fabric) -> None:
    """Write the variant in eight-bit integers, scored on val as the runtime computes them."""
    choose_layers = functools.partial(_choose_layers, variant, settings, original)
    settings, parent, applied = ranks.on_first(fabric, choose_layers)
    contract = parent.card.input
    space = views.space(p.views, p.seed)
    data = training_data.load(paths.DATA, paths.TEACHER, paths.LABELS, space, contract)

    calibration = sampling.choose(data.train_set.images, settings.calibration, p.seed)
    judge_answers = functools.cache(lambda: _judge(original, contract, data.val_set, p))

    def after_training() -> tuple[Network, Quantization]:
        chosen = ViewSet(data.train_set.images.select(calibration), None, contract)
        shown = CentredViews(torch.device("cpu"), chosen, p.compute.workers)

        def calibration_images() -> Iterator[Float[Tensor, "_ 3 height width"]]:
            return (contract.normalise(batch.images) for batch in shown.at(contract.size))

        bench = post_training.Workbench(
            parent, calibration_images, weight_limit=settings.weight_limit, float_layers=settings.float_layers
        )
        given = {
            "network": storage.fingerprint(parent.module),
            "contract": contract.to_dict(),
            "weight_limit": settings.weight_limit,
            "float_layers": settings.float_layers,
            "calibration": sampling.fingerprint(data.train_set.images, calibration),
        }
        make = functools.partial(_make, paths.quantized(original.card.variant), parent, bench, given)
        if settings.ptq != "auto":
            return make(settings.ptq)
        question = provenance.identity(
            rules=post_training.RULES,
            **given,
            judged=[store.read_report(paths.DATA)["data_sha256"], p.seed, JUDGED_IMAGES],
            machine=layer_costs.runtime(),
        )
        # Variants with the same parent search once, and training changes nothing of the search.
        trials = cache.recall(
            paths.choice("ptq", question),
            post_training.TRIALS,
            lambda: post_training.choose(bench, judge_answers()),
        )
        print(post_training.table(trials))
        applied["ptq"] = post_training.applied(trials)
        applied["candidates"] = [trial.to_dict() for trial in trials]
        return make(applied["ptq"])

    network, quantization = ranks.on_first(fabric, after_training)
    history = []
    if settings.method == "qat":
        prepared = aware_training.prepare(network, quantization, learn_steps=settings.learn_steps)
        trained, history = learning.learn(
            fabric,
            prepared.module,
            training_data.with_target(fabric, data, parent, settings.target),
            settings,
            name=variant,
            start=provenance.identity(
                network=storage.fingerprint(network.module), settings=settings.model_dump()
            ),
            seed=p.seed,
            workers=p.compute.workers,
            folder=paths.checkpoints(variant),
        )
        if not fabric.is_global_zero:
            return
        prepared.module.load_state_dict(trained.state_dict())  # the averaged weights, with `ema`
        after = aware_training.finish(prepared)
        before, now = judge_answers()(network, quantization), judge_answers()(*after)
        applied["training_kept"] = post_training.is_better(now, before)
        if applied["training_kept"]:
            network, quantization = after
        print(f"{variant}: {_effect(before, now, kept=applied['training_kept'])}")
    model = _without_norms(Model(network.module, parent.card, quantization))
    requests = batches.sequential(range(len(data.val_set)), None, contract.size, BATCH)
    loader = batches.load(torch.device("cpu"), data.val_set, requests, p.compute.workers)
    val = scoring.score(
        judge.answer(model, (batch.images for batch in loader), affinity.threads(p.compute.threads)),
        data.val_set.images,
    )
    _save(
        variant,
        model,
        val,
        settings=applied,
        calibration_sha256=sampling.fingerprint(data.train_set.images, calibration),
        history=history,
    )
    print(f"{variant}: val {val} in ONNX Runtime")


def _make(
    folder: Path, parent: Model, bench: Workbench, given: Mapping[str, Any], steps: Collection[Step]
) -> tuple[Network, Quantization]:
    """The network that some steps make, or the same one that another variant has left in a folder.

    Args:
        folder: where it is left.
        parent: the float network.
        bench: makes it.
        given: what it depends on beside the steps and the code.
        steps: the steps.
    """
    code = earlier.digest(*paths.circumstances("quantize"))
    question = provenance.identity(**given, steps=sorted(steps), code=code)
    made = folder / "made.json"

    def origin() -> dict[str, str]:
        """What was asked, and the two files with the answer."""
        return {"question": question, "files": earlier.digest(folder / paths.WEIGHTS, folder / paths.CARD)}

    with files.locked(folder.with_suffix(".lock")):
        if earlier.read(made) == origin():
            model = storage.load(folder)
            assert model.quantization is not None
            return layers.trace(model.module.requires_grad_(False)), model.quantization
        network, quantization = bench.make(steps)
        storage.save(folder, _without_norms(Model(network.module, parent.card, quantization)))
        files.write(made, json.dumps(origin()) + "\n")
    return network, quantization


def _without_norms(model: Model) -> Model:
    """A model of a folded network, with a card that says so."""
    return replace(model, card=replace(model.card, arguments={**model.card.arguments, "norm": False}))


class Start(NamedTuple):
    """Where quantisation begins: which layers become integers, and what the first one reads."""

    settings: Quantize
    parent: Model
    applied: dict[str, Any]
    """The settings for the card."""


def _choose_layers(variant: str, settings: Quantize, parent: Model) -> Start:
    contract = parent.card.input
    network = layers.trace(parent.module)
    reason = "given by the parameters"
    if settings.float_layers == "auto":
        question = provenance.identity(
            rules=layer_costs.RULES,
            layers=list(network.parts),
            parts=[str(part) for part in kernels.parts_of(network, contract.size, None)],
            contract=contract.to_dict(),
            machine=layer_costs.runtime(),
        )
        choice = cache.recall(
            paths.choice("float-layers", question),
            layer_costs.FLOAT_LAYERS,
            lambda: layer_costs.fastest_float_layers(
                layer_costs.open_costs(paths.kernels()), folding.fold_batch_norm(parent), contract
            ),
        )
        settings, reason = settings.model_copy(update={"float_layers": choice.layers}), choice.reason
        print(layer_costs.table(choice))
    elif network.stem.name not in settings.float_layers and (
        cause := stem.reason_for_float(network, contract)
    ):
        settings = settings.model_copy(update={"float_layers": (network.stem.name, *settings.float_layers)})
        reason = f"given by the parameters, and the first layer: {cause}"
        print(f"warning: {variant}: {network.stem.name} stays in float; {cause}", file=sys.stderr)
    applied = {**settings.model_dump(mode="json"), "float_layers_reason": reason}
    if network.stem.name not in settings.float_layers and contract.zero_point is None:
        applied["border"] = stem.border(network, contract)
        parent = stem.read_bytes(parent)
        contract = parent.card.input
        print(
            f"{network.stem.name} in int8 reads pixels less {contract.zero_point}; its padding differs from "
            f"that of {parent.card.variant} by at most {applied['border']:.2g} standard deviations"
        )
    graph.check_float_layers(network, contract, settings.float_layers)
    return Start(settings, parent, applied)


def _to_half(variant: str, parent: Model, images: int, p: Parameters) -> None:
    """Write the variant in float16, scored on val with the roundings of a device that has float16.

    Raises:
        HalfPrecisionError: a weight, or an output on the calibration images, is beyond the range of float16.
    """
    contract = parent.card.input
    train_set, val_set = (
        ViewSet(store.read(paths.DATA, split), None, contract) for split in ("train", "val")
    )
    calibration = sampling.choose(train_set.images, images, p.seed)
    requests = batches.sequential(calibration, None, contract.size, BATCH)
    normalised = (contract.normalise(train_set[request].images) for request in requests)
    try:
        network = half_precision.round_weights(folding.fold_batch_norm(parent))
        layer, greatest = half_precision.greatest_output(network, normalised)
    except HalfPrecisionError as error:
        raise HalfPrecisionError(f"{variant}: {error}") from error
    # On the CPU, where the sums of the roundings are exact.
    host = compute.start(ComputeSettings(accelerator="cpu", threads=p.compute.threads))
    rounded = half_precision.round_outputs(network)
    val = scoring.evaluate(host, rounded, val_set, contract.size, p.compute.workers)
    _save(
        variant,
        _without_norms(Model(network.module, parent.card, half=True)),
        val,
        settings={
            "method": "fp16",
            "calibration": images,
            "greatest_output": {"layer": layer, "magnitude": greatest},
        },
        calibration_sha256=None,
        history=[],
    )
    print(
        f"{variant}: val {val} in float16; the greatest output is {greatest:.3g} ({layer}), of "
        f"{half_precision.GREATEST:g}"
    )


def _save(
    variant: str,
    model: Model,
    val: Score,
    *,
    settings: dict[str, Any],
    calibration_sha256: str | None,
    history: History,
) -> None:
    """Write the variant.

    Args:
        variant: name of the variant.
        model: the quantised network, with the card of its parent.
        val: its score on val.
        settings: what was done, for the card.
        calibration_sha256: hash of the calibration images; None if no step was derived from them.
        history: one line per epoch; empty without training.
    """
    card = replace(
        model.card,
        variant=variant,
        parent=model.card.variant,
        op="quantize",
        settings=settings,
        val=results.describe(val),
        calibration_sha256=calibration_sha256,
    )
    results.save(
        replace(model, card=card),
        history,
        folder=paths.model(variant),
        timings=paths.timings,
        run=paths.checkpoints(variant),
    )


def _judge(parent: Model, contract: InputContract, val_set: ViewSet, p: Parameters) -> post_training.Judge:
    """A judge on a seeded part of the validation images, in the arithmetic of the shipped file."""
    size = parent.card.input.size
    indices = sampling.choose(val_set.images, JUDGED_IMAGES, p.seed)
    return judge.judge_files(
        parent,
        val_set[Request(indices, None, size)].images.split(BATCH),
        val_set.images.labels[indices],
        val_set.images.task,
        contract=contract,
        threads=affinity.threads(p.compute.threads),
    )


def _effect(before: Judgement, now: Judgement, *, kept: bool) -> str:
    """What training has changed on val, in one line."""
    losses = f"cross entropy {before.losses.mean():.4f} before and {now.losses.mean():.4f} after training"
    scores = f"score {before.score:.2%} and {now.score:.2%}"
    verdict = "kept" if kept else "brought nothing, so that the weights from before training are kept"
    return f"training {verdict} ({losses}, {scores}, on {len(before.losses)} images of val)"


if __name__ == "__main__":
    with (
        stage(),
        run_alongside("pipeline.stages.follow", sys.argv[1]),
    ):
        main(sys.argv[1])
