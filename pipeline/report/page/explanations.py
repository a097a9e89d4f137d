"""The page's pictures of Grad-CAM maps, answers that changed, and classes that are confused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipeline.report import words
from pipeline.report.evidence import Part, inline_picture
from pipeline.report.figures import figure
from pipeline.report.page.grid import Shot
from pipeline.report.results import RunResults

Picture = Callable[[str], str]


@dataclass(frozen=True)
class Flips:
    """Images whose answer a variant changed against its parent."""

    variant: str
    parent: str
    way: str
    """``lost`` where the parent is correct, ``gained`` where the variant is."""
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another."""

    truth: str
    answer: str
    count: int
    of: int
    """Number of test images of the true class."""
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Explanations:
    """Pictures that explain the answers."""

    maps: Sequence[Sequence[Shot]]
    """One row per image: the image, and the Grad-CAM map of each variant, the shipped one first."""
    note: str
    flips: Sequence[Flips]
    confusions: Sequence[tuple[str, Sequence[Confusion]]]
    """Variant and its most frequent confusions, the shipped variant first."""


def explanations(results: RunResults) -> Explanations | None:
    """All explanations of a run; None where none were drawn."""
    part = results.evidence.explanations
    if not part:
        return None
    folder = results.evidence.folder
    picture = cache(lambda name: inline_picture(folder / name))
    reference = next((variant for image in part["images"] for variant in image["variants"]), None)
    method = part["method"]
    shipped = results.closest.variant
    return Explanations(
        maps=[_maps(image, reference, shipped, picture) for image in part["images"]],
        note=words.sentence(f"{method['name']} ({method['library']}): {method['note']}"),
        flips=[
            Flips(variant, of["parent"], way, [_flip(item, of["parent"], way, picture) for item in of[way]])
            for variant, of in part["flips"].items()
            for way in ("lost", "gained")
            if of[way]
        ],
        confusions=[
            (variant, [_confusion(pair, picture) for pair in pairs])
            for variant, pairs in sorted(part["confused"].items(), key=lambda item: item[0] != shipped)
            if pairs
        ],
    )


def _maps(image: Mapping[str, Any], reference: str | None, shipped: str, picture: Picture) -> list[Shot]:
    shots = [Shot(picture(image["file"]), image["truth"])]
    for variant, of in sorted(image["variants"].items(), key=lambda item: item[0] != shipped):
        lines = [(f"{of['answer']}, {figure(of['confidence'], '%', 0)}", of["right"])]
        if of["similarity"] is not None and variant != reference:
            lines.append((f"similarity to {reference}: {figure(of['similarity'], 'plain', 2)}", True))
        shots.append(Shot(picture(of["map"]), variant, lines))
    return shots


def _flip(item: Part, parent: str, way: str, picture: Picture) -> Shot:
    before = f"{parent}: {_answer(item, 'parent_answer', 'parent_confidence')}"
    after = f"now: {_answer(item, 'answer', 'confidence')}"
    lines = [(before, way == "lost"), (after, way == "gained")]
    return Shot(picture(item["file"]), item["truth"], lines)


def _confusion(pair: Part, picture: Picture) -> Confusion:
    shots = [Shot(picture(example["file"]), "") for example in pair["examples"]]
    return Confusion(pair["truth"], pair["answer"], pair["count"], pair["of"], shots)


def _answer(item: Part, answer: str, confidence: str) -> str:
    value = item.get(confidence)
    return item[answer] if value is None else f"{item[answer]}, {figure(value, '%', 0)}"
