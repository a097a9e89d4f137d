"""The published MobileNetV1 0.75 on ImageNet's classes, quantised by us, for `benchmarks.int8_peers`.

    python -m pipeline params data=folder data.path=FOLDER && python -m pipeline.stages.prepare
    python -m benchmarks.published_network --weights FOLDER --epochs 0.2
    python -m benchmarks.int8_peers --ours int8-ptq int8-qat --json

FOLDER has class folders that are named by WordNet ids, in `train/` and `test/`: such as all images of
Imagenette and Imagewoof, with those that are from ImageNet's validation set (`ILSVRC2012_val_*`) as test.
The network answers with all 1,000 classes. It is quantised with the images of train, chosen by those of val,
and trained on its own answers; no image of test is seen. Models and files are written to artifacts/.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from pipeline import files, paths, provenance
from pipeline.data import batches, sampling, store
from pipeline.data.arrow import Rows
from pipeline.data.batches import Request, ViewSet
from pipeline.data.store import ImageSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import learning
from pipeline.distillation.labels import LiveTeacher
from pipeline.distillation.settings import Objective
from pipeline.distillation.training_data import TrainingData
from pipeline.models import initialisation, storage
from pipeline.models.layers import Network
from pipeline.models.storage import Card, Model, Quantization
from pipeline.onnx import export
from pipeline.onnx.judge import judge_files
from pipeline.parameters import Quantize
from pipeline.quantization import aware_training, post_training, stem
from pipeline.quantization.post_training import Judge
from pipeline.running import affinity
from pipeline.running.process import one_line_errors
from pipeline.training import compute
from pipeline.training.settings import ComputeSettings
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract

SIZE = 192
CALIBRATION, JUDGED, BATCH = 512, 1000, 32
CROP = 0.875
"""Share of an image's shorter side that is evaluated, as is usual on ImageNet."""
SPACE = ViewSpace(crop_scale=(0.5, 1.0), crop_ratio=(0.75, 1.33), flip=0.5, seed=0)
"""Views of the images of train that are learned."""
BITS: dict[str, Literal[4, 7, 8]] = {"int8": 8, "int7": 7, "int4": 4}


