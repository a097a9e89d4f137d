"""The published MobileNetV1 0.75 pruned by us, trained further or not, and int8 files of what is left.

    python -m benchmarks.published_network --weights FOLDER --bits int7 --epochs 0.1
    python -m benchmarks.published_pruning --macs 0.7 0.5 --epochs 1
    python -m benchmarks.pruning_peers --ours pruned-50-tuned pruned-50 pruned-50-int8 --json

Takes artifacts/ and `params.yaml` as `benchmarks.published_network` left them; `compute` says where it trains
and with how many processes. Channels are chosen as the stage `prune` does it, by images of train and val.
`pruned-50` is fitted to the parent by least squares and not trained. With `--epochs`, `pruned-50-tuned` goes
on from there, as in the stage, and learns the parent's answers to the images of train, which are stored once.
Where `--starts` has `plain`, `pruned-50-plain` learns them from the same channels without the fit, as the
networks of other tools do. Each has an int8 file without training. The images show few of the classes that
the network knows; what any of this does to the others is not measured. Interrupted, it goes on where it was.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_fabric import Fabric
from torch import nn

from benchmarks import published_network
from pipeline import cache, parameters, paths, provenance
from pipeline.data import store
from pipeline.data.batches import ViewSet
from pipeline.distillation import labelling, labels, learning
from pipeline.distillation.labels import Key
from pipeline.distillation.settings import Objective
from pipeline.distillation.training_data import TrainingData
from pipeline.measurement import layer_costs
from pipeline.models import storage
from pipeline.models.storage import Card, Model
from pipeline.parameters import Prune
from pipeline.pruning import plans, reconstruction, surgery
from pipeline.pruning.plans import PlanChoice
from pipeline.pruning.settings import PruningSettings
from pipeline.running.process import one_line_errors
from pipeline.training import compute, norms, scoring
from pipeline.training.settings import Phase

STARTS = {"fitted": "tuned", "plain": "plain"}
"""What training begins with, and the ending of the variant's name."""
WEIGHT_LIMIT = 63
"""Greatest magnitude of an integer weight of 7 bits, the pipeline's default."""
VIEWS = 1
"""Number of views per image with stored answers, enough for a short training."""
PHASES = (Phase(share=0.6, size=128), Phase(share=0.4, rate=0.5))
"""Image sizes of the training: a short one gains more by many steps than by large images."""


