"""Whether the simulator agrees with ONNX Runtime on every test image of every int8 file.

    python -m benchmarks.parity            # all test images; some minutes a variant
    python -m benchmarks.parity 500        # so many, stratified by class
    python -m benchmarks.parity 500 --all-rungs

Reads `params.yaml` and `artifacts/`. One line a rung; it ends with an error where a difference is no tie.
"""

import argparse
import time

import torch

from pipeline import parameters, paths
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.models import storage
from pipeline.parity import ladder
from pipeline.parity.ladder import RungName
from pipeline.running import affinity

BATCH = 50
SIDE_RUNGS: tuple[RungName, ...] = ("torch_float", "onnx_float", "fake_quant", "onnx_plain")


def main() -> None:
    """Climb with the shipped files of all int8 variants."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=int, nargs="?")
    parser.add_argument("--all-rungs", action="store_true")
    arguments = parser.parse_args()
    p = parameters.load()
    threads = p.compute.threads or affinity.physical_cores()
    torch.set_num_threads(threads)
    for variant in p.variants:
        model = storage.load(paths.model(variant))
        if model.quantization is None:
            continue
        test = ViewSet(store.read(paths.DATA, "test"), None, model.card.input)
        chosen = sampling.choose(test.images, arguments.images or len(test), p.seed)
        requests = batches.sequential(chosen.tolist(), None, model.card.input.size, BATCH)
        began = time.perf_counter()
        found = ladder.climb(
            model,
            paths.onnx(variant),
            (test[request].images for request in requests),
            test.images.labels[chosen],
            threads=threads,
            skip=() if arguments.all_rungs else SIDE_RUNGS,
        )
        print(f"{variant}: {found['n']} images, {time.perf_counter() - began:.0f} s; {found}", flush=True)


if __name__ == "__main__":
    main()