def main() -> None:
    """Write the models and files of all variants."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="a folder or hub id of Hugging Face")
    parser.add_argument("--bits", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--epochs", type=float, default=0.2, help="of training with rounded weights")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="in steps of the weights")
    parser.add_argument("--learn-steps", action="store_true", help="train the steps, too")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fabric = compute.start(ComputeSettings(accelerator="cpu"))
    original = _published(arguments.weights)
    train, val = images()
    write(original)
    quantizer = Quantizer(original, train, val, arguments.seed)
    for name in arguments.bits:
        settings = Quantize(
            method="qat",
            weight_bits=BITS[name],
            learn_steps=arguments.learn_steps,
            epochs=arguments.epochs,
            batch_size=BATCH,
            learning_rate=arguments.learning_rate,
            warmup=0.1,
            weight_decay=0.0,
            objective=Objective(kl=1.0),
        )
        rounded, quantization, card = quantizer.quantize(f"{name}-ptq", settings.weight_limit)
        write(Model(rounded.module, card, quantization))
        prepared = aware_training.prepare(rounded, quantization, learn_steps=settings.learn_steps)
        trained, _ = learning.learn(
            fabric,
            prepared.module,
            _taught_by_itself(quantizer.parent, train, val),
            settings,
            name=f"{name}-qat",
            start=provenance.identity(network=storage.fingerprint(rounded.module)),
            seed=arguments.seed,
            workers=1,
            folder=paths.checkpoints(f"{name}-qat"),
        )
        prepared.module.load_state_dict(trained.state_dict())
        after, learned = aware_training.finish(prepared)
        before, now = quantizer.judge(rounded, quantization), quantizer.judge(after, learned)
        print(
            f"{name}-qat on val: cross entropy {before.losses.mean():.4f} before, {now.losses.mean():.4f} "
            f"after; KL to the parent {before.divergences.mean():.4f}, {now.divergences.mean():.4f}; "
            f"top-1 {before.score:.2%}, {now.score:.2%}; kept: {post_training.is_better(now, before)}",
            flush=True,
        )
        write(Model(after.module, replace(card, variant=f"{name}-qat"), learned))


class Quantizer:
    """Post-training quantisation of one float network, calibrated on images of train, with the steps chosen
    on images of val."""

    def __init__(self, original: Model, train: ImageSet, val: ImageSet, seed: int) -> None:
        self.parent = stem.read_bytes(original)
        contract = self.parent.card.input
        self._views = ViewSet(train, None, contract)
        self._chosen = sampling.choose(train, CALIBRATION, seed)
        indices = sampling.choose(val, JUDGED, seed)
        pixels = ViewSet(val, None, contract)[Request(indices, None, contract.size)].images
        self.judge: Judge = judge_files(
            original,
            pixels.split(BATCH),
            val.labels[indices],
            val.task,
            contract=contract,
            threads=affinity.physical_cores(),
        )

    def quantize(self, variant: str, weight_limit: int) -> tuple[Network, Quantization, Card]:
        """Round the network without training, and print the trials.

        Args:
            variant: name of the result.
            weight_limit: greatest magnitude of an integer weight.

        Returns:
            The network with its weights on the grid, its quantisation and its card.
        """
        bench = post_training.Workbench(self.parent, self._images, weight_limit=weight_limit, float_layers=())
        trials = post_training.choose(bench, self.judge)
        print(f"{variant}\n{post_training.table(trials)}", flush=True)
        card = replace(
            self.parent.card,
            variant=variant,
            parent=self.parent.card.variant,
            op="quantize",
            arguments={**self.parent.card.arguments, "norm": False},
            calibration_sha256=sampling.fingerprint(self._views.images, self._chosen),
        )
        return *bench.make(post_training.applied(trials)), card

    def _images(self) -> Iterator[Float[Tensor, "batch 3 height width"]]:
        contract = self._views.contract
        for request in batches.sequential(self._chosen, None, contract.size, BATCH):
            yield contract.normalise(self._views[request].images)


def images(data: Path = paths.DATA) -> tuple[ImageSet, ImageSet]:
    """The images of train and of val, with their labels among all classes of the network."""
    classes = ImageNetInfo("imagenet-1k").label_names()
    train, val = (_named(store.read(data, split), classes) for split in ("train", "val"))
    return train, val


def _published(weights: str) -> Model:
    start = initialisation.hugging_face(weights)
    labels = tuple(ImageNetInfo("imagenet-1k").label_names())
    arguments = {
        "channels": scaled_channels(0.75),
        **start.arguments,
        "classes": len(labels),
        "size": SIZE,
        "norm_momentum": 0.1,
        "dropout": 0.0,
    }
    module = initialisation.network("mobilenet_v1", arguments, labels, replace(start, labels=labels))
    card = Card(
        variant="fp32",
        parent="teacher",
        op="distill",
        architecture="mobilenet_v1",
        arguments=arguments,
        input=InputContract(SIZE, start.mean, start.std, crop=CROP),
        labels=labels,
        teacher="none",
        data_sha256=store.read_report(paths.DATA)["data_sha256"],
        license="unknown",
        settings={},
        start=start.origin,
    )
    return Model(module.eval(), card)


def _named(images: ImageSet, classes: list[str]) -> ImageSet:
    labels = np.array([classes.index(name) for name in images.classes])[images.labels]
    table = images.rows.table.drop_columns("label").append_column("label", pa.array(labels))
    return replace(images, rows=Rows(table), classes=tuple(classes))


def _taught_by_itself(parent: Model, train: ImageSet, val: ImageSet) -> TrainingData:
    """Ever new views of the images of train, with the float network's answers to them."""
    contract, module = parent.card.input, parent.module

    @torch.no_grad()
    def ask(images: Sequence[UInt8[Tensor, "batch _ _ 3"]]) -> Float[Tensor, "batch classes"]:
        return module(contract.normalise(images[0]))

    return TrainingData(
        ViewSet(train, SPACE, contract, teachers=(contract,)),
        ViewSet(val, None, contract),
        views=None,
        data_sha256=parent.card.data_sha256,
        classes=train.classes,
        license="unknown",
        teacher="the network itself",
        key=provenance.identity(parent=storage.fingerprint(module)),
        live=LiveTeacher((contract,), ask),
    )


def write(model: Model) -> None:
    """Write a model and its ONNX file to artifacts/."""
    storage.save(paths.model(model.card.variant), model)
    path = paths.onnx(model.card.variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as fresh:
        export.export(
            model, fresh, export.metadata_for(model.card, model.quantization, provenance.git_commit())
        )
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
