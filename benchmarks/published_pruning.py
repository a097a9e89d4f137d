"""The published MobileNetV1 0.75 pruned by us, and int8 files of what is left.

    python -m benchmarks.published_network --weights FOLDER --bits int7 --epochs 0.1
    python -m benchmarks.published_pruning --macs 0.7 0.5
    python -m benchmarks.pruning_peers --ours pruned-50 --epochs 0 --json
    python -m benchmarks.int8_peers --parent pruned-50 --ours pruned-50-int8 --json

Takes artifacts/ as `benchmarks.published_network` left them. Channels are chosen as the stage `prune` does
it, by images of train and val, and what is left is fitted to the parent by least squares, without training.
With `--epochs` a trained variant, `pruned-50-tuned`, is made as well: from the same channels, by the parent's
answers to the images of train. These show few of the classes that the network knows; what either way does to
all others is not measured.
"""

import argparse
import copy
from dataclasses import replace

from lightning_fabric import Fabric

from benchmarks import published_network
from pipeline import paths, provenance
from pipeline.distillation import learning
from pipeline.distillation.settings import Objective
from pipeline.distillation.training_data import TrainingData
from pipeline.measurement import layer_costs
from pipeline.models import storage
from pipeline.models.storage import Model
from pipeline.parameters import Prune
from pipeline.process import one_line_errors
from pipeline.pruning import plans, reconstruction, surgery
from pipeline.training import compute, norms
from pipeline.training.settings import ComputeSettings

WORKERS = 0
WEIGHT_LIMIT = 63
"""Weights of 7 bits, the pipeline's default."""
BATCH = published_network.BATCH


def main() -> None:
    """Write the models and files of all variants."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--macs", nargs="+", type=float, default=[0.7, 0.5], help="shares that remain")
    parser.add_argument("--epochs", type=float, default=0.0, help="of fine-tuning (default: none)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fabric = compute.start(ComputeSettings(accelerator="cpu"))
    parent = storage.load(paths.model("fp32"))
    train, val = published_network.images()
    taught = published_network.taught_by(parent, train, val)
    for macs in arguments.macs:
        name = f"pruned-{100 - round(100 * macs)}"
        settings = Prune(
            macs=macs, epochs=arguments.epochs, batch_size=BATCH, learning_rate=0.001, objective=Objective()
        )
        for model in _prune(fabric, parent, taught, name, settings, arguments.seed):
            published_network.write(model)
            quantizer = published_network.Quantizer(model, train, val, arguments.seed)
            quantized, _ = quantizer.quantize(f"{model.card.variant}-int8", WEIGHT_LIMIT)
            published_network.write(quantized)


def _prune(
    fabric: Fabric, parent: Model, data: TrainingData, name: str, settings: Prune, seed: int
) -> list[Model]:
    """The network fitted by least squares and, if there are epochs, another one that was trained."""
    contract, architecture = parent.card.input, parent.card.architecture
    trial_data = plans.gather_trial_data(
        fabric, data, settings.objective, taylor=True, seed=seed, workers=WORKERS
    )
    costs = layer_costs.open_costs(paths.kernels())
    choice = plans.choose(
        parent.module,
        parent.card.arguments,
        trial_data,
        architecture=architecture,
        size=contract.size,
        criteria=settings.criteria(),
        shapes=settings.shapes(),
        macs=settings.macs,
        speedup=None,
        multiple=settings.multiple,
        milliseconds=lambda network: costs.milliseconds(network, contract.size, None),
        speed=lambda before, after: costs.speedup(before, after, contract),
    )
    print(f"{name}\n{plans.format_table(choice.plans)}\n{choice.reason}", flush=True)
    left, channels = surgery.remove_channels(
        parent.module,
        parent.card.arguments,
        choice.best.channels,
        size=contract.size,
        criterion=choice.best.criterion,
        losses=trial_data.losses,
        architecture=architecture,
    )
    card = replace(
        parent.card,
        variant=name,
        parent="fp32",
        op="prune",
        arguments=channels,
        settings={**settings.model_dump(mode="json"), **choice.to_dict(), "epochs": 0},
    )
    fitted = copy.deepcopy(left)
    images = norms.plain_images(fabric, data.train_set, reconstruction.IMAGES, plans.BATCH, WORKERS)
    reconstruction.fit(parent.module, fitted, list(images))
    models = [Model(fitted.eval(), card)]
    if settings.epochs:
        tuned_card = replace(
            card, variant=f"{name}-tuned", settings={**card.settings, "epochs": settings.epochs}
        )
        norms.reestimate(left, trial_data.settling)
        tuned, _ = learning.learn(
            fabric,
            left,
            data,
            settings,
            name=tuned_card.variant,
            start=provenance.identity(parent=storage.fingerprint(parent.module), arguments=channels),
            seed=seed,
            workers=WORKERS,
            folder=paths.checkpoints(tuned_card.variant),
        )
        norms.settle(fabric, tuned, data.train_set, WORKERS)
        models.append(Model(tuned.eval(), tuned_card))
    return models


if __name__ == "__main__":
    with one_line_errors():
        main()
