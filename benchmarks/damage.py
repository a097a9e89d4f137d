"""Whether the gate sees damage: a variant with 5 % of its weights zeroed, and the same file against itself.

    python -m benchmarks.damage [VARIANT] [SHARE]

Reads artifacts of a finished run and writes a damaged copy to a temporary folder only.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline import parameters, paths
from pipeline.data import batches, store
from pipeline.data.batches import ViewSet
from pipeline.evaluation import comparison, scoring
from pipeline.evaluation.comparison import ClassifierOutput
from pipeline.models import storage
from pipeline.onnx import export


def main(variant: str = "fp32", share: float = 0.05) -> None:
    """Print the verdict on the damaged file and on the file itself."""
    p = parameters.load()
    model = storage.load(paths.model(variant))
    test = store.read(paths.DATA, "test")
    views = ViewSet(test, None, model.card.input)
    requests = batches.sequential(range(len(test)), None, model.card.input.size, 32)

    def answers(file: Path) -> ClassifierOutput:
        scores, kept = scoring.score(
            file, (views[request].images.numpy() for request in requests), test.labels, threads=0
        )
        return ClassifierOutput(np.asarray(scores["predictions"]), kept)

    own = answers(paths.onnx(variant))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "damaged.onnx"
        damage(model.module, share, p.seed)
        export.export(model, file, export.metadata_for(model.card, model.quantization))
        damaged = answers(file)
    for name, given in (("itself", answers(paths.onnx(variant))), (f"{share:.0%} zeroed", damaged)):
        found = comparison.compare_with_parent(
            given, own, test.labels, test.classes, parent_name=variant, limits=p.gate.quantize
        )
        known = "distinguishable" if found["distinguishable"] else "not distinguishable"
        print(f"{variant}, {name}: {known}, {found['reason']}")
        print(f"  flips {found['flips']}; worse: {', '.join(found['classes_worse']) or 'no class'}")


@torch.no_grad()
def damage(module: nn.Module, share: float, seed: int) -> None:
    """Zero a random share of the weights of every convolution and linear layer."""
    random = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.weight[torch.rand(part.weight.shape, generator=random) < share] = 0


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "fp32", *map(float, sys.argv[2:3]))
