"""Where a classifier looks: Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

The only importer of Captum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from captum.attr import LayerGradCam
from jaxtyping import Bool, Float, Int, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pipeline import files
from pipeline.evaluation.confidence import Confidence
from pipeline.evaluation.scoring import list_confusions
from pipeline.models.storage import Model
from teachers.contract import InputContract

METHOD = {
    "name": "Grad-CAM",
    "library": f"captum {version('captum')}",
    "note": "maps explain the class that each file predicts, at the output of the last convolution; an int8 "
    "file's map is that of its float twin with the same integer weights, since rounded activations have no "
    "gradient",
}

PAIRS, EXAMPLES = 5, 3
"""Number of confusions that are shown, and of images of each."""

OPACITY = 0.55
"""Opacity of the warmest place of a map over its image."""

INFERNO = np.array(
    [
        *((0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84)),
        *((228, 90, 49), (249, 142, 9), (249, 203, 53), (252, 255, 164)),
    ]
)
"""Red, green and blue of Matplotlib's colour map `inferno` at nine equal steps from 0 to 1."""


def last_map(module: nn.Module) -> str:
    """Module path of the unit that holds the last convolution, whose output is the last with places."""
    convolutions = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    return convolutions[-1].rpartition(".")[0] or convolutions[-1]


def grad_cam(
    module: nn.Module,
    contract: InputContract,
    images: UInt8[Tensor, "batch side side 3"],
    classes: Int64[Tensor, " batch"],
) -> Float[np.ndarray, "batch side side"]:
    """Compute how much each place of an image speaks for a class, from 0 to 1, its warmest place.

    A map without positive values is 0 everywhere.
    """
    layer = LayerGradCam(module, module.get_submodule(last_map(module)))
    coarse = cast(
        Tensor, layer.attribute(contract.normalise(images), target=classes, relu_attributions=True)
    ).detach()
    fine = functional.interpolate(coarse, size=images.shape[1:3], mode="bilinear", align_corners=False)
    greatest = fine.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(greatest > 0, fine / greatest.clamp_min(1e-30), 0)[:, 0].numpy()


def overlay(image: UInt8[np.ndarray, "side side 3"], warmth: Float[np.ndarray, "side side"]) -> Image.Image:
    """Lay the map over the image in grey, in colours that do not need red and green to be told apart."""
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float64)[..., None].repeat(3, axis=2)
    steps = np.linspace(0, 1, len(INFERNO))
    colours = np.stack([np.interp(warmth, steps, channel) for channel in INFERNO.T], axis=-1)
    share = OPACITY * warmth[..., None]
    return Image.fromarray(((1 - share) * grey + share * colours).round().astype(np.uint8))


def similarity(first: Float[np.ndarray, "side side"], second: Float[np.ndarray, "side side"]) -> float | None:
    """Compute Pearson's correlation of two maps; None if one of them is constant."""
    if not first.std() or not second.std():
        return None
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@dataclass(frozen=True)
class Album:
    """A folder of pictures of images of one split, each written once."""

    folder: Path
    render: Callable[[Sequence[int]], UInt8[Tensor, "batch side side 3"]]
    """Function from the images' indices to the squares that are evaluated."""
    labels: Int[np.ndarray, " images"]
    names: Sequence[str]
    sources: Sequence[str]
    """Where each image comes from, so that a person can find it again."""
    prefix: str = ""
    """Start of the names of the files, which differs between splits."""
    written: set[int] = field(default_factory=set)

    def draw(self, index: int) -> str:
        """Write one image's picture; return the name of its file."""
        file = f"{self.prefix}{index:05}.png"
        if index not in self.written:
            self.save(file, Image.fromarray(self.render([index])[0].numpy()))
            self.written.add(index)
        return file

    def show(self, index: int) -> dict[str, Any]:
        """Write one image's picture; return its index, source, true class and file."""
        file = self.draw(index)
        truth = self.names[int(self.labels[index])]
        return {"index": index, "source": self.sources[index], "truth": truth, "file": file}

    def save(self, file: str, picture: Image.Image) -> None:
        """Write a picture as PNG."""
        with files.replacing(self.folder / file) as fresh:
            picture.save(fresh, "PNG")


