"""Verification of a shipped file against the network that it was made from, in ONNX Runtime on the CPU."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from jaxtyping import UInt8
from onnx import TensorProto
from torch import Tensor

from pipeline import resources
from pipeline.errors import DistilleryError
from pipeline.models.folding import fold_batch_norm
from pipeline.models.layers import Network
from pipeline.models.storage import Model, Quantization
from pipeline.onnx.graph import CONVOLUTIONS, LOGITS
from pipeline.onnx.sessions import FUSED, PLAIN, open_session
from pipeline.parity import floating_point, layerwise
from pipeline.parity.saturation import sums_may_saturate
from pipeline.quantization.half_precision import round_outputs
from pipeline.quantization.simulator import simulate

FLOAT_TOLERANCE = 1e-3
"""Greatest allowed difference of logits from the module, as a share of the logits' spread."""
BATCH_TOLERANCE = 1e-3
"""Greatest allowed difference between one batch and image by image, as a share of the logits' spread."""


class VerificationError(DistilleryError):
    """A file is not what its network computes; the message names the figure and its limit."""


def verify(path: Path, model: Model, images: UInt8[Tensor, "batch height width 3"]) -> dict[str, float]:
    """Verify a file against its model.

    The checks, in order: the ONNX checker; no external data; the kernels that ONNX Runtime's optimiser
    chooses; one batch against image by image; logits against the module (float) or the simulator (int8). An
    int8 file is also compared layer by layer, without graph optimisation ("exact") and with the fused
    integer kernels ("fused"). Each layer is given the very integers that the runtime gave it, so that a
    rounding that falls the other way is counted once and not carried on.

    Fused kernels on an x86 processor without VNNI add products in 16 bits, and weights of more than 7 bits
    can saturate there. Only then is a difference of the fused kernels reported instead of raised.

    A file in half precision may differ from the module by what half precision rounds. How much of it a
    runtime rounds is up to its kernels: ONNX Runtime on x86 processors widens float16 and adds in float32.

    Returns:
        Figures as fractions of 1: ``logits`` and ``batches`` are greatest differences over the unit of
        ``floating_point.logit_unit``, ``argmax`` is the share of equal answers, ``exact`` and ``fused``
        are the greatest share of a layer's integers that differ other than in ties, and ``exact_steps`` and
        ``fused_steps`` the greatest number of steps by which any integer differs.

    Raises:
        VerificationError: a check fails.
    """
    onnx.checker.check_model(str(path), full_check=True)
    file = onnx.load(path, load_external_data=False)
    if outside := [t.name for t in file.graph.initializer if t.data_location == TensorProto.EXTERNAL]:
        raise VerificationError(f"{path} keeps {outside} outside the file; it must be one file")
    network, contract, quantization = fold_batch_norm(model), model.card.input, model.quantization
    _check_kernels(path, network, quantization)

    session = open_session(path)
    together = layerwise.answers(session, images)
    single = np.concatenate([layerwise.answers(session, image) for image in images.split(1)])
    reference = network.module if quantization is None else simulate(network, quantization)
    rounded = round_outputs(network) if model.half else None
    normalised = contract.normalise(images)
    names = layerwise.activations(network)
    outputs = layerwise.outputs_of_module(network.module, network, names[-1:], normalised)
    with torch.no_grad():
        expected = (outputs[LOGITS] if quantization is None else reference(normalised)).numpy()
    spread = float(np.ptp(expected))
    unit = floating_point.logit_unit(network, outputs, spread)
    figures = {
        "batches": float(np.abs(together - single).max()) / unit,
        "logits": float(np.abs(together - expected).max()) / unit,
        "argmax": float((together.argmax(axis=1) == expected.argmax(axis=1)).mean()),
    }
    if quantization is None:
        for level in (PLAIN, FUSED):
            actual = layerwise.outputs_of_file(path, names, images, level)
            if divergence := floating_point.float_divergence(network, actual, spread, normalised, rounded):
                raise VerificationError(f"{path}: {divergence}")
        noise = 0.0
        if max(figures["logits"], figures["batches"]) > min(FLOAT_TOLERANCE, BATCH_TOLERANCE):
            other = (
                layerwise.outputs_of_module(rounded, network, [], normalised)
                if rounded
                else floating_point.outputs_in_double(network, [], normalised)
            )
            noise = layerwise.NOISE * float((outputs[LOGITS] - other[LOGITS]).abs().max()) / unit
        _limit(path, figures, "logits", max(FLOAT_TOLERANCE, noise))
        _limit(path, figures, "batches", max(BATCH_TOLERANCE, noise))
        return figures
    for name, level in (("exact", PLAIN), ("fused", FUSED)):
        integers = layerwise.integers_of_file(path, network, images, level)
        # Without optimisation, the numbers on the grid are added in floating point.
        whole = level is FUSED
        result = layerwise.compare(integers, reference, network, quantization, normalised, whole_sums=whole)
        figures |= {name: result.wrong, f"{name}_steps": result.steps}
        exact = name == "exact" or quantization.weight_limit < 127 or not sums_may_saturate()
        if exact and result.divergence:
            raise VerificationError(f"{path}: with {name} kernels, {result.divergence}")
    if not quantization.float_layers:
        # Float kernels may differ in the last bit between batch sizes, which then tips roundings.
        _limit(path, figures, "batches", BATCH_TOLERANCE)
    return figures


def describe(figures: Mapping[str, float]) -> str:
    """What ``verify`` has found, in words."""
    logits = f"logits within {figures['logits']:.1g} of their range" if figures["logits"] else "equal logits"
    answers = f"{figures['argmax']:.0%} of the answers equal" if figures["argmax"] < 1 else "equal answers"
    if "exact" not in figures:
        return f"{logits}, {answers}"
    wrong = max(figures["exact"], figures["fused"])
    integers = f"{wrong:.2%} of a layer's integers differ" if wrong else "equal integers in every layer"
    return f"{logits}, {answers}, {integers}"


def _limit(path: Path, figures: Mapping[str, float], name: str, limit: float) -> None:
    if not figures[name] <= limit:  # A NaN fails as well.
        raise VerificationError(f"{path}: {name} is {figures[name]:.3g}; at most {limit:g} is allowed")


def _check_kernels(path: Path, network: Network, quantization: Quantization | None) -> None:
    """Every convolution except those of the float layers must become a QLinearConv, and no other."""
    with resources.scratch() as folder:
        optimized = folder / "optimized.onnx"
        open_session(path, optimized=optimized)
        kinds = [node.op_type for node in onnx.load(optimized).graph.node if node.op_type in CONVOLUTIONS]
    convolutions = [name for name, layer in network.layers.items() if layer.kind != "linear"]
    int8 = 0 if quantization is None else sum(name in quantization.weight_scales for name in convolutions)
    if (kinds.count("QLinearConv"), len(kinds)) != (int8, len(convolutions)):
        raise VerificationError(
            f"{path}: ONNX Runtime runs {kinds.count('QLinearConv')} of {len(kinds)} convolutions in int8; "
            f"{int8} of {len(convolutions)} are expected"
        )
