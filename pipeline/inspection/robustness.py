"""Shipped files on images that they were not made for: corrupted, adversarial, or of no class at all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from scipy.special import softmax

from pipeline.inspection import attacks, corruptions
from pipeline.models.storage import Model
from pipeline.onnx.inference import Classifier, run
from pipeline.statistics.bootstrap import mean_with_interval
from pipeline.statistics.intervals import Z95, wilson

SURE = 0.9
"""A probability from which on an answer counts as sure."""
AT_ONCE = 32
"""Images of one call, and of one step of an attack."""

Images = UInt8[np.ndarray, "images side side 3"]


def answer(
    classifiers: Mapping[str, Classifier], sets: Iterable[Images]
) -> Iterator[dict[str, Float32[np.ndarray, "images classes"]]]:
    """Logits of all classifiers to each set of images; the next set is made while they run."""

    def ask(images: Images) -> dict[str, Float32[np.ndarray, "images classes"]]:
        starts = range(0, len(images), AT_ONCE)
        return {
            name: np.concatenate(list(run(classifier, (images[i : i + AT_ONCE] for i in starts))))
            for name, classifier in classifiers.items()
        }

    with ThreadPoolExecutor(max_workers=1) as pool:
        asked = None
        for images in sets:
            told, asked = asked, pool.submit(ask, images)
            if told is not None:
                yield told.result()
        if asked is not None:
            yield asked.result()


def corrupted(
    classifiers: Mapping[str, Classifier],
    parents: Mapping[str, str],
    images: Images,
    labels: Int64[np.ndarray, " images"],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Accuracy under 15 corruptions at 5 severities, the same corrupted images for all.

    Args:
        classifiers: the shipped files.
        parents: variant to its parent.
        images: as the files take them, uncorrupted.
        labels: their classes.
        seeds: one an image.

    Returns:
        For each variant the accuracy on the ``clean`` images, the ``mean`` over all corruptions with a
        bootstrap interval over the images, its paired difference to the parent, each kind and severity.
    """
    sets = (batch for whole in ([images], corruptions.batches(images, seeds)) for batch in whole)
    right = {name: [] for name in classifiers}
    for told in answer(classifiers, sets):
        for name, logits in told.items():
            right[name].append(logits.argmax(axis=1) == labels)
    tables = {name: np.array(found) for name, found in right.items()}
    return {
        "library": corruptions.LIBRARY,
        "n": len(images),
        "kinds": corruptions.KINDS,
        "severities": corruptions.SEVERITIES,
        "groups": corruptions.GROUPS,
        "variants": {name: _corrupted(table, tables.get(parents[name])) for name, table in tables.items()},
    }


def _corrupted(
    right: Bool[np.ndarray, "sets images"], parents: Bool[np.ndarray, "sets images"] | None
) -> dict[str, Any]:
    clean, each = right[0], right[1:].reshape(len(corruptions.KINDS), len(corruptions.SEVERITIES), -1)
    share = each.mean(axis=(0, 1))
    mean, lo, hi = mean_with_interval(share)
    result = {
        **_accuracy("clean", clean),
        "mean": mean,
        "mean_lo": lo,
        "mean_hi": hi,
        "delta": None,
        "delta_lo": None,
        "delta_hi": None,
        "kinds": {
            kind: dict(zip(("accuracy", "lo", "hi"), mean_with_interval(of.mean(axis=0)), strict=True))
            for kind, of in zip(corruptions.KINDS, each, strict=True)
        },
        "table": {
            kind: [
                {"severity": severity, "accuracy": float(of.mean()), "lo": lo, "hi": hi}
                for severity, of in zip(corruptions.SEVERITIES, row, strict=True)
                for lo, hi in [wilson(int(of.sum()), len(of))]
            ]
            for kind, row in zip(corruptions.KINDS, each, strict=True)
        },
    }
    if parents is not None:
        delta, lo, hi = mean_with_interval(share - parents[1:].mean(axis=0))
        result |= {"delta": delta, "delta_lo": lo, "delta_hi": hi}
    return result