def draw_maps(
    album: Album,
    models: Mapping[str, Model],
    answers: Mapping[str, Confidence],
    indices: Sequence[int],
) -> list[dict[str, Any]]:
    """Draw every variant's Grad-CAM on the same images; ``similarity`` is to the first variant's map."""
    images = album.render(indices)
    warmth = {
        name: grad_cam(
            model.module,
            model.card.input,
            images,
            torch.from_numpy(answers[name].predictions[indices]).long(),
        )
        for name, model in models.items()
    }
    first = next(iter(warmth.values()))
    entries = []
    for row, index in enumerate(indices):
        entry = album.show(index)
        variants = {}
        for name in models:
            file = f"{index:05}-{name}.png"
            album.save(file, overlay(images[row].numpy(), warmth[name][row]))
            variants[name] = {
                "answer": album.names[int(answers[name].predictions[index])],
                "confidence": float(answers[name].confidence[index]),
                "right": bool(answers[name].predictions[index] == album.labels[index]),
                "map": file,
                "similarity": similarity(first[row], warmth[name][row]),
            }
        entries.append({**entry, "variants": variants})
    return entries


def pictures(result: object) -> set[str]:
    """Names of all pictures that plain values such as those of ``draw_maps`` name."""
    if isinstance(result, Mapping):
        named = {value for key, value in result.items() if key in ("file", "map") and isinstance(value, str)}
        return named.union(*map(pictures, result.values()))
    return set().union(*map(pictures, result)) if isinstance(result, list) else set()


def find_flips(
    album: Album, variant: Confidence, parent: Confidence, parent_name: str, most: int
) -> dict[str, Any]:
    """Find the images that only the parent got right (``lost``) or only the variant (``gained``).

    Args:
        album: receives their pictures.
        variant: answers of the variant.
        parent: answers of its parent.
        parent_name: name of the parent.
        most: greatest number of images of each kind; those of which the variant is surest come first.
    """
    correct, parent_correct = variant.predictions == album.labels, parent.predictions == album.labels
    flips: dict[str, Any] = {"parent": parent_name}
    for kind, mask in (("lost", parent_correct & ~correct), ("gained", correct & ~parent_correct)):
        indices = _surest(variant, mask)
        flips[kind] = [
            {
                **album.show(index),
                "answer": album.names[int(variant.predictions[index])],
                "parent_answer": album.names[int(parent.predictions[index])],
                "confidence": float(variant.confidence[index]),
                "parent_confidence": float(parent.confidence[index]),
            }
            for index in indices[:most].tolist()
        ]
    return flips


def find_confusions(album: Album, variant: Confidence) -> list[dict[str, Any]]:
    """Find the most frequent confusions, with the images of which the classifier was surest."""
    matrix = np.zeros((len(album.names), len(album.names)), dtype=np.int64)
    np.add.at(matrix, (album.labels, variant.predictions), 1)
    confusions = []
    for pair in list_confusions(matrix, album.names, PAIRS):
        truth, answer = album.names.index(pair["truth"]), album.names.index(pair["answer"])
        pair_mask = (album.labels == truth) & (variant.predictions == answer)
        indices = _surest(variant, pair_mask)[:EXAMPLES].tolist()
        examples = [{**album.show(i), "confidence": float(variant.confidence[i])} for i in indices]
        confusions.append({**pair, "examples": examples})
    return confusions


def _surest(answers: Confidence, mask: Bool[np.ndarray, " images"]) -> Int64[np.ndarray, " selection"]:
    """Indices of the images in the mask, those first of which the classifier was surest."""
    indices = np.flatnonzero(mask)
    return indices[np.argsort(-answers.confidence[indices], kind="stable")]