def main() -> None:
    """Write the models and files of all variants."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--macs", nargs="+", type=float, default=[0.7, 0.5], help="shares that remain")
    parser.add_argument("--epochs", type=float, default=0.0, help="of training (default: none)")
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=["fitted"], help="of the training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    p = parameters.load()
    fabric = compute.start(p.compute, trials=paths.precision_trials())
    workers = p.compute.workers
    parent = storage.load(paths.model("fp32"))
    train, val = published_network.images()
    data = learnt_from(fabric, parent, workers)
    for macs in arguments.macs:
        settings = Prune(
            macs=macs,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            phases=PHASES,
            weight_decay=0.02,
            ema=0.99,
            objective=Objective(kl=1.0),
        )
        name = f"pruned-{100 - round(100 * macs)}"
        for model in _prune(
            fabric,
            parent,
            data,
            name,
            settings,
            starts=arguments.starts,
            seed=arguments.seed,
            workers=workers,
        ):
            variant = model.card.variant
            if paths.onnx(f"{variant}-int8").exists() and _is_made(model):
                continue
            score = scoring.evaluate(fabric, model.module, data.val_set, model.card.input.size, workers)
            print(f"{variant}: val {score}", flush=True)
            model = Model(model.module.cpu(), model.card)
            published_network.write(model)
            quantizer = published_network.Quantizer(model, train, val, arguments.seed)
            rounded, quantization, card = quantizer.quantize(f"{variant}-int8", WEIGHT_LIMIT)
            published_network.write(Model(rounded.module, card, quantization))


def learnt_from(
    fabric: Fabric, parent: Model, workers: int, artifacts: Path = paths.ARTIFACTS
) -> TrainingData:
    """The images of train with the answers of a float network to ``VIEWS`` views of each.

    The answers are stored in artifacts/, and computed where they are not there.
    """
    data, folder = artifacts / paths.DATA.name, artifacts / paths.LABELS.name
    train, val = published_network.images(data)
    contract, space = parent.card.input, published_network.SPACE
    key = Key(parent.card.data_sha256, storage.fingerprint(parent.module), space, VIEWS, top=None)
    if not (folder / labels.CARD).exists():
        view_set = ViewSet(train, space, contract)
        blocks = labelling.compute(
            fabric,
            [copy.deepcopy(parent.module)],
            view_set,
            views=VIEWS,
            classes=len(train.classes),
            top=None,
            partial=artifacts / paths.CHECKPOINTS.name / f"labels-{key.sha256()[:16]}",
            workers=workers,
        )
        labels.save(
            folder, key, teacher=parent.card.variant, engine="PyTorch", blocks=blocks, images=len(train)
        )
    stored = labels.load(folder, data_sha256=key.data_sha256, teacher_sha256=key.teacher_sha256, space=space)
    return TrainingData(
        ViewSet(train, space, contract, stored.answers.at),
        ViewSet(val, None, contract),
        views=VIEWS,
        data_sha256=key.data_sha256,
        classes=train.classes,
        license=store.read_report(data)["license"],
        teacher=parent.card.variant,
        key=stored.key.sha256(),
    )


def _prune(
    fabric: Fabric,
    parent: Model,
    data: TrainingData,
    name: str,
    settings: Prune,
    *,
    starts: Sequence[str],
    seed: int,
    workers: int,
) -> Iterator[Model]:
    """The network fitted by least squares and, if there are epochs, one that was trained for each start."""
    module = fabric.to_device(parent.module)
    trial_data = plans.gather_trial_data(
        fabric, data, settings.objective, taylor="taylor" in settings.criteria(), seed=seed, workers=workers
    )
    question = provenance.identity(
        rules=plans.RULES,
        parent=storage.fingerprint(parent.module),
        settings=settings.model_dump(mode="json", include={*PruningSettings.model_fields, "objective"}),
        data=data.key,
        seed=seed,
    )
    choice = cache.recall(
        paths.checkpoints(name) / f"choice-{question[:16]}.json",
        plans.PLAN_CHOICE,
        lambda: _choose(parent, module, trial_data, settings),
    )
    print(f"{name}\n{plans.format_table(choice.plans)}\n{choice.reason}", flush=True)
    left, changed = surgery.remove_channels(
        module,
        parent.card.arguments,
        choice.best.channels,
        size=parent.card.input.size,
        criterion=choice.best.criterion,
        losses=trial_data.losses,
        architecture=parent.card.architecture,
    )
    card = replace(parent.card, variant=name, parent=parent.card.variant, op="prune", arguments=changed)
    fitted = copy.deepcopy(left)
    images = norms.plain_images(fabric, data.train_set, reconstruction.IMAGES, plans.BATCH, workers)
    reconstruction.fit(module, fitted, list(images))
    yield Model(fitted.eval(), _with(card, settings.model_copy(update={"epochs": 0.0}), choice))
    if not settings.epochs:
        return
    for start in starts:
        module = copy.deepcopy(left if start == "plain" else fitted)
        settle = norms.reestimate if start == "plain" else reconstruction.reparametrise
        settle(module, trial_data.settling)
        named = _with(replace(card, variant=f"{name}-{STARTS[start]}"), settings, choice)
        tuned, _ = learning.learn(
            fabric,
            module,
            data,
            settings,
            name=named.variant,
            start=provenance.identity(network=storage.fingerprint(module)),
            seed=seed,
            workers=workers,
            folder=paths.checkpoints(named.variant),
        )
        norms.settle(fabric, tuned, data.train_set, workers)
        yield Model(tuned.eval(), named)


def _is_made(model: Model) -> bool:
    """Whether the same network lies in artifacts/ already."""
    folder = paths.model(model.card.variant)
    if not folder.exists():
        return False
    return storage.fingerprint(storage.load(folder).module) == storage.fingerprint(model.module)


def _with(card: Card, settings: Prune, choice: PlanChoice) -> Card:
    return replace(card, settings={**settings.model_dump(mode="json"), **choice.to_dict()})


def _choose(parent: Model, module: nn.Module, trial_data: plans.TrialData, settings: Prune) -> PlanChoice:
    contract, costs = parent.card.input, layer_costs.open_costs(paths.kernels())
    return plans.choose(
        module,
        parent.card.arguments,
        trial_data,
        architecture=parent.card.architecture,
        size=contract.size,
        criteria=settings.criteria(),
        shapes=settings.shapes(),
        macs=settings.macs,
        speedup=None,
        multiple=settings.multiple,
        milliseconds=lambda network: costs.milliseconds(network, contract.size, None),
        speed=lambda before, after: costs.speedup(before, after, contract),
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