def attacked(
    classifiers: Mapping[str, Classifier],
    modules: Mapping[str, Model],
    victims: Mapping[str, Sequence[str]],
    images: Images,
    labels: Int64[np.ndarray, " images"],
    *,
    radii: Sequence[int],
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy on images that were made to mislead float modules.

    Args:
        classifiers: the shipped files.
        modules: the float modules that are attacked.
        victims: module to the files that are shown its images: its own, and those quantised from it.
        images: as the files take them.
        labels: their classes.
        radii: of the greatest change, of 255.
        steps: of projected gradient descent.
        seed: of its starts.
    """
    tried = [(name, kind, radius) for name in modules for radius in radii for kind in attacks.DESCRIPTIONS]
    results = []
    made = (
        _adversarial(modules[name], kind, radius, images, labels, steps, seed) for name, kind, radius in tried
    )
    shown = next(answer(classifiers, [images]))
    for name, kind, radius in tried:
        adversarial, fooled = next(made)
        told = next(answer({v: classifiers[v] for v in victims[name]}, [adversarial]))
        results += [
            {
                "attack": kind,
                "radius": radius,
                "module": name,
                "variant": variant,
                "transferred": variant != name,
                **_accuracy("accuracy", logits.argmax(axis=1) == labels),
                "module_accuracy": fooled,
            }
            for variant, logits in told.items()
        ]
    return {
        "n": len(images),
        "radii": list(radii),
        "steps": steps,
        "attacks": {name: words.format(steps=steps) for name, words in attacks.DESCRIPTIONS.items()},
        "clean": {
            name: _accuracy("accuracy", logits.argmax(axis=1) == labels) for name, logits in shown.items()
        },
        "results": results,
    }


def _adversarial(
    model: Model,
    kind: str,
    radius: int,
    images: Images,
    labels: Int64[np.ndarray, " images"],
    steps: int,
    seed: int,
) -> tuple[Images, float]:
    """Adversarial images, and the module's own accuracy on them."""
    contract, found, right = model.card.input, [], 0
    module = model.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for first in range(0, len(images), AT_ONCE):
        some = torch.from_numpy(images[first : first + AT_ONCE])
        truth = torch.from_numpy(labels[first : first + AT_ONCE])
        moved = (
            attacks.fgsm(module, contract, some, truth, radius)
            if kind == "FGSM"
            else attacks.pgd(module, contract, some, truth, radius, steps=steps, seed=seed + first)
        )
        right += int((attacks.answers(module, contract, moved) == truth).sum())
        found.append(moved.numpy())
    return np.concatenate(found), right / len(images)


def outside(
    classifiers: Mapping[str, Classifier],
    sets: Mapping[str, Images],
    known: Mapping[str, Float[np.ndarray, " test"]],
) -> dict[str, Any]:
    """How sure files are of images that belong to no class, and whether that tells them from test images.

    Args:
        classifiers: the shipped files.
        sets: name to images.
        known: variant to its greatest probability for each test image.
    """
    told = dict(zip(sets, answer(classifiers, sets.values()), strict=True))
    return {
        "sure": SURE,
        "test": {
            name: {
                "n": len(confident),
                "confidence": float(confident.mean(dtype=np.float64)),
                "over_90": float((confident >= SURE).mean()),
            }
            for name, confident in known.items()
        },
        "sets": {
            kind: {
                "n": len(sets[kind]),
                "variants": {
                    name: _outside(softmax(logits, axis=1).max(axis=1), known[name])
                    for name, logits in found.items()
                },
            }
            for kind, found in told.items()
        },
    }


def _outside(confident: Float[np.ndarray, " images"], known: Float[np.ndarray, " test"]) -> dict[str, float]:
    mean, lo, hi = mean_with_interval(confident.astype(np.float64))
    area, area_lo, area_hi = auroc(known, confident)
    return {
        "confidence": mean,
        "confidence_lo": lo,
        "confidence_hi": hi,
        "over_90": float((confident >= SURE).mean()),
        "auroc": area,
        "auroc_lo": area_lo,
        "auroc_hi": area_hi,
    }


def auroc(
    inside: Float[np.ndarray, " inside"], outside: Float[np.ndarray, " outside"]
) -> tuple[float, float, float]:
    """How often one of ``inside`` lies above one of ``outside``, ties by half (DeLong et al. 1988)."""
    above, below = _placements(inside, outside), 1 - _placements(outside, inside)
    area = float(above.mean())
    half = Z95 * float(np.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)))
    return area, max(0.0, area - half), min(1.0, area + half)


def _placements(
    values: Float[np.ndarray, " values"], others: Float[np.ndarray, " others"]
) -> Float[np.ndarray, " values"]:
    """The share of the others that each value lies above."""
    ordered = np.sort(others)
    least = np.searchsorted(ordered, values, side="left")
    return (least + np.searchsorted(ordered, values, side="right")) / (2 * len(ordered))


def _accuracy(name: str, right: Bool[np.ndarray, " images"]) -> dict[str, float]:
    lo, hi = wilson(int(right.sum()), len(right))
    prefix = "" if name == "accuracy" else f"{name}_"
    return {name: float(right.mean()), f"{prefix}lo": lo, f"{prefix}hi": hi}
