"""Compare the ONNX file of a variant with its module, and score it on the whole test split."""

import json
import sys
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from pipeline import files, parameters, paths
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.evaluation import confidence, scoring
from pipeline.models import costs, storage
from pipeline.onnx import weight
from pipeline.parity import ladder
from pipeline.running import affinity, progress
from pipeline.running.process import stage

BATCH = 32
"""Number of images per batch."""


def main(variant: str) -> None:
    """Write `artifacts/metrics/<variant>.json`, and `<variant>.npz` with the confidence in every image."""
    p = parameters.load(variant=variant)
    model = storage.load(paths.model(variant))
    size = model.card.input.size
    threads = affinity.threads(p.compute.threads)
    torch.set_num_threads(threads)
    test_set, val_set = (ViewSet(store.read(paths.DATA, s), None, model.card.input) for s in ("test", "val"))

    def images(
        views: ViewSet, indices: Sequence[int], description: str
    ) -> Iterator[UInt8[Tensor, "_ height width 3"]]:
        requests = batches.sequential(indices, None, size, BATCH)
        loader = batches.load(torch.device("cpu"), views, requests, p.compute.workers)
        with progress.bar(f"{description} {variant}", len(indices)) as bar:
            for batch in loader:
                yield batch.images
                bar.update(len(batch.images))

    # Before the test split is used: a file that differs from the trained module gets no score.
    count = len(val_set) if p.evaluation.parity is None else p.evaluation.parity
    parity = None
    if count:
        sample = sampling.choose(val_set.images, count, p.seed)
        labels = val_set.images.labels[sample]
        rungs = ladder.climb(
            model, paths.onnx(variant), images(val_set, sample.tolist(), "parity"), labels, threads=threads
        )
        parity = {"split": "val", **rungs}
    scores, probabilities = scoring.score(
        paths.onnx(variant),
        (batch.numpy() for batch in images(test_set, range(len(test_set)), "evaluate")),
        test_set.images.labels,
        threads=threads,
    )
    metrics = {
        **scores,
        "parameters": costs.count_parameters(model.module),
        "macs": costs.count_macs(model.module, size),
        **weight.weigh(paths.onnx(variant)),
        "parity": parity,
    }
    paths.METRICS.mkdir(parents=True, exist_ok=True)
    files.write(paths.metrics(variant), json.dumps(metrics) + "\n")
    confidence.save(paths.confidence(variant), probabilities)
    value, lo, hi = (scores[scores["metric"] + end] for end in ("", "_lo", "_hi"))
    print(f"{variant}: {test_set.images.task.words} {value:.2%} [{lo:.2%}, {hi:.2%}]")


if __name__ == "__main__":
    with stage():
        main(sys.argv[1])
