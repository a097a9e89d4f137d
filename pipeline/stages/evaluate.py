"""Score the shipped file of a variant on the whole test split, in ONNX Runtime."""

import json
import sys
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from lightning_fabric import Fabric
from tqdm import tqdm

from pipeline import confidence, costs, evaluation, models, parameters, paths
from pipeline.data import store
from pipeline.inference import ModelFileError
from pipeline.parameters import ParameterError
from pipeline.process import stage
from pipeline.training import batches, compute
from pipeline.training.batches import ViewSet


def main(variant: str) -> None:
    """Write `artifacts/metrics/<variant>.json`, and beside it what is kept of every image."""
    p = parameters.load()
    model = models.load(paths.model(variant))
    size = model.card.input.size
    test_set = ViewSet(store.read(paths.DATA, "test"), None, model.card.input)

    def images() -> Iterator[UInt8[np.ndarray, "batch height width 3"]]:
        requests = batches.sequential(len(test_set), None, size, 32)
        loader = batches.load(Fabric(accelerator="cpu"), test_set, requests, p.compute.workers)
        with tqdm(desc=f"evaluate {variant}", total=len(test_set), unit=" images", mininterval=5) as bar:
            for batch in loader:
                yield batch.images.numpy()
                bar.update(len(batch.images))

    scores, kept = evaluation.score(
        paths.onnx(variant),
        images(),
        test_set.images.labels,
        threads=p.compute.threads or compute.usable_cores(),
    )
    metrics = {
        **scores,
        "parameters": costs.count_parameters(model.module),
        "macs": costs.count_macs(model.module, size),
        **costs.weigh(paths.onnx(variant)),
    }
    paths.METRICS.mkdir(parents=True, exist_ok=True)
    paths.metrics(variant).write_text(json.dumps(metrics) + "\n")
    confidence.save(paths.confidence(variant), kept)
    value, lo, hi = (scores[scores["metric"] + end] for end in ("", "_lo", "_hi"))
    print(f"{variant}: {test_set.images.task.words} {value:.2%} [{lo:.2%}, {hi:.2%}]")


if __name__ == "__main__":
    with stage(ParameterError, ModelFileError):
        main(sys.argv[1])
