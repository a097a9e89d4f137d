"""Write the ONNX file of a variant, and verify it against the module it came from."""

import sys

import numpy as np
import torch

from pipeline import files, parameters, paths, provenance
from pipeline.data import batches, store
from pipeline.data.batches import ViewSet
from pipeline.models import storage
from pipeline.onnx import export
from pipeline.parity import verification
from pipeline.running import affinity
from pipeline.running.process import stage

VERIFIED_IMAGES = 32


def main(variant: str) -> None:
    """Write `artifacts/onnx/<variant>.onnx`."""
    p = parameters.load(variant=variant)
    torch.set_num_threads(affinity.threads(p.compute.threads))
    model = storage.load(paths.model(variant))
    file = paths.onnx(variant)
    previous = file.read_bytes() if file.is_file() else b""
    file.unlink(missing_ok=True)
    unverified = file.with_suffix(".unverified")
    metadata = export.metadata_for(model.card, model.quantization, provenance.git_commit())
    export.export(model, unverified, metadata)
    val_set = ViewSet(store.read(paths.DATA, "val"), None, model.card.input)
    sample = np.linspace(0, len(val_set) - 1, num=min(VERIFIED_IMAGES, len(val_set)), dtype=int)
    images = val_set[batches.Request(sample.tolist(), None, model.card.input.size)].images
    figures = verification.verify(unverified, model, images)
    if export.differ_in_commit_alone(previous, unverified.read_bytes()):
        # The same file again: what was measured on it holds, so DVC need not measure it anew.
        files.write(unverified, previous)
    unverified.replace(file)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB; verified: {verification.describe(figures)}")


if __name__ == "__main__":
    with stage():
        main(sys.argv[1])
