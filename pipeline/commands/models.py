"""The ONNX file that a command is to use, and photographs to try it on."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import paths
from pipeline.errors import DistilleryError, did_you_mean
from pipeline.escaping import for_terminal

if TYPE_CHECKING:
    from pipeline.onnx.inference import Classifier
    from pipeline.shipping.samples import Sample


class NoSamplesError(DistilleryError):
    """There are no prepared images to draw samples from."""


def opened(name: str, *, threads: int, strict: bool = False) -> "Classifier":
    """Open the ONNX file of ``path_of``, and say on standard error why it could not be verified.

    Raises:
        ModelFileError: there is no such file, or it is not one of this pipeline.
        IntegrityError: it is not the file on record (see ``pipeline.shipping.integrity.check``).
    """
    from pipeline.onnx import inference
    from pipeline.shipping import integrity

    classifier = inference.open_classifier(path_of(name), threads=threads)
    if doubt := integrity.check(classifier.path, classifier.metadata, strict=strict):
        print(f"note: {for_terminal(doubt)}", file=sys.stderr)
    return classifier


def path_of(name: str) -> Path:
    """Path of an ONNX file that is given by its path or by the name of a variant."""
    from pipeline.onnx.inference import ModelFileError

    if name.endswith(".onnx"):
        return Path(name)
    if not paths.onnx(name).is_file():
        names = sorted(file.stem for file in paths.ONNX.glob("*.onnx"))
        variants = ", ".join(names) or f"none in {paths.ONNX}"
        raise ModelFileError(
            f"{name!r} is neither a variant ({variants}) nor an .onnx file{did_you_mean(name, names)}"
        )
    return paths.onnx(name)


def samples() -> "list[Sample]":
    """A few photographs of the test split with their right answers; none where there is no prepared data."""
    from pipeline import parameters
    from pipeline.data import store
    from pipeline.shipping import samples

    if not (paths.DATA / "test").is_dir():
        return []
    return samples.draw(store.read(paths.DATA, "test"), paths.SAMPLES, parameters.load().seed)
