"""The LiteRT file that ships: the student's graph, its metadata and its labels in one file."""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline import files
from pipeline.litert import flatfile, graph, metadata
from pipeline.litert.graph import LOGITS, LiteRtError
from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import IMAGES
from pipeline.models.storage import Model
from pipeline.tasks import SINGLE_LABEL, TASKS


def export(model: Model, path: Path, details: Mapping[str, str]) -> str:
    """Write the file: uint8 ``images`` [1, height, width, 3] to float ``logits`` [1, classes].

    It takes the same bytes and gives the same logits as the ONNX file of the model.

    Args:
        model: the saved model.
        path: the file to write.
        details: the metadata of the ONNX file.

    Returns:
        The first release of TensorFlow Lite that runs the file.

    Raises:
        LiteRtError: see ``graph.write``.
        NetworkError: the student is not a chain of layers.
    """
    card = model.card
    network = fold_batch_norm(model)
    try:
        written, images, logits = graph.write(
            network, model.quantization, card.input, len(card.labels), half=model.half
        )
    except LiteRtError as error:
        raise LiteRtError(f"{card.variant}: {error}") from error
    assert images.grid is not None
    softmax = TASKS[card.task] is SINGLE_LABEL
    described = metadata.describe(
        name=card.variant,
        description=f"Classifies an image into {len(card.labels)} classes."
        if softmax
        else f"Tells which of {len(card.labels)} attributes an image has.",
        license_=card.license,
        side=card.input.size,
        grid=images.grid,
        rule=json.loads(details["input"])["rule"],
        scores="Logits in the order of the labels; probabilities are "
        f"{'their softmax' if softmax else 'the logistic function of each'}.",
    )
    entries = {metadata.RELEASE: metadata.release(written.release), metadata.NAME: described}
    content = flatfile.serialize(
        written, {IMAGES: images}, {LOGITS: logits}, f"{card.variant}, written by distillery", entries
    )
    files.write(path, metadata.append(content, card.labels, details))
    return written.release
