"""The ONNX file that ships: the student's graph, and the metadata that describe it."""

import json
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import helper

from pipeline import files
from pipeline.models.folding import fold_batch_norm
from pipeline.models.storage import Card, Model, Quantization
from pipeline.onnx.graph import ExportError, write
from pipeline.tasks import TASKS


def export(model: Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the file that ships: uint8 ``images`` [batch, height, width, 3] to float ``logits``.

    Normalisation, layout and batch norms are inside the graph; int8 layers are stored as integers between
    quantise and dequantise nodes, and the layers of a model in half precision compute in float16.

    Raises:
        ExportError: an int8 stem reads images whose contract has no zero point, the scales do not fit the
            network, a float layer lies between int8 ones, or a module has no writer.
        NetworkError: the student is not a chain of layers.
    """
    card = model.card
    try:
        file = write(
            fold_batch_norm(model),
            model.quantization,
            card.input,
            len(card.labels),
            card.variant,
            half=model.half,
        )
    except ExportError as error:
        raise ExportError(f"{card.variant}: {error}") from error
    helper.set_model_props(file, dict(metadata))
    files.write(path, file.SerializeToString())


def metadata_for(
    card: Card, quantization: Quantization | None, git_commit: str = "unknown"
) -> dict[str, str]:
    """The metadata of a shipped file; every value is a string, lists and objects are JSON.

    ``git_commit`` is the checkout that writes the file.
    """
    contract = card.input
    preparation = {
        "size": contract.size,
        "crop": contract.crop,
        "interpolation": contract.interpolation,
        "rule": (
            f"Take the centred square whose side is {contract.crop:g} times the shorter side, resize it to "
            f"{contract.size} x {contract.size} pixels in one antialiased {contract.interpolation} step, and "
            "give its RGB bytes; the file normalises."
        ),
    }
    return {
        "labels": json.dumps(card.labels),
        "input": json.dumps(preparation),
        "variant": card.variant,
        "parent": card.parent,
        "teacher": card.teacher,
        "data_sha256": card.data_sha256,
        "calibration_sha256": card.calibration_sha256 or "",
        "git_commit": git_commit,
        "task": TASKS[card.task].onnx,
        "license": card.license,
        "float_layers": json.dumps(quantization.float_layers if quantization else ()),
    }


def differ_in_commit_alone(previous: bytes, current: bytes) -> bool:
    """Whether two serialised files are equal except for the ``git_commit`` in their metadata."""
    return bool(previous) and _without_commit(previous) == _without_commit(current)


def _without_commit(file: bytes) -> bytes:
    model = onnx.load_model_from_string(file)
    kept = [entry for entry in model.metadata_props if entry.key != "git_commit"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model.SerializeToString(deterministic=True)
