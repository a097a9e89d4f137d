"""Published MobileNetV1 weights under this package's names: Hugging Face's, timm's, and TensorFlow-slim's."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

Unit = tuple[int, str]
"""Block number and ``depthwise`` or ``pointwise``; the stem is ``(-1, "stem")``."""

TIMM_STAGES = (1, 2, 2, 6, 2)
"""Number of blocks per stage in timm, where a stage begins when the map is halved or the first width ends."""


@dataclass(frozen=True)
class Layout:
    """How a library names a network's tensors."""

    convolution: Callable[[Unit], str]
    """Function from a unit to the name of its convolution's weights."""
    norm: Callable[[Unit], str]
    """Function from a unit to the prefix of its batch norm."""
    norm_tensors: Mapping[str, str]
    """Their name below ``norm`` by ours; a tensor that they lack keeps its initial value."""
    classifier: tuple[str, str]
    """Names of the classifier's weight and bias."""
    height_first: bool = False
    """Whether weights are [height, width, in, out], as in TensorFlow."""
    ignored: str = r"(?!)"
    """Regular expression for names in such a file that do not belong to the network."""


def units() -> Iterator[tuple[str, Unit]]:
    """Yield our module path of every unit, in order."""
    yield "stem", (-1, "stem")
    for block in range(13):
        for part in ("depthwise", "pointwise"):
            yield f"blocks.{block}.{part}", (block, part)


def _hugging_face(unit: Unit) -> str:
    block, part = unit
    name = "conv_stem" if block < 0 else f"layer.{2 * block + (part == 'pointwise')}"
    return f"mobilenet_v1.{name}"


def _timm(unit: Unit, stem: str, depthwise: str, pointwise: str) -> str:
    block, part = unit
    if block < 0:
        return stem
    stage = 0
    while block >= TIMM_STAGES[stage]:
        block -= TIMM_STAGES[stage]
        stage += 1
    return f"blocks.{stage}.{block}.{depthwise if part == 'depthwise' else pointwise}"


def _slim(unit: Unit) -> str:
    block, part = unit
    return f"MobilenetV1/Conv2d_{block + 1}" + ("" if block < 0 else f"_{part}")


TORCH_NORM = {name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}

LAYOUTS: dict[str, Layout] = {
    "hugging_face": Layout(
        convolution=lambda unit: f"{_hugging_face(unit)}.convolution.weight",
        norm=lambda unit: f"{_hugging_face(unit)}.normalization.",
        norm_tensors=TORCH_NORM,
        classifier=("classifier.weight", "classifier.bias"),
    ),
    "timm": Layout(
        convolution=lambda unit: f"{_timm(unit, 'conv_stem', 'conv_dw', 'conv_pw')}.weight",
        norm=lambda unit: f"{_timm(unit, 'bn1', 'bn1', 'bn2')}.",
        norm_tensors=TORCH_NORM,
        classifier=("classifier.weight", "classifier.bias"),
    ),
    "slim": Layout(
        convolution=lambda unit: (
            f"{_slim(unit)}/{'depthwise_weights' if unit[1] == 'depthwise' else 'weights'}"
        ),
        norm=lambda unit: f"{_slim(unit)}/BatchNorm/",
        norm_tensors={
            "weight": "gamma",
            "bias": "beta",
            "running_mean": "moving_mean",
            "running_var": "moving_variance",
        },
        classifier=("MobilenetV1/Logits/Conv2d_1c_1x1/weights", "MobilenetV1/Logits/Conv2d_1c_1x1/biases"),
        height_first=True,
        # Optimiser slots and averages are named after the variable that they belong to.
        ignored=r"global_step|.*/(ExponentialMovingAverage|RMSProp|RMSProp_1|Momentum)",
    ),
}
"""Layout by the name of the library."""


def library_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The library whose names most layers of a checkpoint have; None for names of this package or unknown
    ones."""
    paths = [unit for _, unit in units()]
    found = {
        name: sum(layout.convolution(unit) in tensors for unit in paths) for name, layout in LAYOUTS.items()
    }
    best = max(found, key=lambda name: found[name])
    return best if 2 * found[best] > len(paths) else None


def translate(library: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a published checkpoint into a state dict of ``MobileNetV1``.

    A tensor that the checkpoint lacks is missing from the result, and an unknown name stays as it is, so that
    loading the result reports both.

    Args:
        library: key of ``LAYOUTS``.
        tensors: tensors of the checkpoint, by its own names.
    """
    layout = LAYOUTS[library]
    names: dict[str, str] = {}
    depthwise = set()
    for path, unit in units():
        names[layout.convolution(unit)] = f"{path}.conv.weight"
        if unit[1] == "depthwise":
            depthwise.add(layout.convolution(unit))
        for ours, theirs in layout.norm_tensors.items():
            names[layout.norm(unit) + theirs] = f"{path}.norm.{ours}"
    names |= dict(zip(layout.classifier, ("classifier.weight", "classifier.bias"), strict=True))
    translated = {}
    for name, tensor in tensors.items():
        if re.fullmatch(layout.ignored, name):
            continue
        value = tensor
        if layout.height_first and value.dim() == 4:
            value = value.permute(2, 3, 0, 1) if name in depthwise else value.permute(3, 2, 0, 1)
            value = value.flatten(1) if name == layout.classifier[0] else value
        translated[names.get(name, name)] = value.contiguous()
    return translated


def channels(tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Read the 14 numbers of output channels of a state dict; None if a layer is missing."""
    free = [f"{path}.conv.weight" for path, (_, part) in units() if part != "depthwise"]
    return tuple(len(tensors[name]) for name in free) if all(name in tensors for name in free) else None
