"""The rung of a LiteRT file on the parity ladder: its answers, and its inner tensors layer by layer.

XNNPACK adds products of eight bits in 32 bits on every processor, and scales a sum by one multiplication in
single precision, as the simulator does. The integers of an int8 file are therefore compared as strictly as
those of the ONNX file. Its logits are computed in floating point from the last integers.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.litert import interpreter
from pipeline.litert.flatfile import INT8_ZERO_POINT
from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import IMAGES, Network
from pipeline.models.storage import Model
from pipeline.onnx.graph import LOGITS
from pipeline.onnx.sessions import FUSED
from pipeline.parity import floating_point, layerwise
from pipeline.parity.ladder import (
    Images,
    ParityError,
    Rung,
    compare_rungs,
    file_answers,
    module_answers,
    untied_divergence,
)
from pipeline.quantization.simulator import simulate

COMPARED = 4
"""Number of images on which all layers are compared, whatever the answers are."""


def climb(
    model: Model, path: Path, onnx: Path, batches: Iterable[Images], labels: np.ndarray, *, threads: int
) -> dict[str, Any]:
    """Compare a LiteRT file with the network that it was made from, on the same images.

    Args:
        model: the saved model.
        path: its LiteRT file.
        onnx: its ONNX file.
        batches: images in the order of the labels.
        labels: classes, or targets of attributes.
        threads: number of threads of both runtimes.

    Returns:
        ``n`` and ``rungs``: the module, or the simulator of an int8 one; the ONNX file; and the LiteRT file,
        with the keys of ``ladder.climb``.

    Raises:
        ParityError: inner tensors of the LiteRT file differ from the module's or the simulator's in more than
            ties, on the first images or where an answer differs; the message names the first layer that
            diverges.
        LiteRtError: the file cannot be opened.
    """
    network = fold_batch_norm(model)
    session = interpreter.open_file(path, threads=threads)
    remaining = iter(batches)
    first = next(remaining)
    if reason := divergence(model, path, first[:COMPARED]):
        raise ParityError(f"{model.card.variant}: {path.name} is not what its network computes; {reason}")
    if model.quantization is None:
        reference = Rung("torch_float", module_answers(model, network.module))
        diverges = partial(untied_divergence, model, network, partial(outputs_of_file, path, network))
    else:
        simulated = simulate(network, model.quantization)
        reference = Rung("simulator", module_answers(model, simulated))
        diverges = partial(_int8_divergence, model, network, simulated, path)
    rungs = [
        reference,
        Rung("onnx", file_answers(onnx, FUSED, threads)),
        Rung(
            "litert", lambda images: torch.from_numpy(session.run(images.numpy())), reference.name, diverges
        ),
    ]
    return {
        "n": len(labels),
        "rungs": compare_rungs(model, rungs, itertools.chain([first], remaining), labels),
    }


def divergence(model: Model, path: Path, images: Images) -> str | None:
    """The first layer of a LiteRT file that does not compute what its network does, in words; None if none.

    Ties of roundings are no divergence.
    """
    network = fold_batch_norm(model)
    if model.quantization is not None:
        simulated = simulate(network, model.quantization)
        return _int8_divergence(model, network, simulated, path, images, 0.0)
    outputs = outputs_of_file(path, network, layerwise.activations(network), images)
    spread = float(outputs[LOGITS].max() - outputs[LOGITS].min())
    return floating_point.float_divergence(network, outputs, spread, model.card.input.normalise(images))


@torch.no_grad()
def outputs_of_file(path: Path, network: Network, names: Sequence[str], images: Images) -> dict[str, Tensor]:
    """The named activations of a LiteRT file in the simulator's layout, and its logits.

    Integers are those of the simulator, from 0 to 255.
    """
    session = interpreter.open_file(path, threads=1, names=names)
    parts = [session.outputs(image) for image in images.numpy()[:, None]]
    logits, *arrays = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    outputs = {}
    for name, array in zip(names, arrays, strict=True):
        if array.dtype == torch.int8:
            array = array.int() - INT8_ZERO_POINT
        outputs[name] = array[:, :, None, None] if name in network.pools else array.permute(0, 3, 1, 2)
    return {**outputs, LOGITS: logits}


def _int8_divergence(
    model: Model,
    network: Network,
    simulated: nn.Module,
    path: Path,
    images: Images,
    _spread_of_logits: float,
) -> str | None:
    """The first layer with integers to which the simulator's values do not round, even in a tie."""
    assert model.quantization is not None
    names = [name for name in model.quantization.activation_scales if name != IMAGES]
    return layerwise.compare(
        outputs_of_file(path, network, names, images),
        simulated,
        network,
        model.quantization,
        model.card.input.normalise(images),
        whole_sums=True,
        whole_logits=False,
    ).divergence
