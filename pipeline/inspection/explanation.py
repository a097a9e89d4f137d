"""Where a classifier looks: Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

The only importer of Captum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from captum.attr import LayerGradCam
from jaxtyping import Bool, Float, Int, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pipeline.evaluation.confidence import Confidence
from pipeline.evaluation.scoring import list_confusions
from pipeline.models.storage import Model
from teachers.contract import InputContract

METHOD = {
    "name": "Grad-CAM",
    "library": f"captum {version('captum')}",
    "note": "of each file's own answer, at the output of the last convolution; an int8 file's map is that of "
    "its float twin with the same integer weights, since rounded activations have no gradient",
}

PAIRS, EXAMPLES = 5, 3
"""Confusions that are shown, and images of each."""

OPACITY = 0.55
"""Of the warmest place of a map over its image."""


def last_map(module: nn.Module) -> str:
    """Path of the unit that holds the last convolution: its output is the last that has places."""
    convolutions = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    return convolutions[-1].rpartition(".")[0] or convolutions[-1]


def grad_cam(
    module: nn.Module,
    contract: InputContract,
    images: UInt8[Tensor, "batch side side 3"],
    classes: Int64[Tensor, " batch"],
) -> Float[np.ndarray, "batch side side"]:
    """What speaks for a class, place by place, from 0 to 1 (the warmest place of each image).

    A map that is nowhere positive is 0 everywhere.
    """
    layer = LayerGradCam(module, module.get_submodule(last_map(module)))
    coarse = cast(
        Tensor, layer.attribute(contract.normalise(images), target=classes, relu_attributions=True)
    ).detach()
    fine = functional.interpolate(coarse, size=images.shape[1:3], mode="bilinear", align_corners=False)
    greatest = fine.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(greatest > 0, fine / greatest.clamp_min(1e-30), 0)[:, 0].numpy()


def overlay(image: UInt8[np.ndarray, "side side 3"], warmth: Float[np.ndarray, "side side"]) -> Image.Image:
    """The image in grey, with the map over it in colours that are told apart without red and green."""
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float64)[..., None].repeat(3, axis=2)
    colours = 255 * matplotlib.colormaps["inferno"](warmth)[..., :3]
    share = OPACITY * warmth[..., None]
    return Image.fromarray(((1 - share) * grey + share * colours).round().astype(np.uint8))


def similarity(first: Float[np.ndarray, "side side"], second: Float[np.ndarray, "side side"]) -> float | None:
    """Pearson's correlation of two maps; None where one is the same everywhere."""
    if not first.std() or not second.std():
        return None
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@dataclass(frozen=True)
class Album:
    """A folder of pictures of test images, each written once."""

    folder: Path
    render: Callable[[Sequence[int]], UInt8[Tensor, "batch side side 3"]]
    """The squares that are evaluated, by the images' numbers."""
    labels: Int[np.ndarray, " images"]
    names: Sequence[str]
    sources: Sequence[str]
    """Where each image comes from, for a person to find it again."""
    written: set[int] = field(default_factory=set)

    def show(self, index: int) -> dict[str, Any]:
        """Write one image's picture; its number, source, truth and file."""
        file = f"{index:05}.png"
        if index not in self.written:
            Image.fromarray(self.render([index])[0].numpy()).save(self.folder / file)
            self.written.add(index)
        truth = self.names[int(self.labels[index])]
        return {"index": index, "source": self.sources[index], "truth": truth, "file": file}


def maps(
    album: Album,
    models: Mapping[str, Model],
    answers: Mapping[str, Confidence],
    chosen: Sequence[int],
) -> list[dict[str, Any]]:
    """Grad-CAM of every variant on the same images; ``similarity`` is to the first variant's map."""
    images = album.render(chosen)
    warmth = {
        name: grad_cam(
            model.module, model.card.input, images, torch.from_numpy(answers[name].predictions[chosen]).long()
        )
        for name, model in models.items()
    }
    first = next(iter(warmth.values()))
    shown = []
    for row, index in enumerate(chosen):
        entry = album.show(index)
        variants = {}
        for name in models:
            file = f"{index:05}-{name}.png"
            overlay(images[row].numpy(), warmth[name][row]).save(album.folder / file)
            variants[name] = {
                "answer": album.names[int(answers[name].predictions[index])],
                "confidence": float(answers[name].confidence[index]),
                "right": bool(answers[name].predictions[index] == album.labels[index]),
                "map": file,
                "similarity": similarity(first[row], warmth[name][row]),
            }
        shown.append({**entry, "variants": variants})
    return shown


def flips(album: Album, own: Confidence, parent: Confidence, name: str, most: int) -> dict[str, Any]:
    """Images that only the parent got right (``lost``) or only the variant (``gained``), the surest first."""
    right, before = own.predictions == album.labels, parent.predictions == album.labels
    found: dict[str, Any] = {"parent": name}
    for kind, changed in (("lost", before & ~right), ("gained", right & ~before)):
        indices = _surest(own, changed)
        found[kind] = [
            {
                **album.show(index),
                "answer": album.names[int(own.predictions[index])],
                "parent_answer": album.names[int(parent.predictions[index])],
                "confidence": float(own.confidence[index]),
                "parent_confidence": float(parent.confidence[index]),
            }
            for index in indices[:most].tolist()
        ]
    return found


def confusions(album: Album, own: Confidence) -> list[dict[str, Any]]:
    """The most frequent confusions, with the images of which the classifier was surest."""
    matrix = np.zeros((len(album.names), len(album.names)), dtype=np.int64)
    np.add.at(matrix, (album.labels, own.predictions), 1)
    shown = []
    for pair in list_confusions(matrix, album.names, PAIRS):
        truth, answer = album.names.index(pair["truth"]), album.names.index(pair["answer"])
        indices = _surest(own, (album.labels == truth) & (own.predictions == answer))[:EXAMPLES].tolist()
        examples = [{**album.show(i), "confidence": float(own.confidence[i])} for i in indices]
        shown.append({**pair, "examples": examples})
    return shown


def _surest(own: Confidence, of: Bool[np.ndarray, " images"]) -> Int64[np.ndarray, " some"]:
    """The chosen images' numbers, those first of which the classifier was surest."""
    indices = np.flatnonzero(of)
    return indices[np.argsort(-own.confidence[indices], kind="stable")]
