"""The ONNX file that ships: the student's graph with what it says of itself, verified in ONNX Runtime."""

import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from jaxtyping import UInt8
from onnx import TensorProto, helper
from torch import Tensor, nn

from pipeline.models.storage import Card, Model, Quantization
from pipeline.onnx.graph import CONVOLUTIONS, ExportError, write
from pipeline.parity import layerwise
from pipeline.quantization.simulator import fold_batch_norm, simulate
from pipeline.tasks import TASKS


def export(model: Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the file that ships: uint8 ``images`` [batch, height, width, 3] to float ``logits``.

    Normalisation, layout and batch norms are inside the graph; int8 layers are stored as integers between
    quantise and dequantise nodes.

    Raises:
        ExportError: an int8 stem with a mean or a standard deviation other than 0 and 1; scales that do not
            fit the module; a float layer between int8 ones; or a part that has no writer.
    """
    try:
        file = write(
            _folded(model), model.quantization, model.card.input, len(model.card.labels), model.card.variant
        )
    except ExportError as error:
        raise ExportError(f"{model.card.variant}: {error}") from error
    helper.set_model_props(file, dict(metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.SerializeToString())


def _folded(model: Model) -> nn.Module:
    """The module on the CPU, without batch norms."""
    module, _ = fold_batch_norm(model.module, model.card.architecture, model.card.arguments)
    return module.cpu().float()


def metadata_for(
    card: Card, quantization: Quantization | None, git_commit: str = "unknown"
) -> dict[str, str]:
    """The metadata of a shipped file: all values are strings, lists and objects are JSON.

    ``git_commit`` is the checkout that writes the file.
    """
    contract = card.input
    how = {
        "size": contract.size,
        "crop": contract.crop,
        "interpolation": contract.interpolation,
        "rule": (
            f"Take the centred square whose side is {contract.crop:g} of the shorter side, resize it to "
            f"{contract.size} x {contract.size} pixels in one antialiased {contract.interpolation} step, and "
            "give its RGB bytes; the file normalises."
        ),
    }
    return {
        "labels": json.dumps(card.labels),
        "input": json.dumps(how),
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


FLOAT_TOLERANCE = 1e-3
"""Greatest difference of logits from the module, as a share of the logits' spread."""
BATCH_TOLERANCE = 1e-3
"""Greatest difference between one batch and image by image, as a share of the logits' spread."""
ROUNDING_TOLERANCE = 1e-3
"""Greatest share of an int8 layer's outputs that may lie one step beside the simulator's."""


def verify(path: Path, model: Model, images: UInt8[Tensor, "batch height width 3"]) -> dict[str, float]:
    """Check the file against the module that it came from, in ONNX Runtime on the CPU.

    The rungs: the ONNX checker; no external data; which kernels ONNX Runtime's optimiser chooses; one
    batch against image by image; logits against the module (float) or the simulator (int8). An int8 file
    is moreover compared layer by layer, each layer given the very integers that the runtime gave it, so
    that a rounding that falls the other way is counted once and not carried on: as it stands ("exact",
    without graph optimisation) and with the fused integer kernels ("fused").

    Fused kernels on an x86 processor without VNNI add products in 16 bits, and weights of more than 7
    bits can saturate there. Only then is a difference of the fused kernels reported and not an error.

    Returns the figures, in shares of 1: ``logits`` and ``batches`` are greatest differences over the
    logits' spread, ``argmax`` the share of equal answers, ``exact`` and ``fused`` the greatest share of a
    layer's integers that differ, ``exact_steps`` and ``fused_steps`` by how many steps.

    Raises:
        ExportError: a rung fails.
    """
    onnx.checker.check_model(str(path), full_check=True)
    file = onnx.load(path, load_external_data=False)
    if outside := [t.name for t in file.graph.initializer if t.data_location == TensorProto.EXTERNAL]:
        raise ExportError(f"{path} keeps {outside} outside the file; it must be one file")
    _check_kernels(path, model.quantization)

    session = layerwise.session(path, layerwise.FUSED)
    whole = layerwise.answers(session, images)
    single = np.concatenate([layerwise.answers(session, image) for image in images.split(1)])
    module, contract, quantization = _folded(model), model.card.input, model.quantization
    reference = module if quantization is None else simulate(module, quantization)
    normalised = contract.normalise(images)
    with torch.no_grad():
        wanted = reference(normalised).numpy()
    spread = max(float(np.ptp(wanted)), 1e-12)
    figures = {
        "batches": float(np.abs(whole - single).max()) / spread,
        "logits": float(np.abs(whole - wanted).max()) / spread,
        "argmax": float((whole.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
    }
    if quantization is None:
        _limit(path, figures, "logits", FLOAT_TOLERANCE)
        _limit(path, figures, "batches", BATCH_TOLERANCE)
        return figures
    for name, level in (("exact", layerwise.PLAIN), ("fused", layerwise.FUSED)):
        share = steps = 0.0
        integers = layerwise.integers_of_file(path, module, images, level)
        for stage in layerwise.stages(integers, reference, module, quantization, normalised):
            apart = stage.steps()
            # The first is forgiven: in a small layer, one tie that falls the other way is a large share.
            share = max(share, max(int((apart > 0).sum()) - 1, 0) / apart.numel())
            steps = max(steps, float(apart.max()))
        figures |= {name: share, f"{name}_steps": steps}
        if name == "exact" or quantization.weight_limit < 127 or not sums_may_saturate():
            _limit(path, figures, name, ROUNDING_TOLERANCE)
            _limit(path, figures, f"{name}_steps", 1.0)
    if not quantization.float_layers:
        # Float kernels may differ by the last bit between batch sizes, which then tips roundings;
        # integers may not.
        _limit(path, figures, "batches", BATCH_TOLERANCE)
    return figures


def _limit(path: Path, figures: Mapping[str, float], name: str, limit: float) -> None:
    if not figures[name] <= limit:  # a NaN fails as well
        raise ExportError(f"{path}: {name} is {figures[name]:.3g}; at most {limit:g} is allowed")


def _check_kernels(path: Path, quantization: Quantization | None) -> None:
    """Every convolution but the named float layers must become a QLinearConv, and the reverse."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimized.onnx"
        layerwise.session(path, layerwise.FUSED, saved=saved)
        optimized = onnx.load(saved)
    kinds = [node.op_type for node in optimized.graph.node if node.op_type in CONVOLUTIONS]
    written = [
        node.name.removesuffix(".sums") for node in onnx.load(path).graph.node if node.op_type == "Conv"
    ]
    whole = 0 if quantization is None else sum(name in quantization.weight_scales for name in written)
    if (kinds.count("QLinearConv"), len(kinds)) != (whole, len(written)):
        raise ExportError(
            f"{path}: ONNX Runtime runs {kinds.count('QLinearConv')} of {len(kinds)} convolutions in int8; "
            f"{whole} of {len(written)} are meant to"
        )


def sums_may_saturate() -> bool:
    """Whether this processor adds pairs of u8 x s8 products in 16 bits; yes where it cannot be known."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not {"avx512_vnni", "avx_vnni", "avx512vnni", "amx_int8"} & set(flags)
