"""A student's folder on disk: tensors in safetensors, everything else in readable JSON, no pickle."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import students
from pipeline import files, paths
from teachers.contract import InputContract

SCALE_SUFFIX = ".weight_scale"


@dataclass(frozen=True)
class Quantization:
    """Everything that turns a float student with folded batch norms into its int8 twin.

    Layers are named as in ``layers.Network``. Weights are int8 and symmetric, with one step per output
    channel; activations are uint8 with one scale per tensor and zero point 0, since each follows a ReLU.
    The zero point of ``images`` is that of the card's contract. The logits stay float.
    """

    weight_scales: dict[str, Float[Tensor, " channels"]]
    """Step of each output channel, by layer; the weights are multiples of their steps already."""
    weight_limit: int
    """Greatest magnitude of an integer weight: 127, 63 if 16-bit sums must not saturate, or 7 (4 bits)."""
    activation_scales: dict[str, float]
    """Activation to its scale: ``real = scale * integer``. An activation is named after the layer or the
    pooling that writes it; ``images`` is the network's input."""
    float_layers: tuple[str, ...] = ()
    """Layers that stay in float."""


@dataclass(frozen=True)
class Card:
    """Everything that is needed to rebuild a student, and its origin."""

    variant: str
    parent: str
    op: str
    architecture: str
    """Key of ``students.ARCHITECTURES``."""
    arguments: dict[str, Any]
    """Keyword arguments of the architecture, pruned widths included."""
    input: InputContract
    labels: tuple[str, ...]
    """Class names in the order of the logits."""
    teacher: str
    data_sha256: str
    license: str
    """Licence of the training images."""
    settings: dict[str, Any]
    """The operation's settings as they were applied."""
    start: str = "random weights"
    """Initial weights of the first student, in words."""
    task: str = "single_label"
    """Key of ``tasks.TASKS``."""
    val: dict[str, int | float] = field(default_factory=dict)
    """Number ``n`` of validation images, the torch module's score as a fraction of 1 under the metric's name,
    its ``chance``, and whether it is ``at_chance``; see ``statistics.chance``."""
    calibration_sha256: str | None = None
    """SHA-256 over the images that set the activation ranges; None if there are none."""


@dataclass(frozen=True)
class Model:
    """A student with its card, in evaluation mode."""

    module: nn.Module
    card: Card
    quantization: Quantization | None = None
    half: bool = False
    """Whether the numbers of its files, and the computation, are float16. The module is in single precision;
    its weights are numbers of float16."""


def save(folder: Path, model: Model) -> None:
    """Write ``weights.safetensors`` and ``card.json``."""
    tensors = {name: value.contiguous() for name, value in model.module.state_dict().items()}
    if model.half:
        tensors = {name: value.half() for name, value in tensors.items()}
    card = asdict(model.card)
    if model.quantization is not None:
        for layer, scale in model.quantization.weight_scales.items():
            tensors[layer + SCALE_SUFFIX] = scale.contiguous()
        quantization = asdict(replace(model.quantization, weight_scales={}))
        card["quantization"] = {k: v for k, v in quantization.items() if k != "weight_scales"}
    (folder / paths.CARD).unlink(missing_ok=True)  # An incomplete student has no card.
    with files.replacing(folder / paths.WEIGHTS) as fresh:
        save_file(tensors, fresh)
    files.write(folder / paths.CARD, json.dumps(card, indent=2) + "\n")


def load(folder: Path) -> Model:
    """Rebuild a student from its folder, in evaluation mode on the CPU.

    Raises:
        ValueError: the tensors do not fit the card's architecture.
    """
    values = json.loads((folder / paths.CARD).read_text())
    tensors = load_file(folder / paths.WEIGHTS)
    stored = values.pop("quantization", None)
    quantization = None
    if stored is not None:
        scales = {n: tensors.pop(n) for n in list(tensors) if n.endswith(SCALE_SUFFIX)}
        quantization = Quantization(
            weight_scales={n.removesuffix(SCALE_SUFFIX): scale for n, scale in scales.items()},
            weight_limit=stored["weight_limit"],
            activation_scales=stored["activation_scales"],
            float_layers=tuple(stored["float_layers"]),
        )
    half = any(value.dtype == torch.float16 for value in tensors.values())
    if half:
        tensors = {name: value.float() for name, value in tensors.items()}
    values["input"] = InputContract.from_dict(values["input"])
    values["labels"] = tuple(values["labels"])
    card = Card(**values)
    with torch.device("meta"):
        module = students.build(card.architecture, card.arguments)
    try:
        module.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / paths.WEIGHTS} does not fit {folder / paths.CARD}: {error}") from error
    return Model(module.eval(), card, quantization, half)


def fingerprint(module: nn.Module) -> str:
    """Compute the SHA-256 over the names and values of a module's tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()
