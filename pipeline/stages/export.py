"""Write the ONNX file of a variant, and verify it against the module it came from."""

import sys

import numpy as np
import torch

from pipeline import parameters, paths, provenance
from pipeline.data import batches, store
from pipeline.data.batches import ViewSet
from pipeline.models import storage
from pipeline.onnx import export
from pipeline.parity import verification
from pipeline.process import stage

VERIFIED_IMAGES = 32


def main(variant: str) -> None:
    """Write `artifacts/onnx/<variant>.onnx`."""
    parameters.load()
    model = storage.load(paths.model(variant))
    whole = paths.onnx(variant)
    file = whole.with_suffix(".unverified")
    whole.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    export.export(model, file, export.metadata_for(model.card, model.quantization, provenance.git_commit()))
    val_set = ViewSet(store.read(paths.DATA, "val"), None, model.card.input)
    shown = np.linspace(0, len(val_set) - 1, num=min(VERIFIED_IMAGES, len(val_set)), dtype=int)
    images = val_set[batches.Request(shown.tolist(), None, model.card.input.size)].images
    torch.set_num_threads(1)
    figures = verification.verify(file, model, images)
    file.replace(whole)
    print(
        f"{whole}: {whole.stat().st_size / 1e6:.2f} MB; "
        + ", ".join(f"{k} {v:g}" for k, v in figures.items())
    )


if __name__ == "__main__":
    with stage():
        main(sys.argv[1])
